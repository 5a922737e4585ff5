"""Publishes until everything has found its queue, makes what is missing, and looks at queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.pool import FAILURES, DeclarationRefusedError, Pool
from taskbridge.brokers.rabbitmq.publication import Parcel, Place
from taskbridge.brokers.rabbitmq.topology import existing_queue
from taskbridge.exceptions import BrokerUnavailable

T = TypeVar("T")

_TRIES: Final = 12
"""How often something is tried on another connection when the one there was is gone: as often as there may be such."""

_ROUNDS: Final = 3
"""How often a queue that is missing is declared before it is given up."""

_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many messages a queue holds that nobody has been given, and how many consumers it has."""

    messages: int
    consumers: int


class Publisher:
    """Publishes, and asks, on connections of a pool. Threads share it."""

    def __init__(self, hosts: Sequence[Any]) -> None:
        self._pool = Pool(hosts)

    def deliver(self, parcels: Sequence[Parcel], deadline: Deadline) -> Outcome:
        """Publish parcels as `publish` does, on another connection if the one there was is gone.

        A parcel is published again only if it was not taken.
        """
        outcome = Outcome()
        for _ in range(_TRIES):
            accepted = outcome.accepted
            left = [parcel for parcel in parcels if parcel.number not in accepted] if accepted else parcels
            try:
                with self._pool.connection(deadline) as connection:
                    publish(connection, left, outcome, deadline)
                break
            except FAILURES as exc:
                outcome.problem = str(exc)
                if outcome.unsure or not _may_help(exc) or deadline.passed:
                    break
        return outcome

    def ask(self, act: Callable[[Connection, Deadline], T], timeout_s: float) -> T:
        """Return what an act on a connection returns; it is done again if the connection there was is gone.

        Raises:
            BrokerUnavailable: The server didn't answer, or refused.
        """
        deadline = Deadline(timeout_s)
        tries = _TRIES
        while True:
            tries -= 1
            try:
                with self._pool.connection(deadline) as connection:
                    return act(connection, deadline)
            except FAILURES as exc:
                again = isinstance(exc, ConnectionLostError) and exc.was_open
                if not again or tries == 0 or deadline.passed:
                    raise BrokerUnavailable(str(exc)) from exc

    def close(self) -> None:
        """Close the connections; the next use makes others."""
        self._pool.close()


def _may_help(failure: Exception) -> bool:
    """Return whether trying again at once may help."""
    if isinstance(failure, ChannelClosedError):
        return failure.code == _NOT_FOUND  # an exchange was deleted; it is declared again
    return isinstance(failure, ConnectionLostError) and failure.was_open


def publish(connection: Connection, parcels: Sequence[Parcel], outcome: Outcome, deadline: Deadline) -> None:
    """Publish parcels in order, pipelined; make the places that are missing, and publish again what they miss.

    Args:
        connection: Is used by nobody else meanwhile.
        parcels: What is published.
        outcome: Is told what became of each, whatever is raised.
        deadline: When the last confirm must be there.

    Raises:
        ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        DeclarationRefusedError: A place can't be made.
    """
    outcome.problem = None
    outcome.refused.clear()
    todo = parcels
    for _ in range(_ROUNDS):
        connection.wait_unblocked(deadline)
        channel = main_channel(connection, deadline)
        for place in dict.fromkeys(parcel.place for parcel in todo if parcel.place.made_first):
            make(connection, place, deadline)
        outcome.returned.clear()
        channel.publish(todo, outcome, deadline)
        if outcome.refused:
            refusing = next(parcel.place.name for parcel in parcels if parcel.number in outcome.refused)
            outcome.problem = f"RabbitMQ at {connection.where} refused it: is queue {refusing!r} full?"
        if not outcome.returned:
            return
        todo = [parcel for parcel in todo if parcel.number in outcome.returned]
        for place in dict.fromkeys(parcel.place for parcel in todo):
            connection.declared.difference_update(place.with_all_below())
            make(connection, place, deadline)
    outcome.problem = f"RabbitMQ at {connection.where} does not find {todo[0].place.name!r}, just declared"


def main_channel(connection: Connection, deadline: Deadline) -> Channel:
    """Return the channel on which this connection publishes, declares and looks; opened again if it was closed."""
    channel: Channel | None = connection.channel
    if channel is None or channel.closed is not None:
        connection.declared.clear()
        channel = connection.channel = Channel(connection)
        channel.open(deadline, spec.Confirm.Select())
    return channel


def make(connection: Connection, place: Place, deadline: Deadline) -> None:
    """Declare a place, and what is below it, unless that is done on this connection.

    Raises:
        DeclarationRefusedError: There is another of the name, or it is not allowed.
        ConnectionLostError, TimedOutError: As for `Channel.call`.
    """
    channel = main_channel(connection, deadline)
    missing = [each for each in place.with_all_below() if each not in connection.declared]
    calls = [call for each in missing for call in each.calls(connection.server_version)]
    try:
        channel.call_all(calls, deadline)
    except ChannelClosedError as exc:
        raise DeclarationRefusedError(_declaration_problem(calls[len(exc.replies)], exc)) from exc
    connection.declared.update(missing)


def look(
    connection: Connection, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False
) -> dict[str, QueueState]:
    """Return the states of those of these queues that exist, or of those before the first that doesn't.

    Each that is missing is an error in the server's log.
    """
    states: dict[str, QueueState] = {}
    left = list(queues)
    while left:
        try:
            replies = main_channel(connection, deadline).call_all([existing_queue(name) for name in left], deadline)
        except ChannelClosedError as exc:  # one is missing; those before it were answered
            if exc.code != _NOT_FOUND:
                raise
            replies = exc.replies
            left = left[: len(replies) + 1] if until_missing else left
        for name, reply in zip(left, replies, strict=False):
            states[name] = QueueState(reply.message_count, reply.consumer_count)
        left = left[len(replies) + 1 :]
    return states


def _declaration_problem(call: Any, refusal: ChannelClosedError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    is_other = refusal.code == _PRECONDITION_FAILED
    remedy = "; if it may go, delete it and it will be made again" if is_other else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"
