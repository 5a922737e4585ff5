"""What is done on a connection: calls, deliveries, and publications that are confirmed or part of a transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, TimedOutError
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.frames import (
    Assembler,
    Delivery,
    Returned,
    ack_bytes,
    method_bytes,
    publication_pieces,
)
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication
from taskbridge.brokers.rabbitmq.topology import existing_queue

NOT_FOUND: Final = 404
"""AMQP's reply code: a queue or an exchange was deleted, so it is declared again."""

_CHUNK_BYTES: Final = 1 << 18

_ROUNDS: Final = 3
"""How often a missing queue is declared before the publication fails."""


@dataclass(slots=True)
class Outcome:
    """What became of publications that were sent together, by their numbers. One in none of these sets was not taken.

    Attributes:
        accepted: Confirmed by the server.
        refused: Rejected by their queue (`basic.nack`).
        returned: Routed to no queue.
        unsure: Sent, and not answered when the wait ended: the server may have taken them.
        open: Sent, and still waited for.
        problem: Why not all were accepted.
    """

    accepted: set[int] = field(default_factory=set[int])
    refused: set[int] = field(default_factory=set[int])
    returned: set[int] = field(default_factory=set[int])
    unsure: set[int] = field(default_factory=set[int])
    open: set[int] = field(default_factory=set[int])
    problem: str | None = None


