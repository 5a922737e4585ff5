"""One connection and its channels: publishes until everything has found its queue, and looks at queues."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from taskbridge.brokers.rabbitmq.channel import Batch, Channel, ChannelClosedError, PublishingChannel
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.parcel import Packing, Parcels, Place
from taskbridge.brokers.rabbitmq.topology import existing_queue
from taskbridge.brokers.rabbitmq.waiting import Deadline, Lock, TimedOutError

_ROUNDS: Final = 3
"""How often a queue that is missing is declared before it is given up."""

_NOT_FOUND: Final = 404


class DeclarationRefusedError(Exception):
    """The server does not let us declare a queue or an exchange as it must be."""


FAILURES: Final = (ConnectionLostError, ChannelClosedError, TimedOutError, DeclarationRefusedError)
"""What can go wrong on a connection."""


@dataclass(slots=True)
class Outcome:
    """What became of parcels; those that are not accepted, and not unsure, were not taken.

    Attributes:
        accepted: The indexes of those that the server has confirmed.
        unsure: Of those that it may have.
        refused: Of those that their queue did not take.
        problem: Why not all were accepted.
        again: Whether trying again at once may help.
    """

    accepted: set[int] = field(default_factory=set[int])
    unsure: set[int] = field(default_factory=set[int])
    refused: set[int] = field(default_factory=set[int])
    problem: str | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many messages a queue holds that nobody has been given, and how many consumers it has."""

    messages: int
    consumers: int


