"""Channels: calls that are answered, deliveries, and publications that are confirmed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from queue import SimpleQueue
from typing import Any, Final

from pika import spec

from taskbridge import locks
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.frames import (
    confirm_of,
    content_of,
    method_bytes,
    method_of,
    publication_frames,
)
from taskbridge.brokers.rabbitmq.parcel import Packing, Parcel, Parcels
from taskbridge.brokers.rabbitmq.waiting import Awaited, Deadline, Lock, TimedOutError

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


Deliveries = SimpleQueue[Delivery | None]
"""Where a consumer's messages arrive; None once no more will."""


class Channel:
    """A channel that threads share; their calls are made one after the other."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed: Exception | None = None
        self._calling = Lock()
        self._state = locks.RLock()  # guards `closed` and what is below
        self._replies: list[Any] = []
        self._asked = 0
        self._answer = Awaited()
        self._deliveries: Deliveries | None = None
        self._content: tuple[Any, int, Any, list[bytes]] | None = None
        self.number: int = connection.attach(self)

    def open(self, deadline: Deadline) -> None:
        """Open the channel; to be called once, first.

        Raises:
            ConnectionLostError, ChannelClosedError, TimedOutError: It could not be opened.
        """
        self.call(spec.Channel.Open(), deadline)

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
        with self._calling.held(deadline, f"RabbitMQ at {self.connection.where} does not answer"):
            with self._state:
                self._replies, self._asked, self._answer = [], len(methods), Awaited()
            try:
                self._write(b"".join(method_bytes(self.number, method) for method in methods), deadline)
                return self._wait_for_replies(deadline) if methods else []
            except BaseException as exc:  # a late reply would be taken for the next call's
                self._shut(TimedOutError(f"a call was not answered: {exc}"))
                raise

    def _wait_for_replies(self, deadline: Deadline) -> list[Any]:
        answered = self.connection.wait(self._answer, deadline)
        with self._state:
            if len(self._replies) >= self._asked:
                return self._replies
            if answered:
                raise self._failure(self._replies)
            raise TimedOutError(f"RabbitMQ at {self.connection.where} does not answer")

    def _write(self, data: bytes, deadline: Deadline) -> None:
        with self.connection.writing(deadline):
            self.check()
            self.connection.write(data, deadline)

    def _published(self, parcels: Sequence[Parcel]) -> bytes:
        """Return the frames by which parcels are published."""
        number, frame_max = self.number, self.connection.frame_max
        pieces: list[bytes] = []
        for parcel in parcels:
            pieces += publication_frames(number, parcel.exchange, parcel.key, parcel.properties, parcel.body, frame_max)
        return b"".join(pieces)

    def _failure(self, replies: Sequence[Any] = ()) -> Exception:
        """Return why the channel is closed, as an error of one's own."""
        if isinstance(self.closed, ChannelClosedError):
            return ChannelClosedError(self.closed.code, str(self.closed), replies)
        return type(self.closed)(str(self.closed)) if self.closed else ConnectionLostError("the channel is closed")

    def consume(self, queue: str, *, prefetch: int, exclusive: bool, deadline: Deadline) -> Deliveries:
        """Let the server deliver a queue's messages, so many before they are acknowledged (0: any number).

        Raises:
            ChannelClosedError: The server refused: there is no such queue, or somebody else consumes it exclusively.
            ConnectionLostError, TimedOutError: As for `call`.
        """
        deliveries: Deliveries = SimpleQueue()
        with self._state:
            self._deliveries = deliveries
        self.connection.keep_reading()
        qos, consume = spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.Consume(queue=queue, exclusive=exclusive)
        self.call_all([qos, consume], deadline)
        return deliveries

    def ack(self, tag: int, deadline: Deadline, *, multiple: bool = False) -> None:
        """Acknowledge a delivery, or all up to it."""
        self._write(method_bytes(self.number, spec.Basic.Ack(tag, multiple)), deadline)

    def ack_all(self, tags: Iterable[int], deadline: Deadline) -> None:
        """Acknowledge these deliveries."""
        acks = b"".join(method_bytes(self.number, spec.Basic.Ack(tag, False)) for tag in tags)
        if acks:
            self._write(acks, deadline)

    def check(self) -> None:
        """Raise why the channel is closed, if it is: `ConnectionLostError`, `ChannelClosedError` or `TimedOutError`."""
        if self.closed is not None:
            raise self._failure()

    def close(self, deadline: Deadline) -> None:
        """Close the channel; what it was delivered and has not acknowledged goes back to its place in the queue."""
        if self.closed is None:
            self.call(spec.Channel.Close(200, "", 0, 0), deadline)
            self._shut(ConnectionLostError("the channel was closed"))
            self.connection.detach(self.number)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        if kind == spec.FRAME_METHOD:
            method = method_of(payload)
            if method.INDEX in _WITH_CONTENT:
                self._content = (method, -1, None, [])
            else:
                self._on_method(method)
            return
        if self._content is None:
            return
        method, size, properties, parts = self._content
        if kind == spec.FRAME_HEADER:
            size, properties = content_of(payload)
        else:
            parts.append(payload)
            size -= len(payload)
        self._content = (method, size, properties, parts)
        if size <= 0:
            self._content = None
            self._on_content(method, properties, b"".join(parts))

    def lose(self, problem: str) -> None:
        """Learn that the connection is gone."""
        self._shut(ConnectionLostError(problem))

    def _shut(self, reason: Exception) -> None:
        with self._state:
            if self.closed is None:
                self.closed = reason
            if self._deliveries is not None:
                self._deliveries.put(None)
            self._answer.finish()

    def _on_method(self, method: Any) -> None:
        if isinstance(method, spec.Channel.Close):
            self.connection.write_soon(method_bytes(self.number, spec.Channel.CloseOk()))
            self._shut(ChannelClosedError(method.reply_code, method.reply_text))
            self.connection.detach(self.number)
        elif isinstance(method, spec.Basic.Cancel):  # its queue was deleted
            self._shut(ChannelClosedError(404, f"the queue of consumer {method.consumer_tag} is gone"))
        elif isinstance(method, spec.Channel.Flow):
            self.connection.write_soon(method_bytes(self.number, spec.Channel.FlowOk(method.active)))
        else:
            self._reply(method)

    def _on_content(self, method: Any, properties: Any, body: bytes) -> None:
        delivery = Delivery(tag=method.delivery_tag, body=body, redelivered=bool(method.redelivered))
        if isinstance(method, spec.Basic.GetOk):
            self._reply(delivery)
        elif self._deliveries is not None:
            self._deliveries.put(delivery)

    def _reply(self, reply: Any) -> None:
        with self._state:
            self._replies.append(reply)
            if len(self._replies) >= self._asked:
                self._answer.finish()


