"""Dramatiq's RabbitMQ broker with confirms, four priorities, and consumers that hold nothing they have no thread for.

The queues are declared as `RabbitmqBroker(max_priority=3)` declares them, so that plain Dramatiq clients and this
package's own publisher agree with it.

The consumers don't use pika's connections, of which each belongs to one thread, so that an acknowledgement passes
through another thread. They share a connection to which any thread may write, and which one thread reads. They ask
RabbitMQ for nothing that it would have to wait for: what is refused closes a consumer's channel, and Dramatiq makes
another consumer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker
from dramatiq.common import dq_name, q_name, xq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from pika import spec

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.brokers.base import typed
from taskbridge.brokers.rabbitmq.channel import Channel, remedy
from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, Deadline
from taskbridge.brokers.rabbitmq.frames import Delivery as Arrived
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.engines.dramatiq.broker import Arrival, EngineBroker, EngineConsumer
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.wire import MAX_PRIORITY, own_queue, queue_arguments
from taskbridge.logs import logger
from taskbridge.settings import Settings, each_host

_log = logger("taskbridge.dramatiq")

_PATIENCE_S: Final = 1.0
"""How long a message waits here for a thread before it goes back, so that an idle worker may have it."""

_FULL_S: Final = 0.5
"""How long all threads may be busy with the same tasks before a queue is left alone in which nothing waits."""

_ARRIVAL_S: Final = 0.2  # how long a thread is kept free for a message that was sent back for want of one
_READ_S: Final = 1.0
_CLOSE_S: Final = 0.5  # how long the end of a connection waits for RabbitMQ, which has the last acknowledgements then
_TAG: Final = "1"  # the consumer's tag; each has a channel of its own


class SparingRabbitmqBroker(EngineBroker, RabbitmqBroker):
    """Dramatiq's broker, with consumers of its own."""

    def __init__(self, settings: Settings, middleware: list[Middleware]) -> None:
        urls = each_host(settings.url.broker_url)
        super().__init__(url=urls, middleware=middleware, confirm_delivery=True, max_priority=MAX_PRIORITY)
        self._settings = settings
        self._timeout_s = settings.send_timeout_s
        hosts: Any = self.parameters
        for parameters in hosts:
            if parameters.blocked_connection_timeout is None:
                parameters.blocked_connection_timeout = self._timeout_s
        self._hosts = Hosts(hosts)
        # Whether a message may go back to its queue that found no thread: it counts as delivered before then, and
        # without a store nobody can tell that it was not started.
        self.may_return: bool = settings.store is not None
        self._linking = locks.Lock()
        self._readers: list[_Reader] = []

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Declare a queue, and on the server if it is to be ensured; as Dramatiq does, but with the type of the queues.

        If RabbitMQ can't be reached, or refuses, it raises `pika.exceptions.AMQPError`.
        """
        super().declare_queue(queue_name)
        canonical = q_name(queue_name)
        if ensure and canonical in self.queues_pending:
            for name, arguments in self.to_declare(canonical).items():
                self.channel.queue_declare(queue=name, durable=True, arguments=arguments)
            self.queues_pending.discard(canonical)

    def to_declare(self, canonical: str) -> Mapping[str, dict[str, Any]]:
        """Return a queue, and those of its delayed and dead messages, with their arguments."""
        queue = own_queue(self._settings.namespace, canonical)
        kind = "classic" if queue is None else self._settings.type_of(queue)
        arguments, dead = queue_arguments(canonical, kind), {**typed(kind), "x-message-ttl": DEAD_MESSAGE_TTL}
        return {canonical: arguments, dq_name(canonical): arguments, xq_name(canonical): dead}

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue, which it declares; `ConnectionClosed` if RabbitMQ can't be reached."""
        self.declare_queue(queue_name)
        return _SparingConsumer(self, queue_name, prefetch, timeout)

    def open_channel(self, receive: Callable[[Arrived], None]) -> Channel:
        """Return a channel on the consumers' connection; on a new one if there is none that can have another channel.

        If RabbitMQ can't be reached, it is `ConnectionClosed`.
        """
        with self._linking:
            self._readers = [reader for reader in self._readers if reader.connection.problem is None]
            with_room = (reader for reader in self._readers if reader.connection.has_room)
            try:
                if (reader := next(with_room, None)) is None:
                    reader = _Reader(self._hosts.connect(Deadline(self._timeout_s, self.stopping)))
                    reader.start()
                    self._readers.append(reader)
                return Channel(reader.connection, receive)
            except ClientError as exc:
                raise ConnectionClosed(exc) from None

    def closed(self) -> None:
        """End the consumers' connection; what is not acknowledged goes back."""
        with self._linking:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.connection.close(_CLOSE_S)
            reader.stop()

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self.closed()
        super().close()


class _Reader(Background):
    """Reads a connection, until it ends."""

    def __init__(self, connection: Connection) -> None:
        super().__init__("dramatiq-rabbitmq", join_s=_CLOSE_S)
        self.connection = connection

    def run(self, stop: threading.Event) -> None:
        try:
            while self.connection.problem is None:
                self.connection.read(_READ_S)
        finally:
            self.connection.lose(f"the thread that reads from RabbitMQ at {self.connection.where} has ended")


