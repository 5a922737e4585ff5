"""Channels: calls that are answered, deliveries, and publications that are confirmed or in a transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from struct import Struct
from typing import Any, Final

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
from taskbridge.brokers.rabbitmq.publication import Packing, Parcel, Parcels

_HEAD: Final = Struct(">BHI")  # kind, channel, size
_CONTENT_HEAD: Final = Struct(">BHIHHQ")  # kind, channel, size, class, weight, size of the body
_END: Final = bytes([spec.FRAME_END])
_CHUNK_BYTES: Final = 1 << 18

_FEW: Final = 32
"""Of fewer messages the server need not have the first ones before the last are packed: a write costs more."""


class ChannelClosedError(Exception):
    """The server closed the channel; `replies` are those to the calls before the one that it refused."""

    def __init__(self, code: int, text: str, replies: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.replies: list[Any] = list(replies)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A message that was delivered.

    Attributes:
        tag: What it is acknowledged by.
        body: Its bytes.
        redelivered: Whether it was delivered before, to whoever did not acknowledge it.
    """

    tag: int
    body: bytes
    redelivered: bool = False


class Batch:
    """What became of parcels that were sent together.

    Attributes:
        open: The numbers of those that are not answered.
        accepted: Of those that the server has confirmed.
        returned: Of those that found no queue; they are confirmed too, and not accepted.
        refused: Of those that their queue did not take.
        unsure: Of those that were sent, and never answered.
    """

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.accepted: set[int] = set()
        self.returned: set[int] = set()
        self.refused: set[int] = set()
        self.unsure: set[int] = set()

    def answer(self, number: int, *, taken: bool) -> None:
        """Note the server's answer to a publication."""
        self.open.discard(number)
        if not taken:
            self.refused.add(number)
        elif number not in self.returned:
            self.accepted.add(number)