_WITH_CONTENT: Final = frozenset({spec.Basic.Deliver.INDEX, spec.Basic.GetOk.INDEX, spec.Basic.Return.INDEX})


class Batch(Awaited):
    """What became of parcels that were sent together; done when all are answered, or never will be.

    Attributes:
        accepted: The indexes of those that the server has confirmed.
        returned: Of those that found no queue.
        refused: Of those that their queue did not take.
        unsure: Of those that were sent, and not answered when the channel or the connection ended.
        problem: Why not all were sent or answered, if so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accepted: set[int] = set()
        self.returned: set[int] = set()
        self.refused: set[int] = set()
        self.unsure: set[int] = set()
        self.problem: Exception | None = None
        self._open = 1  # one for the sender itself, who is not done yet

    # The rest is called with the channel's lock held.

    def expect(self, number: int) -> None:
        """Wait for so many answers more."""
        self._open += number

    def answered(self) -> None:
        """Note that one answer came."""
        self._open -= 1
        if self._open == 0:
            self.finish()


class PublishingChannel(Channel):
    """A channel on which everything is confirmed. Threads share it: what one sends together stays in order."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Batch, Parcel]] = {}

    def open(self, deadline: Deadline) -> None:
        """Open the channel and ask for confirms."""
        self.call_all([spec.Channel.Open(), spec.Confirm.Select()], deadline)

    def send(self, parcels: Parcels, deadline: Deadline) -> Batch:
        """Send parcels, and return at once a batch that can be waited for; it also tells what was not sent, and why."""
        batch = Batch()
        try:
            for chunk in _chunks(parcels):
                self._send_chunk(batch, chunk, deadline)
        except (ConnectionLostError, ChannelClosedError, TimedOutError) as exc:
            batch.problem = exc
        with self._state:
            batch.answered()
        return batch

    def _send_chunk(self, batch: Batch, chunk: Sequence[Parcel], deadline: Deadline) -> None:
        data = self._published(chunk)
        try:
            self.connection.begin_writing(deadline)
            self._write_chunk(batch, chunk, data, deadline)
        finally:
            try:
                self.connection.end_writing()
            except BaseException:  # a time limit, as it was called
                self.connection.end_writing()
                raise

    def _write_chunk(self, batch: Batch, chunk: Sequence[Parcel], data: bytes, deadline: Deadline) -> None:
        try:
            with self._state:
                self.check()
                batch.expect(len(chunk))
                for parcel in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = (batch, parcel)
            self.connection.write(data, deadline)
        except (ConnectionLostError, ChannelClosedError, TimedOutError):
            raise
        except BaseException:
            self.connection.lose_interrupted()
            raise

    def abandon(self, batch: Batch) -> None:
        """Count what is not answered yet as unsure."""
        with self._state:
            for number in [number for number, (owner, _) in self._unconfirmed.items() if owner is batch]:
                _, parcel = self._unconfirmed.pop(number)
                if parcel.number not in batch.returned:
                    batch.unsure.add(parcel.number)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        confirm = confirm_of(payload) if kind == spec.FRAME_METHOD else None
        if confirm is None:
            super().take(kind, payload)
        else:
            with self._state:
                self._on_confirm(confirm.number, confirm.multiple, taken=confirm.taken)

    def _on_confirm(self, number: int, multiple: bool, *, taken: bool) -> None:
        upto = list(takewhile(lambda each: each <= number, self._unconfirmed)) if multiple else [number]
        for each in upto:
            if each in self._unconfirmed:  # else it was abandoned
                self._confirm(*self._unconfirmed.pop(each), taken=taken)

    @staticmethod
    def _confirm(batch: Batch, parcel: Parcel, *, taken: bool) -> None:
        if not taken:
            batch.refused.add(parcel.number)
        elif parcel.number not in batch.returned:
            batch.accepted.add(parcel.number)
        batch.answered()

    def _on_content(self, method: Any, properties: Any, body: bytes) -> None:
        if not isinstance(method, spec.Basic.Return):
            return
        with self._state:  # the confirm of a returned message comes after it
            place = (method.exchange, method.routing_key)
            there = [each for each in self._unconfirmed.values() if (each[1].exchange, each[1].key) == place]
            same = [each for each in there if each[1].token == properties.message_id]
            for batch, parcel in same or there:
                batch.returned.add(parcel.number)

    def _shut(self, reason: Exception) -> None:
        with self._state:
            super()._shut(reason)
            unconfirmed = list(self._unconfirmed.values())
            self._unconfirmed.clear()
            for batch, parcel in unconfirmed:
                # Only what made the server close the channel is known not to be taken; what came before it may be.
                refused_alone = isinstance(reason, ChannelClosedError) and len(unconfirmed) == 1
                if not refused_alone and parcel.number not in batch.returned:
                    batch.unsure.add(parcel.number)
                batch.problem = reason
                batch.answered()


class TransactionChannel(Channel):
    """A channel on which nothing counts until it is committed. It belongs to one thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._returned: set[str | None] = set()

    def open(self, deadline: Deadline) -> None:
        """Open the channel and begin the first transaction."""
        self.call_all([spec.Channel.Open(), spec.Tx.Select()], deadline)

    def commit(self, parcels: Sequence[Parcel], tags: Iterable[int], deadline: Deadline) -> list[Parcel]:
        """Publish parcels and acknowledge deliveries, all or none of it, and return the parcels that found no queue.

        Raises:
            ChannelClosedError, ConnectionLostError, TimedOutError: As for `call`; it may have been done or not.
        """
        self._returned.clear()
        for chunk in _chunks(parcels):
            self._write(self._published(chunk), deadline)
        self.ack_all(tags, deadline)
        self.call(spec.Tx.Commit(), deadline)
        return [parcel for parcel in parcels if parcel.token in self._returned]

    def _on_content(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Basic.Return):
            self._returned.add(properties.message_id)  # before the commit is answered
        else:
            super()._on_content(method, properties, body)


def _chunks(parcels: Parcels) -> Iterable[Sequence[Parcel]]:
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
