"""A channel: calls, deliveries, and publications that are confirmed or part of a transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from struct import Struct
from typing import Any, Final, NamedTuple

import pika
from pika import spec

from taskbridge.brokers.rabbitmq.connection import (
    CONTENT_SIZE,
    OVERHEAD,
    Connection,
    ConnectionLostError,
    method_bytes,
    method_of,
)
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.publication import EncodedPublication

_HEAD: Final = Struct(">BHI")  # kind, channel, size
_CONTENT_HEAD: Final = Struct(">BHIHHQ")  # kind, channel, size, class, weight, size of the body
_END: Final = bytes([spec.FRAME_END])
_DELIVER: Final = spec.Basic.Deliver.INDEX.to_bytes(4, "big")
_WITH_CONTENT: Final = frozenset(
    {_DELIVER, spec.Basic.GetOk.INDEX.to_bytes(4, "big"), spec.Basic.Return.INDEX.to_bytes(4, "big")}
)
_TAG: Final = Struct(">QB")  # delivery tag, bits of which the lowest says whether it was delivered before

_ACK: Final = Struct(">BHIHHQBB")  # kind, channel, size, class, method, delivery tag, whether all up to it, end
_ACK_SIZE: Final = 13
_ACK_INDEX: Final = divmod(spec.Basic.Ack.INDEX, 1 << 16)

_CHUNK_BYTES: Final = 1 << 18


class ChannelClosedError(Exception):
    """The server closed the channel; `replies` are those to the calls before the one that it refused."""

    def __init__(self, code: int, text: str, replies: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.replies: list[Any] = list(replies)


class Delivery(NamedTuple):
    """A message that was delivered.

    Attributes:
        tag: The delivery tag, by which it is acknowledged.
        body: The body.
        redelivered: Whether it was delivered before and not acknowledged.
    """

    tag: int
    body: bytes
    redelivered: bool = False


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

    def answer(self, number: int, *, taken: bool) -> None:
        """Record the server's answer to a publication; one that was returned is confirmed as well."""
        self.open.discard(number)
        if not taken:
            self.refused.add(number)
        elif number not in self.returned:
            self.accepted.add(number)