class _SparingConsumer(EngineConsumer):
    """Takes messages of one queue over a channel of its own. Their places are that channel and the delivery's tag.

    What was delivered waits in `_arrived` for a thread. If that takes long, nothing more is consumed until there is
    one: other workers may have what waits.
    """

    def __init__(self, broker: SparingRabbitmqBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout_ms)
        self._broker = broker
        self._arrived: deque[Arrival] = deque()
        self._wake = locks.Event()  # something has arrived
        self._moved_at = 0.0  # when the first of these became the first
        self._is_consuming = False
        self._was_sent_back = False
        self._channel = broker.open_channel(self._receive)
        declared = broker.to_declare(q_name(queue_name)).items()
        calls = (spec.Queue.Declare(queue=name, durable=True, nowait=True, arguments=each) for name, each in declared)
        self._channel.tell(*calls, spec.Basic.Qos(prefetch_count=prefetch))

    # For Dramatiq's thread

    def __next__(self) -> MessageProxy | None:
        """Return the next message that no thread takes by itself; None if there is none for a while.

        For a connection that was lost, or a refusal, it raises `ConnectionClosed`; Dramatiq makes another consumer.
        """
        closed = self._channel.closed
        if closed is not None:
            raise ConnectionClosed(f"{closed}{remedy(closed)}")
        self._be_sparing()
        return super().__next__()

    def _be_sparing(self) -> None:
        """Send back what waits for too long; and if nothing does, let nothing come while there is no thread for it."""
        if self._arrived:
            has_waited_long = self._broker.may_return and monotonic() - self._moved_at > _PATIENCE_S
        else:
            has_waited_long = False
            if self._slots.full_for_s() > _FULL_S:
                self._pause()  # what comes from now on would wait for a long task
        if has_waited_long or self.is_closed:
            self._pause()
            self.give_back([arrival.place for arrival in self._next_arrived(len(self._arrived))])
            self._was_sent_back = True

    def _pause(self) -> None:
        if self._is_consuming:
            self._is_consuming = False
            self._channel.tell(spec.Basic.Cancel(consumer_tag=_TAG, nowait=True))

    def take(self, most: int, *, soon: bool) -> Sequence[Arrival]:
        if not self._is_consuming:
            self._is_consuming = True
            self._wake.clear()
            self._channel.tell(spec.Basic.Consume(queue=self._queue_name, consumer_tag=_TAG, nowait=True))
            if self._was_sent_back:  # it waits there, and would find the threads taken again
                self._was_sent_back = False
                self._wake.wait(_ARRIVAL_S)
        return self._next_arrived(most)

    def wait(self) -> None:
        self._wake.wait(self._timeout_s)
        self._wake.clear()

    def close(self) -> None:
        """Close the channel, after the last acknowledgements; what is not acknowledged goes back."""
        super().close()
        self._channel.leave()

    # For any thread

    def opened(self, arrival: Arrival) -> Delivery | None:
        """Look at a message for the thread that is to run it; None if it is not to be run now."""
        if self._channel.closed is None:
            return super().opened(arrival)
        self._slots.release()  # RabbitMQ delivers it again
        return None

    def done(self, place: Any) -> None:
        """Acknowledge a message, and on the fast way begin with the next of its queue in its slot, if one has arrived.

        The consumer's own thread would have to be woken for it, and then wake this one.
        """
        self.end(place)
        work = None if self.is_closed or not self._arrived else self._work
        if work is not None and self._slots.keep(self._granted):
            for arrival in self._next_arrived(1):
                work.put(arrival)
                return
        self._slots.release()

    def end(self, place: Any) -> None:
        channel, tag = place
        if self._has(channel):
            channel.ack([tag])

    def give_back(self, places: Sequence[Any], *, suspect: bool = False) -> None:
        for channel, tag in places:  # RabbitMQ says of each that it was delivered before
            if self._has(channel):
                channel.tell(spec.Basic.Nack(tag, requeue=True))

    def fail(self, message: Delivery) -> None:
        if message.task_message is not None:
            self.end(message.place)
            return
        channel, tag = message.place
        if self._has(channel):
            channel.tell(spec.Basic.Nack(tag, requeue=False))

    def _has(self, channel: Channel) -> bool:
        """Return whether a message came over this consumer's own channel, and that is open."""
        if channel is self._channel and channel.closed is None:
            return True
        _log.warning(
            "a message of %s: the connection was lost meanwhile, so RabbitMQ delivers it again", self._queue_name
        )
        return False

    def _receive(self, arrived: Arrived) -> None:
        """Hand what arrives to a thread that is free, on the fast way, or keep it; the connection's thread calls it."""
        tag, body, redelivered, times = arrived
        arrival = Arrival(self, (self._channel, tag), body, redelivered, times)
        is_first = not self._arrived and not self.is_closed
        if is_first and self._work is not None and self._slots.take(1):
            self._work.put(arrival)
            return
        if not self._arrived:
            self._moved_at = monotonic()
        self._arrived.append(arrival)
        if not self._is_in_line:  # else it waits for a thread, and not for this
            self._wake.set()

    def _next_arrived(self, most: int) -> list[Arrival]:
        taken: list[Arrival] = []
        with suppress(IndexError):  # another thread takes them, too
            while len(taken) < most:
                taken.append(self._arrived.popleft())
        self._moved_at = monotonic()
        return taken