class Channel:
    """A channel; one thread at a time calls it.

    Attributes:
        number: The channel's number.
        closed: Why the channel can't be used any longer; None if it can.
        deliveries: What arrived, and has not been looked at.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed: Exception | None = None
        self.deliveries: deque[Delivery] = deque()
        self._is_closing = False  # soon: closed a second time, RabbitMQ would close the connection
        self._replies: list[Any] = []
        self._asked = 0
        self._content: tuple[Any, int, bytes, list[bytes]] | None = None  # method, bytes that lack, header, body
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Batch, Parcel]] = {}
        self._returned: set[str | None] = set()
        self.number: int = connection.attach(self)

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
            self.connection.write(b"".join(method_bytes(self.number, method) for method in methods), deadline)
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
            self.connection.send(method_bytes(self.number, spec.Channel.Close(200, "", 0, 0)))

    # Deliveries

    def consume(self, queue: str, *, prefetch: int, exclusive: bool, deadline: Deadline) -> None:
        """Let the server deliver a queue's messages, so many before they are acknowledged (0: any number).

        Raises:
            ChannelClosedError: The server refused: there is no such queue, or somebody else consumes it exclusively.
            ConnectionLostError, TimedOutError: As for `call`.
        """
        qos, consume = spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.Consume(queue=queue, exclusive=exclusive)
        self.call_all([qos, consume], deadline)

    def ack(self, tags: Iterable[int], deadline: Deadline, *, multiple: bool = False) -> None:
        """Acknowledge these deliveries; or all up to each."""
        acks = b"".join(method_bytes(self.number, spec.Basic.Ack(tag, multiple)) for tag in tags)
        if acks:
            self.check()
            self.connection.write(acks, deadline)

    # Publications

    def publish(self, parcels: Parcels, batch: Batch, deadline: Deadline) -> None:
        """Publish parcels, and return when all are confirmed; `batch` tells what became of each, whatever is raised.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        """
        try:
            for chunk in _chunks(parcels):
                data = self._frames(chunk)
                self.check()
                for parcel in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = batch, parcel
                    batch.open.add(parcel.number)
                self.connection.write(data, deadline)
            problem = f"RabbitMQ at {self.connection.where} sent no confirm in {deadline.timeout_s:g} s"
            self.connection.wait(lambda: not batch.open or self.closed is not None, deadline, problem)
            if batch.open:
                self.check()
        finally:
            # Only what made the server close the channel is known not to be taken; what came before it may be.
            if not (isinstance(self.closed, ChannelClosedError) and len(batch.open) == 1):
                batch.unsure |= batch.open - batch.returned

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
        self.ack(tags, deadline)
        self.call(spec.Tx.Commit(), deadline)
        return [parcel for parcel in parcels if parcel.token in self._returned]

    def _frames(self, parcels: Sequence[Parcel]) -> bytes:
        """Return the frames by which parcels are published, each mandatory."""
        number, room = self.number, self.connection.frame_max - OVERHEAD
        pieces: list[bytes] = []
        for _, _, key, _, properties, body, exchange in parcels:
            size = CONTENT_SIZE + len(properties)
            head = _CONTENT_HEAD.pack(spec.FRAME_HEADER, number, size, spec.Basic.INDEX, 0, len(body))
            pieces += (_publish_bytes(number, exchange, key), head, properties, _END)
            for start in range(0, len(body), room):
                part = body[start : start + room]
                pieces += (_HEAD.pack(spec.FRAME_BODY, number, len(part)), part, _END)
        return b"".join(pieces)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        if kind == spec.FRAME_METHOD:
            method = method_of(payload)
            if isinstance(method, _WITH_CONTENT):
                self._content = method, -1, b"", []
            else:
                self._on_method(method)
            return
        if self._content is None:
            return
        method, lacks, header, parts = self._content
        if kind == spec.FRAME_HEADER:
            lacks, header = int.from_bytes(payload[4:12], "big"), payload
        else:
            parts.append(payload)
            lacks -= len(payload)
        self._content = method, lacks, header, parts
        if lacks <= 0:
            self._content = None
            self._on_content(method, header, b"".join(parts))

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
            self.connection.send(method_bytes(self.number, spec.Channel.CloseOk()))
            self._shut(ChannelClosedError(method.reply_code, method.reply_text))
            self.connection.detach(self.number)
        elif isinstance(method, spec.Basic.Cancel):  # its queue was deleted
            self._shut(ChannelClosedError(404, f"the queue of consumer {method.consumer_tag} is gone"))
        elif isinstance(method, spec.Channel.Flow):
            self.connection.send(method_bytes(self.number, spec.Channel.FlowOk(method.active)))
        else:
            if isinstance(method, spec.Channel.CloseOk):
                self.connection.detach(self.number)
            self._replies.append(method)

    def _on_confirm(self, method: Any, *, taken: bool) -> None:
        last = method.delivery_tag
        numbers = list(takewhile(lambda each: each <= last, self._unconfirmed)) if method.multiple else [last]
        for number in numbers:
            batch, parcel = self._unconfirmed.pop(number)
            batch.answer(parcel.number, taken=taken)

    def _on_content(self, method: Any, header: bytes, body: bytes) -> None:
        if isinstance(method, spec.Basic.Return):
            self._on_return(method, header)
            return
        delivery = Delivery(tag=method.delivery_tag, body=body, redelivered=bool(method.redelivered))
        if isinstance(method, spec.Basic.GetOk):
            self._replies.append(delivery)
        else:
            self.deliveries.append(delivery)

    def _on_return(self, method: Any, header: bytes) -> None:
        """Note what found no queue; its confirm, or the answer to the commit, comes after it."""
        properties = pika.BasicProperties()
        properties.decode(header[CONTENT_SIZE:])
        self._returned.add(properties.message_id)
        place = (method.exchange, method.routing_key)
        there = [each for each in self._unconfirmed.values() if (each[1].exchange, each[1].key) == place]
        same = [each for each in there if each[1].token == properties.message_id]
        for batch, parcel in same or there:
            batch.returned.add(parcel.number)


_WITH_CONTENT: Final = (spec.Basic.Deliver, spec.Basic.GetOk, spec.Basic.Return)


@lru_cache(maxsize=512)
def _publish_bytes(channel: int, exchange: str, key: str) -> bytes:
    return method_bytes(channel, spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))


def _chunks(parcels: Parcels) -> Iterator[Sequence[Parcel]]:
    """Cut parcels into portions of about 256 KiB; those that are packed meanwhile into two at least, unless few."""
    in_halves = isinstance(parcels, Packing) and len(parcels) >= _FEW
    most = (len(parcels) + 1) // 2 if in_halves else len(parcels)
    chunk: list[Parcel] = []
    size = 0
    for parcel in parcels:
        if size > 0 and (size + len(parcel.body) > _CHUNK_BYTES or len(chunk) == most):
            yield chunk
            chunk, size = [], 0
        chunk.append(parcel)
        size += len(parcel.body) + len(parcel.properties) + 100
    yield chunk