class Channel:
    """A channel. One thread at a time calls it; any thread may acknowledge.

    Args:
        connection: The connection on which it is opened.
        receive: Called with each delivery, in the thread that reads; it must not wait. By default deliveries are kept.

    Attributes:
        closed: Why the channel can no longer be used; None while it can.
        deliveries: The deliveries that are kept, the first first.
    """

    def __init__(self, connection: Connection, receive: Callable[[Delivery], None] | None = None) -> None:
        self.connection = connection
        self.closed: Exception | None = None
        self.deliveries: deque[Delivery] = deque()
        self._receive = receive or self.deliveries.append
        self._is_closing = False  # RabbitMQ closes the connection if a channel is closed twice
        self._replies: list[Any] = []
        self._asked = 0
        self._content: bytes | None = None  # the method whose content arrives
        self._header = b""
        self._parts: list[bytes] = []
        self._lacks = 0  # how many bytes of the body have not come yet
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Outcome, EncodedPublication]] = {}
        self._returned: set[str | None] = set()
        self._number = connection.attach(self)

    def open(self, deadline: Deadline, *more: Any) -> None:
        """Open the channel. Call this once, before anything else.

        Args:
            deadline: When the replies must be there.
            more: Further methods to call, such as `Confirm.Select`, which `publish` needs, or `Tx.Select` for `commit`.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: It could not be opened.
        """
        self.call_all([spec.Channel.Open(), *more], deadline)

    def call(self, method: Any, deadline: Deadline) -> Any:
        """Return the reply to a method.

        Raises:
            ChannelClosedError: The server refused.
            ConnectionLostError: The connection is gone.
            TimedOutError: There was no reply in time; the channel can no longer be used.
        """
        return self.call_all([method], deadline)[0]

    def call_all(self, methods: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return the replies to methods that are sent together; raises as `call`."""
        self.check()
        self._replies, self._asked = [], len(methods)
        try:
            self.connection.write(b"".join(method_bytes(self._number, method) for method in methods), deadline)
            self.connection.wait(self._is_answered, deadline, f"RabbitMQ at {self.connection.where} does not answer")
        except BaseException as exc:  # a late reply would be taken for the next call's
            self._shut(TimedOutError(f"a call was not answered: {exc}"))
            raise
        if len(self._replies) < len(methods):
            self.check()
        return self._replies

    def _is_answered(self) -> bool:
        return len(self._replies) >= self._asked or self.closed is not None

    def check(self) -> None:
        """Raise `ConnectionLostError`, `ChannelClosedError` or `TimedOutError` if the channel is closed."""
        if isinstance(self.closed, ChannelClosedError):
            raise ChannelClosedError(self.closed.code, str(self.closed), self._replies)
        if isinstance(self.closed, ConnectionLostError):
            raise ConnectionLostError(str(self.closed), was_open=self.closed.was_open)
        if self.closed is not None:
            raise type(self.closed)(str(self.closed))

    def close(self, deadline: Deadline) -> None:
        """Close the channel; unacknowledged deliveries return to their places in the queue."""
        if self.closed is None:
            self._is_closing = True
            self.call(spec.Channel.Close(200, "", 0, 0), deadline)
            self._shut(ConnectionLostError("the channel was closed"))

    def abandon(self) -> None:
        """Tell the server to close the channel, without waiting; unacknowledged deliveries return to their queue.

        A channel may be closed here and still open on the server: if a call timed out, or its queue was deleted.
        """
        if not self._is_closing:
            self._is_closing = True
            self.connection.send(method_bytes(self._number, spec.Channel.Close(200, "", 0, 0)))

    # Deliveries

    def consume(self, queue: str, *, prefetch: int, exclusive: bool, deadline: Deadline) -> None:
        """Consume a queue.

        Args:
            queue: Its name.
            prefetch: How many deliveries may be unacknowledged at a time; 0 is any number.
            exclusive: Whether nobody else may consume it.
            deadline: When the replies must be there.

        Raises:
            ChannelClosedError: There is no such queue, or another client consumes it exclusively.
            ConnectionLostError, TimedOutError: As for `call`.
        """
        qos, consume = spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.Consume(queue=queue, exclusive=exclusive)
        self.call_all([qos, consume], deadline)

    def cancel(self, consumer_tag: str, deadline: Deadline | None) -> None:
        """End a consumer; without a deadline it does not wait, and messages that are on their way still arrive.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: As for `call`.
        """
        if deadline is not None:
            self.call(spec.Basic.Cancel(consumer_tag=consumer_tag), deadline)
        else:
            self.connection.send(method_bytes(self._number, spec.Basic.Cancel(consumer_tag=consumer_tag, nowait=True)))

    def ack(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Acknowledge deliveries, without waiting; with `multiple` all earlier ones as well."""
        number, flag = self._number, int(multiple)
        # A worker does this for each message, and pika takes six times as long to encode it.
        acks = [_ACK.pack(spec.FRAME_METHOD, number, _ACK_SIZE, *_ACK_INDEX, tag, flag, spec.FRAME_END) for tag in tags]
        if acks:
            self.connection.send(b"".join(acks))

    def reject(self, tags: Iterable[int], *, requeue: bool) -> None:
        """Return deliveries to their queue, or reject them, without waiting."""
        for tag in tags:
            self.connection.send(method_bytes(self._number, spec.Basic.Nack(tag, requeue=requeue)))

    # Publications

    def publish(self, publications: Sequence[EncodedPublication], outcome: Outcome, deadline: Deadline) -> None:
        """Publish messages in order, and return when all are confirmed.

        Args:
            publications: What is published.
            outcome: Records what became of each, whatever is raised.
            deadline: When the last confirm must be there.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        """
        try:
            for chunk in _chunks(publications):
                data = self._frames(chunk)
                self.check()
                for publication in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = outcome, publication
                    outcome.open.add(publication.number)
                self.connection.write(data, deadline)
            problem = f"RabbitMQ at {self.connection.where} sent no confirm in {deadline.timeout_s:g} s"
            self.connection.wait(lambda: not outcome.open or self.closed is not None, deadline, problem)
            if outcome.open:
                self.check()
        finally:
            # If the server closed the channel because of the only open publication, it has not taken that one.
            if not (isinstance(self.closed, ChannelClosedError) and len(outcome.open) == 1):
                outcome.unsure |= outcome.open - outcome.returned
            outcome.open = set()

    def commit(
        self, publications: Sequence[EncodedPublication], tags: Iterable[int], deadline: Deadline
    ) -> list[EncodedPublication]:
        """Publish messages and acknowledge deliveries in one transaction; the channel was opened with `Tx.Select`.

        Returns:
            The publications that were routed to no queue.

        Raises:
            ChannelClosedError, ConnectionLostError, TimedOutError: As for `call`; it may have been committed or not.
        """
        self._returned.clear()
        for chunk in _chunks(publications):
            self.connection.write(self._frames(chunk), deadline)
        self.ack(tags)
        self.call(spec.Tx.Commit(), deadline)
        return [publication for publication in publications if publication.token in self._returned]

    def _frames(self, publications: Sequence[EncodedPublication]) -> bytes:
        """Return the frames of publications, each mandatory."""
        number, room = self._number, self.connection.frame_max - OVERHEAD
        pieces: list[bytes] = []
        for _, destination, key, _, properties, body in publications:
            size = CONTENT_SIZE + len(properties)
            head = _CONTENT_HEAD.pack(spec.FRAME_HEADER, number, size, spec.Basic.INDEX, 0, len(body))
            pieces += (_publish_bytes(number, destination.exchange, key), head, properties, _END)
            for start in range(0, len(body), room):
                part = body[start : start + room]
                pieces += (_HEAD.pack(spec.FRAME_BODY, number, len(part)), part, _END)
        return b"".join(pieces)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        if kind == spec.FRAME_METHOD:
            if payload[:4] in _WITH_CONTENT:
                self._content = payload
            else:
                self._on_method(method_of(payload))
        elif self._content is not None:
            if kind == spec.FRAME_HEADER:
                self._header, self._parts, self._lacks = payload, [], int.from_bytes(payload[4:12], "big")
            else:
                self._parts.append(payload)
                self._lacks -= len(payload)
            if self._lacks <= 0:
                method, self._content = self._content, None
                self._on_content(method, b"".join(self._parts))

    def lose(self, problem: str) -> None:
        """Learn that the connection is gone."""
        self._shut(ConnectionLostError(problem, was_open=True))

    def _shut(self, reason: Exception) -> None:
        if self.closed is None:
            self.closed = reason

    def _on_method(self, method: Any) -> None:
        if isinstance(method, spec.Basic.Ack):
            self._on_confirm(method, taken=True)
        elif isinstance(method, spec.Basic.Nack):
            self._on_confirm(method, taken=False)
        elif isinstance(method, spec.Channel.Close):
            self._is_closing = True
            self.connection.send(method_bytes(self._number, spec.Channel.CloseOk()))
            self._shut(ChannelClosedError(method.reply_code, method.reply_text))
            self.connection.detach(self._number)
        elif isinstance(method, spec.Basic.Cancel):  # its queue was deleted
            self._shut(ChannelClosedError(404, f"the queue of consumer {method.consumer_tag} is gone"))
        elif isinstance(method, spec.Channel.Flow):
            self.connection.send(method_bytes(self._number, spec.Channel.FlowOk(method.active)))
        else:
            if isinstance(method, spec.Channel.CloseOk):
                self.connection.detach(self._number)
            self._replies.append(method)

    def _on_confirm(self, method: Any, *, taken: bool) -> None:
        last = method.delivery_tag
        numbers = list(takewhile(lambda each: each <= last, self._unconfirmed)) if method.multiple else [last]
        for number in numbers:
            outcome, publication = self._unconfirmed.pop(number)
            outcome.answer(publication.number, taken=taken)

    def _on_content(self, payload: bytes, body: bytes) -> None:
        if payload.startswith(_DELIVER):
            # Only these two fields are needed: pika takes 12 us to decode all, and as much for the properties.
            tag, flags = _TAG.unpack_from(payload, 5 + payload[4])  # after the consumer's tag
            self._receive(Delivery(tag, body, bool(flags & 1)))
            return
        method = method_of(payload)
        if isinstance(method, spec.Basic.Return):
            self._on_return(method)
        else:
            self._replies.append(Delivery(method.delivery_tag, body, bool(method.redelivered)))

    def _on_return(self, method: Any) -> None:
        """Record a message that was routed to no queue; its confirm, or the reply to the commit, comes after it."""
        properties = pika.BasicProperties()
        properties.decode(self._header[CONTENT_SIZE:])
        self._returned.add(properties.message_id)
        way = (method.exchange, method.routing_key)
        there = [each for each in self._unconfirmed.values() if (each[1].destination.exchange, each[1].key) == way]
        same = [each for each in there if each[1].token == properties.message_id]
        for outcome, publication in same or there:
            outcome.returned.add(publication.number)


@lru_cache(maxsize=512)
def _publish_bytes(channel: int, exchange: str, key: str) -> bytes:
    return method_bytes(channel, spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))


def _chunks(publications: Sequence[EncodedPublication]) -> Iterator[Sequence[EncodedPublication]]:
    """Yield publications in chunks of about 256 KiB."""
    chunk: list[EncodedPublication] = []
    size = 0
    for publication in publications:
        if size > 0 and size + len(publication.body) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(publication)
        size += len(publication.body) + len(publication.properties) + 100
    yield chunk
