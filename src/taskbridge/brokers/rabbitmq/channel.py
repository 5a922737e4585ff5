"""Channels: calls that are answered, deliveries, and publications that are confirmed or in a transaction."""

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
from taskbridge.brokers.rabbitmq.publication import Parcel

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
        tag: What it is acknowledged by.
        body: Its bytes.
        redelivered: Whether it was delivered before, to whoever did not acknowledge it.
    """

    tag: int
    body: bytes
    redelivered: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of parcels; those that are in none of these sets were not taken.

    Attributes:
        accepted: The numbers of those that the server has confirmed.
        refused: Of those that their queue did not take.
        returned: Of those that found no queue.
        unsure: Of those that were sent, and never answered.
        open: Of those that were sent, and are not answered yet.
        problem: Why not all were accepted.
    """

    accepted: set[int] = field(default_factory=set[int])
    refused: set[int] = field(default_factory=set[int])
    returned: set[int] = field(default_factory=set[int])
    unsure: set[int] = field(default_factory=set[int])
    open: set[int] = field(default_factory=set[int])
    problem: str | None = None

    def answer(self, number: int, *, taken: bool) -> None:
        """Note the server's answer to a publication; one that was returned is confirmed, too."""
        self.open.discard(number)
        if not taken:
            self.refused.add(number)
        elif number not in self.returned:
            self.accepted.add(number)