class Session:
    """What is known and open on one connection. Threads share it; it ends with its connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._busy = f"RabbitMQ at {connection.where} does not answer other threads either"
        self._opening = Lock()
        self._making = Lock()
        self._asking = Lock()
        self._publishing: PublishingChannel | None = None
        self._side: Channel | None = None
        self._made: set[Place] = set()

    # Publishing

    def deliver(self, parcels: Parcels, deadline: Deadline) -> Outcome:
        """Publish parcels in order, pipelined; makes the places that are missing, and publishes again what they miss.

        Returns:
            After all were confirmed, or at the deadline, or when no more will be.
        """
        outcome = Outcome()
        todo = parcels
        try:
            for _ in range(_ROUNDS):
                began = time.monotonic()
                channel = self._ready(todo, deadline)
                batch = channel.send(todo, deadline)
                if not self.connection.wait(batch, deadline):
                    self._abandon(channel, batch, began, deadline)
                outcome.accepted |= batch.accepted
                outcome.unsure |= batch.unsure
                outcome.refused |= batch.refused
                if batch.problem is not None:
                    raise batch.problem
                if batch.refused:
                    refusing = next(parcel.place.name for parcel in todo if parcel.number in batch.refused)
                    outcome.problem = f"RabbitMQ at {self.connection.where} refused it: is queue {refusing!r} full?"
                if not batch.returned:
                    return outcome
                todo = [parcel for parcel in todo if parcel.number in batch.returned]
                for place in dict.fromkeys(parcel.place for parcel in todo):
                    self._made.difference_update(place.with_all_below())
                    self.make(place, deadline)
            outcome.problem = (
                f"RabbitMQ at {self.connection.where} does not find {next(iter(todo)).place.name!r}, just declared"
            )
        except FAILURES as exc:
            outcome.problem = str(exc)
            outcome.again = not outcome.unsure and self._may_help(exc)
        return outcome

    def _may_help(self, failure: Exception) -> bool:
        if isinstance(failure, ChannelClosedError):
            return failure.code == _NOT_FOUND  # an exchange was deleted; it is declared again
        return isinstance(failure, ConnectionLostError) and self.connection.may_be_remade

    def _ready(self, parcels: Parcels, deadline: Deadline) -> PublishingChannel:
        """Return the channel, once the server is there and takes messages."""
        self.connection.wait_open(deadline)
        self.connection.receive()  # that it was closed meanwhile is noticed now, not after publishing into the void
        self.connection.wait_unblocked(deadline)
        channel = self._publishing
        if channel is None or channel.closed is not None:
            channel = self._publishing_channel(deadline)
        for place in _made_first(parcels):
            if place not in self._made:
                self.make(place, deadline)  # in any order, for each comes with all below it
        return channel

    def _publishing_channel(self, deadline: Deadline) -> PublishingChannel:
        with self._opening.held(deadline, self._busy):
            channel = self._publishing
            if channel is None or channel.closed is not None:
                self._made.clear()
                channel = PublishingChannel(self.connection)
                channel.open(deadline)
                self._publishing = channel
            return channel

    def _abandon(self, channel: PublishingChannel, batch: Batch, began: float, deadline: Deadline) -> None:
        channel.abandon(batch)
        connection = self.connection
        if batch.problem is not None:
            return
        if connection.blocked_by is not None:
            batch.problem = TimedOutError(connection.blocked_problem())
        else:
            batch.problem = TimedOutError(f"RabbitMQ at {connection.where} sent no confirm in {deadline.timeout_s:g} s")
            self._doubt(began)

    def _doubt(self, began: float) -> None:
        """Give the connection up if nothing was heard since; the next use makes another."""
        if self.connection.heard_at < began and self.connection.blocked_by is None:
            self.connection.lose(f"RabbitMQ at {self.connection.where} does not answer")

    def make(self, place: Place, deadline: Deadline) -> None:
        """Declare a place, and what is below it, unless that is done on this connection.

        Raises:
            DeclarationRefusedError: There is another of the name, or it is not allowed.
            ConnectionLostError, TimedOutError: As for `Channel.call`.
        """
        with self._making.held(deadline, self._busy):
            missing = [each for each in place.with_all_below() if each not in self._made]
            calls = [call for each in missing for call in each.calls(self.connection.server_version)]
            try:
                self.call_all(calls, deadline)
            except ChannelClosedError as exc:
                raise DeclarationRefusedError(_declaration_problem(calls[len(exc.replies)], exc)) from exc
            self._made.update(missing)

    # Looking

    def call(self, method: Any, deadline: Deadline) -> Any:
        """Return the reply to a method on a channel of its own, as `Channel.call`."""
        return self.call_all([method], deadline)[0]

    def call_all(self, methods: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return the replies to methods that are sent together, as `Channel.call_all`."""
        self.connection.wait_open(deadline)
        began = time.monotonic()
        try:
            # One caller at a time, from choosing the channel on: else one whose channel was closed by what another
            # asked for would take that refusal for its own.
            with self._asking.held(deadline, self._busy):
                return self._side_channel(deadline).call_all(methods, deadline)
        except TimedOutError:
            self._doubt(began)
            raise

    def _side_channel(self, deadline: Deadline) -> Channel:
        with self._opening.held(deadline, self._busy):
            if self._side is None or self._side.closed is not None:
                self._side = self._opened(deadline)
            return self._side

    def _opened(self, deadline: Deadline) -> Channel:
        channel = Channel(self.connection)
        channel.open(deadline)
        return channel

    @contextmanager
    def channel(self, deadline: Deadline) -> Generator[Channel, None, None]:
        """Open a channel for the block; what it was delivered and not acknowledged goes back at the end."""
        self.connection.wait_open(deadline)
        channel = self._opened(deadline)
        try:
            yield channel
        finally:
            channel.close(deadline)

    def look(self, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False) -> dict[str, QueueState]:
        """Return the states of those of these queues that exist, or of those before the first that doesn't.

        Each that is missing is an error in the server's log.
        """
        states: dict[str, QueueState] = {}
        start = 0
        while start < len(queues):
            asked = queues[start:]
            try:
                replies = self.call_all([existing_queue(name) for name in asked], deadline)
            except ChannelClosedError as exc:  # that one is missing; those before it were answered
                if exc.code != _NOT_FOUND:
                    raise
                replies, start = exc.replies, len(queues) if until_missing else start + len(exc.replies) + 1
            else:
                start = len(queues)
            for name, reply in zip(asked, replies, strict=False):
                states[name] = QueueState(reply.message_count, reply.consumer_count)
        return states


def _made_first(parcels: Parcels) -> Collection[Place]:
    """Return the places that must be there before these can be published; publications need none."""
    return () if isinstance(parcels, Packing) else {each.place for each in parcels if each.place.made_first}


def _declaration_problem(call: Any, refusal: ChannelClosedError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    remedy = "; if it may go, delete it and it will be made again" if refusal.code == 406 else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"