class Channel:
    """A channel. One thread at a time calls it; any thread may acknowledge.

    What takes a deadline raises `ClientError`: the server refused and closed the channel (`code`), the connection is
    gone, or there was no answer in time (`TimedOutError`). After that the channel can't be used any more.

    Args:
        connection: The connection on which it is opened.
        receive: Called with each delivery, in the thread that reads; it must not wait. By default deliveries are kept.

    Attributes:
        closed: Why the channel can no longer be used; None while it can.
        deliveries: The deliveries that are kept, the first first.
        replies: The replies to the last calls; if one was refused, to those before it.
    """

    def __init__(self, connection: Connection, receive: Callable[[Delivery], None] | None = None) -> None:
        self.connection = connection
        self.closed: ClientError | None = None
        self.deliveries: deque[Delivery] = deque()
        self.replies: list[Any] = []
        self._receive = receive or self.deliveries.append
        self._is_closing = False  # RabbitMQ closes the connection if a channel is closed twice
        self._assembler = Assembler()
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Outcome, int]] = {}
        self._returned: set[Returned] = set()
        self._number = connection.attach(self)

    def open(self, deadline: Deadline, *more: Any) -> None:
        """Open the channel, and call more; do this once, before anything else.

        `publish` needs a call of `Confirm.Select`, and `commit` one of `Tx.Select`.
        """
        self.call_all([spec.Channel.Open(), *more], deadline)

    def call(self, method: Any, deadline: Deadline) -> Any:
        """Return the reply to a method."""
        return self.call_all([method], deadline)[0]

    def call_all(self, methods: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return the replies to methods that are sent together."""
        self.check()
        self.replies, asked = [], len(methods)
        try:
            self.connection.write(b"".join(method_bytes(self._number, method) for method in methods), deadline)
            self.connection.wait(lambda: len(self.replies) >= asked or self.closed is not None, deadline)
        except BaseException as exc:  # a late reply would be taken for the next call's
            self.shut(TimedOutError(f"a call was not answered: {exc}"))
            raise
        if len(self.replies) < asked:
            self.check()
        return self.replies

    def check(self) -> None:
        """Raise the `ClientError` of which the channel was closed, if it was."""
        if self.closed is not None:
            raise copy(self.closed)  # what is raised twice keeps the traces of both

    def close(self, deadline: Deadline) -> None:
        """Close the channel; unacknowledged deliveries return to their places in the queue."""
        if self.closed is None:
            self._is_closing = True
            self.call(spec.Channel.Close(200, "", 0, 0), deadline)
            self.shut(ClientError("the channel was closed"))

    def abandon(self) -> None:
        """Tell the server to close the channel, without waiting; unacknowledged deliveries return to their queue.

        A channel may be closed here and still open on the server: if a call timed out, or its queue was deleted.
        """
        if not self._is_closing:
            self._is_closing = True
            self.tell(spec.Channel.Close(200, "", 0, 0))

    def tell(self, method: Any) -> None:
        """Send a method that has no reply, or whose reply nobody waits for."""
        self.connection.send(method_bytes(self._number, method))

    # Deliveries

    def ack(self, tags: Iterable[int]) -> None:
        """Acknowledge deliveries, without waiting."""
        acks = ack_bytes(self._number, tags)
        if acks:
            self.connection.send(acks)

    def reject(self, tags: Iterable[int], *, requeue: bool) -> None:
        """Return deliveries to their queue, or reject them, without waiting."""
        for tag in tags:
            self.tell(spec.Basic.Nack(tag, requeue=requeue))

    # Publications

    def publish(self, publications: Mapping[int, EncodedPublication], outcome: Outcome, deadline: Deadline) -> None:
        """Publish messages in order, and return when all are confirmed.

        Args:
            publications: What is published, by number.
            outcome: Records what became of each, whatever is raised.
            deadline: When the last confirm must be there.
        """
        self._returned.clear()
        try:
            for chunk in _chunks(publications.items()):
                data = self._frames(publication for _, publication in chunk)
                self.check()
                for number, _ in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = outcome, number
                    outcome.open.add(number)
                self.connection.write(data, deadline)
            problem = f"RabbitMQ at {self.connection.where} sent no confirm in {deadline.timeout_s:g} s"
            self.connection.wait(lambda: not outcome.open or self.closed is not None, deadline, problem)
            if outcome.open:
                self.check()
        finally:
            if self._returned:  # what was returned is confirmed as well
                outcome.returned = {number for number, each in publications.items() if each.way in self._returned}
                outcome.accepted -= outcome.returned
            # If the server closed the channel because of the only open publication, it has not taken that one.
            if not (self.closed is not None and self.closed.code and len(outcome.open) == 1):
                outcome.unsure |= outcome.open - outcome.returned
            outcome.open = set()

    def commit(
        self, publications: Sequence[EncodedPublication], tags: Iterable[int], deadline: Deadline
    ) -> list[EncodedPublication]:
        """Publish messages and acknowledge deliveries in one transaction; the channel was opened with `Tx.Select`.

        If it raises, the transaction may have been committed or not.

        Returns:
            The publications that were routed to no queue.
        """
        self._returned.clear()
        for chunk in _chunks(enumerate(publications)):
            self.connection.write(self._frames(publication for _, publication in chunk), deadline)
        self.ack(tags)
        self.call(spec.Tx.Commit(), deadline)
        return [publication for publication in publications if publication.way in self._returned]

    def _frames(self, publications: Iterable[EncodedPublication]) -> bytes:
        number, frame_max = self._number, self.connection.frame_max
        pieces: list[bytes] = []
        for destination, key, _, properties, body in publications:
            pieces += publication_pieces(number, destination.exchange, key, properties, body, frame_max=frame_max)
        return b"".join(pieces)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        made = self._assembler.made_of(kind, payload)
        match made:
            case None:
                pass
            case Delivery():
                self._receive(made)
            case spec.Basic.Ack():
                self._on_confirm(made, taken=True)
            case spec.Basic.Nack():
                self._on_confirm(made, taken=False)
            case Returned():
                self._returned.add(made)  # its confirm, or the reply to the commit, comes after it
            case spec.Channel.Close():
                self._is_closing = True
                self.tell(spec.Channel.CloseOk())
                code = made.reply_code
                self.shut(ClientError(made.reply_text, code=code, again=code == NOT_FOUND))
                self.connection.detach(self._number)
            case spec.Basic.Cancel():  # its queue was deleted
                self.shut(ClientError(f"the queue of consumer {made.consumer_tag} is gone", code=NOT_FOUND))
            case spec.Channel.Flow():
                self.tell(spec.Channel.FlowOk(made.active))
            case _:
                if isinstance(made, spec.Channel.CloseOk):
                    self.connection.detach(self._number)
                self.replies.append(made)

    def shut(self, reason: ClientError) -> None:
        """Let the channel be used no more, for this reason."""
        if self.closed is None:
            self.closed = reason

    def _on_confirm(self, method: Any, *, taken: bool) -> None:
        last = method.delivery_tag
        for each in list(takewhile(lambda sent: sent <= last, self._unconfirmed)) if method.multiple else [last]:
            outcome, number = self._unconfirmed.pop(each)
            outcome.open.discard(number)
            (outcome.accepted if taken else outcome.refused).add(number)


class Session(Connection):
    """A connection with one channel, which one thread at a time uses; its methods raise as those of a `Channel`.

    Attributes:
        used_at: When it was last used, by the monotonic clock.
    """

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        super().__init__(parameters, heartbeat_s=heartbeat_s)
        self.used_at: float = 0.0
        self._channel: Channel | None = None
        self._declared: set[Destination] = set()

    def channel(self, deadline: Deadline) -> Channel:
        """Return the channel; it is opened again if it was closed."""
        channel = self._channel
        if channel is None or channel.closed is not None:
            self._declared.clear()
            channel = self._channel = Channel(self)
            channel.open(deadline, spec.Confirm.Select())
        return channel

    def publish(self, publications: Mapping[int, EncodedPublication], outcome: Outcome, deadline: Deadline) -> None:
        """Publish messages as `Channel.publish`; declare missing destinations, and publish again what was returned."""
        outcome.problem = None
        outcome.refused.clear()
        todo = publications
        for _ in range(_ROUNDS):
            self.wait_unblocked(deadline)
            channel = self.channel(deadline)
            for destination in dict.fromkeys(each.destination for each in todo.values() if each.destination.exchange):
                self.declare(destination, deadline)
            outcome.returned = set()
            channel.publish(todo, outcome, deadline)
            if outcome.refused:
                name = publications[min(outcome.refused)].destination.name
                outcome.problem = f"RabbitMQ at {self.where} refused it: is queue {name!r} full?"
            if not outcome.returned:
                return
            todo = {number: publications[number] for number in sorted(outcome.returned)}
            destinations = dict.fromkeys(each.destination for each in todo.values())
            self._declared.difference_update(destinations)
            for destination in destinations:
                self.declare(destination, deadline)
        name = publications[min(outcome.returned)].destination.name
        outcome.problem = f"RabbitMQ at {self.where} does not find {name!r}, just declared"

    def declare(self, destination: Destination, deadline: Deadline) -> None:
        """Declare a destination and what it needs, unless this has been done on this channel.

        Raises:
            ClientError: It exists with other arguments, or is not permitted; or as for a `Channel`.
        """
        channel = self.channel(deadline)
        if destination in self._declared:
            return
        calls = list(destination.calls())
        try:
            channel.call_all(calls, deadline)
        except ClientError as exc:
            if not exc.code:
                raise
            raise ClientError(_declaration_problem(calls[len(channel.replies)], exc)) from exc
        self._declared.add(destination)

    def look(self, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False) -> dict[str, Any]:
        """Return what RabbitMQ says of the queues that exist: `message_count` (ready ones) and `consumer_count`.

        The server logs an error for each that is missing. `until_missing`: look only at those before the first.
        """
        found: dict[str, Any] = {}
        left = list(queues)
        while left:
            channel = self.channel(deadline)
            try:
                channel.call_all([existing_queue(name) for name in left], deadline)
            except ClientError as exc:  # one is missing; those before it were answered
                if exc.code != NOT_FOUND:
                    raise
            number = len(channel.replies)
            found.update(zip(left, channel.replies, strict=False))
            left = [] if until_missing else left[number + 1 :]
        return found


def _declaration_problem(call: Any, refusal: ClientError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    is_other = "inequivalent" in str(refusal)  # rabbit_misc:assert_args_equivalence
    remedy = "; if it may go, delete it and it will be made again" if is_other else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"


def _chunks(
    publications: Iterable[tuple[int, EncodedPublication]],
) -> Iterator[Sequence[tuple[int, EncodedPublication]]]:
    """Yield numbered publications in chunks of about 256 KiB."""
    chunk: list[tuple[int, EncodedPublication]] = []
    size = 0
    for number, publication in publications:
        if size > 0 and size + len(publication.body) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((number, publication))
        size += len(publication.body) + len(publication.properties) + 100
    yield chunk