class Channel:
    """A channel; one thread at a time calls it, and any thread may acknowledge.

    Args:
        connection: Where it is opened.
        receive: Is called with each delivery by whoever reads, and must not wait; by default they are kept.

    Attributes:
        closed: Why the channel can't be used any longer; None if it can.
        deliveries: What arrived, and has not been looked at, if it is kept.
    """

    def __init__(self, connection: Connection, receive: Callable[[Delivery], None] | None = None) -> None:
        self.connection = connection
        self.closed: Exception | None = None
        self.deliveries: deque[Delivery] = deque()
        self._receive = receive or self.deliveries.append
        self._is_closing = False  # soon: closed a second time, RabbitMQ would close the connection
        self._replies: list[Any] = []
        self._asked = 0
        self._content: bytes | None = None  # the method whose content arrives
        self._header = b""
        self._parts: list[bytes] = []
        self._lacks = 0  # how many bytes of the body have not come yet
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Outcome, Parcel]] = {}
        self._returned: set[str | None] = set()
        self._number = connection.attach(self)

    def open(self, deadline: Deadline, *more: Any) -> None:
        """Open the channel; to be called once, first.

        Args:
            deadline: For the answers.
            more: Methods that are called with it, such as `Confirm.Select`, without which nothing can be published.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: It could not be opened.
        """
        self.call_all([spec.Channel.Open(), *more], deadline)

    def call(self, method: Any, deadline: Deadline) -> Any:
        """Return the reply to a method.

        Raises:
            ChannelClosedError: The server refused.
            ConnectionLostError: The connection is gone.
            TimedOutError: No reply came; the channel can't be used any longer.
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
        """Raise why the channel is closed, if it is: `ConnectionLostError`, `ChannelClosedError` or `TimedOutError`."""
        if isinstance(self.closed, ChannelClosedError):
            raise ChannelClosedError(self.closed.code, str(self.closed), self._replies)
        if isinstance(self.closed, ConnectionLostError):
            raise ConnectionLostError(str(self.closed), was_open=self.closed.was_open)
        if self.closed is not None:
            raise type(self.closed)(str(self.closed))

    def close(self, deadline: Deadline) -> None:
        """Close the channel; what it was delivered and has not acknowledged goes back to its place in the queue."""
        if self.closed is None:
            self._is_closing = True
            self.call(spec.Channel.Close(200, "", 0, 0), deadline)
            self._shut(ConnectionLostError("the channel was closed"))

    def abandon(self) -> None:
        """Have the server close the channel, without waiting; what is not acknowledged goes back to its queue.

        It may count as closed here, and be open there: if a call was not answered, or its queue was deleted.
        """
        if not self._is_closing:
            self._is_closing = True
            self.connection.send(method_bytes(self._number, spec.Channel.Close(200, "", 0, 0)))

    # Deliveries

    def consume(self, queue: str, *, prefetch: int, exclusive: bool, deadline: Deadline) -> None:
        """Let the server deliver a queue's messages, so many before they are acknowledged (0: any number).

        Raises:
            ChannelClosedError: The server refused: there is no such queue, or somebody else consumes it exclusively.
            ConnectionLostError, TimedOutError: As for `call`.
        """
        qos, consume = spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.Consume(queue=queue, exclusive=exclusive)
        self.call_all([qos, consume], deadline)

    def cancel(self, consumer_tag: str, deadline: Deadline | None) -> None:
        """Let nothing more be delivered; without a deadline, what is on its way still is.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: As for `call`.
        """
        if deadline is not None:
            self.call(spec.Basic.Cancel(consumer_tag=consumer_tag), deadline)
        else:
            self.connection.send(method_bytes(self._number, spec.Basic.Cancel(consumer_tag=consumer_tag, nowait=True)))

    def ack(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Acknowledge these deliveries, or all up to each, without waiting."""
        number, flag = self._number, int(multiple)
        # In a sixth of pika's time: a worker does so for each message.
        acks = [_ACK.pack(spec.FRAME_METHOD, number, _ACK_SIZE, *_ACK_INDEX, tag, flag, spec.FRAME_END) for tag in tags]
        if acks:
            self.connection.send(b"".join(acks))

    def reject(self, tags: Iterable[int], *, requeue: bool) -> None:
        """Return deliveries to their queue, or reject them, without waiting."""
        for tag in tags:
            self.connection.send(method_bytes(self._number, spec.Basic.Nack(tag, requeue=requeue)))

    # Publications

    def publish(self, parcels: Sequence[Parcel], outcome: Outcome, deadline: Deadline) -> None:
        """Publish parcels, and return when all are confirmed; `outcome` tells what became of each, whatever is raised.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        """
        try:
            for chunk in _chunks(parcels):
                data = self._frames(chunk)
                self.check()
                for parcel in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = outcome, parcel
                    outcome.open.add(parcel.number)
                self.connection.write(data, deadline)
            problem = f"RabbitMQ at {self.connection.where} sent no confirm in {deadline.timeout_s:g} s"
            self.connection.wait(lambda: not outcome.open or self.closed is not None, deadline, problem)
            if outcome.open:
                self.check()
        finally:
            # Only what made the server close the channel is known not to be taken; what came before it may be.
            if not (isinstance(self.closed, ChannelClosedError) and len(outcome.open) == 1):
                outcome.unsure |= outcome.open - outcome.returned
            outcome.open = set()

    def commit(self, parcels: Sequence[Parcel], tags: Iterable[int], deadline: Deadline) -> list[Parcel]:
        """Publish parcels and acknowledge deliveries, all or none of it; the channel was opened with `Tx.Select`.

        Returns:
            The parcels that found no queue.

        Raises:
            ChannelClosedError, ConnectionLostError, TimedOutError: As for `call`; it may have been done or not.
        """
        self._returned.clear()
        for chunk in _chunks(parcels):
            self.connection.write(self._frames(chunk), deadline)
        self.ack(tags)
        self.call(spec.Tx.Commit(), deadline)
        return [parcel for parcel in parcels if parcel.token in self._returned]

    def _frames(self, parcels: Sequence[Parcel]) -> bytes:
        """Return the frames by which parcels are published, each mandatory."""
        number, room = self._number, self.connection.frame_max - OVERHEAD
        pieces: list[bytes] = []
        for _, place, key, _, properties, body in parcels:
            size = CONTENT_SIZE + len(properties)
            head = _CONTENT_HEAD.pack(spec.FRAME_HEADER, number, size, spec.Basic.INDEX, 0, len(body))
            pieces += (_publish_bytes(number, place.exchange, key), head, properties, _END)
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
            outcome, parcel = self._unconfirmed.pop(number)
            outcome.answer(parcel.number, taken=taken)

    def _on_content(self, payload: bytes, body: bytes) -> None:
        if payload.startswith(_DELIVER):
            # What is needed of it is read here: pika takes 12 us for all of it, and as much for the properties.
            tag, flags = _TAG.unpack_from(payload, 5 + payload[4])  # after the consumer's tag
            self._receive(Delivery(tag, body, bool(flags & 1)))
            return
        method = method_of(payload)
        if isinstance(method, spec.Basic.Return):
            self._on_return(method)
        else:
            self._replies.append(Delivery(method.delivery_tag, body, bool(method.redelivered)))

    def _on_return(self, method: Any) -> None:
        """Note what found no queue; its confirm, or the answer to the commit, comes after it."""
        properties = pika.BasicProperties()
        properties.decode(self._header[CONTENT_SIZE:])
        self._returned.add(properties.message_id)
        place = (method.exchange, method.routing_key)
        there = [each for each in self._unconfirmed.values() if (each[1].place.exchange, each[1].key) == place]
        same = [each for each in there if each[1].token == properties.message_id]
        for outcome, parcel in same or there:
            outcome.returned.add(parcel.number)


@lru_cache(maxsize=512)
def _publish_bytes(channel: int, exchange: str, key: str) -> bytes:
    return method_bytes(channel, spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))


def _chunks(parcels: Sequence[Parcel]) -> Iterator[Sequence[Parcel]]:
    """Cut parcels into portions of about 256 KiB."""
    chunk: list[Parcel] = []
    size = 0
    for parcel in parcels:
        if size > 0 and size + len(parcel.body) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(parcel)
        size += len(parcel.body) + len(parcel.properties) + 100
    yield chunk
