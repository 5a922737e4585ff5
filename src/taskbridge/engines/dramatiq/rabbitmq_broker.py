"""Dramatiq's RabbitMQ broker with confirms, four priorities, and consumers that hold nothing they have no thread for.

The queues are declared as `RabbitmqBroker(max_priority=3)` declares them, so that plain Dramatiq clients and this
package's own publisher agree with it.

The consumers don't use pika's connections, of which each belongs to one thread, so that a message passes through two
more threads on its way to the one that runs it, and its acknowledgement through one. They share one connection that any
thread may write to (`read_in_thread`). Its own thread puts what arrives where the worker's threads take it from, if
one of them is free; else whichever thread becomes free does so.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any, Final

from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker
from dramatiq.common import dq_name, q_name, xq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from pika import spec

from taskbridge import locks
from taskbridge.brokers.rabbitmq.channel import Channel
from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, TimedOutError, connect
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.frames import Delivery as Arrived
from taskbridge.engines.dramatiq.broker import Arrival, EngineBroker, EngineConsumer
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.wire import MAX_PRIORITY, queue_arguments
from taskbridge.engines.settle import NotSettledError
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.dramatiq")

_HEARTBEAT_S: Final = 10
"""After two or three of these without a sign of life a connection is dead; RabbitMQ's own default is 60."""

_PATIENCE_S: Final = 1.0
"""How long a message waits here for a thread before it goes back, so that an idle worker may have it."""

_FULL_S: Final = 0.5
"""How long all threads may be busy with the same tasks before a queue is left alone in which nothing waits."""

_CLOSE_S: Final = 0.5
"""How long a consumer that closes waits for RabbitMQ, which has its last acknowledgements then."""

_TROUBLE: Final = (ClientError, NotSettledError)


class SparingRabbitmqBroker(EngineBroker, RabbitmqBroker):
    """Dramatiq's broker, with consumers of its own.

    Attributes:
        may_return: Whether a message may go back to its queue that found no thread. It counts as delivered before
            then, and without a store nobody can tell that it was not started.
    """

    def __init__(self, settings: Settings, middleware: list[Middleware]) -> None:
        url = settings.url.broker_url
        super().__init__(url=url, middleware=middleware, confirm_delivery=True, max_priority=MAX_PRIORITY)
        parameters: Any = self.parameters
        if "heartbeat=" not in url:
            parameters.heartbeat = _HEARTBEAT_S
        if "blocked_connection_timeout=" not in url:
            parameters.blocked_connection_timeout = settings.send_timeout_s
        self.timeout_s: float = settings.send_timeout_s  # that RabbitMQ may take to answer
        self.may_return: bool = settings.store is not None
        self._linking = locks.Lock()
        self._links: list[Connection] = []

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Declare a queue, and on the server if it is to be ensured; as Dramatiq does, but with the type of the queues.

        Raises:
            pika.exceptions.AMQPError: RabbitMQ can't be reached, or refuses.
        """
        super().declare_queue(queue_name)
        canonical = q_name(queue_name)
        if ensure and canonical in self.queues_pending:
            for name, arguments in _declarations(canonical).items():
                self.channel.queue_declare(queue=name, durable=True, arguments=arguments)
            self.queues_pending.discard(canonical)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue, which it declares.

        Raises:
            ConnectionClosed: RabbitMQ doesn't do its part.
        """
        self.declare_queue(queue_name)
        return _SparingConsumer(self, queue_name, prefetch, timeout)

    def link(self) -> Connection:
        """Return the consumers' connection; a new one if there is none, or none that can have another channel.

        Raises:
            ClientError: RabbitMQ can't be reached.
        """
        with self._linking:
            self._links = [link for link in self._links if link.problem is None]
            link = next((link for link in self._links if link.has_room), None)
            if link is None:
                link = connect([self.parameters], self.deadline(), kind=Connection)
                link.read_in_thread()
                self._links.append(link)
            return link

    def deadline(self) -> Deadline:
        """Return until when RabbitMQ is waited for now: only for a moment once the worker's grace is over."""
        return Deadline(self.timeout_s, self.stopping)

    def closed(self, *, keep: Collection[Delivery] = ()) -> None:
        """End the consumers' connection; what is not acknowledged goes back. What is kept goes with this process."""
        if not keep:
            self._unlink()

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self._unlink()
        super().close()

    def _unlink(self) -> None:
        with self._linking:
            links, self._links = self._links, []
        for link in links:
            link.close(_CLOSE_S)


class _SparingConsumer(EngineConsumer):
    """Takes messages of one queue over a channel of its own, as they are delivered.

    Each one that is handed on has a slot. What finds none waits in `_arrived`, and the consumer is in line for one
    then. If that takes long, it consumes no more until there is a slot: other workers may have what waits.
    """

    def __init__(self, broker: SparingRabbitmqBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout_ms)
        self._broker = broker
        # Guards the three below, and the ticket; no slot is given up under it, for that wakes others.
        self._lock = locks.Lock()
        self._arrived: deque[Arrival] = deque()
        self._arrived_at = 0.0
        self._is_closed = False
        self._consumer_tag: str | None = None
        try:
            self._connection = broker.link()
            self._channel = Channel(self._connection, self._receive)
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None
        try:
            declared = [
                spec.Queue.Declare(queue=name, durable=True, arguments=arguments)
                for name, arguments in _declarations(q_name(queue_name)).items()
            ]
            self._channel.open(broker.deadline(), *declared, spec.Basic.Qos(prefetch_count=prefetch))
            broker.queues_pending.discard(q_name(queue_name))
            if self._work is None and (broker.slots is None or broker.booted.is_set()):
                self._begin()  # else in `__next__`: threads that are done with a message ask Dramatiq for this consumer
        except _TROUBLE as exc:
            self._channel.abandon()  # RabbitMQ may carry out what it has not answered, and deliver to nobody
            raise ConnectionClosed(exc) from None

    # For Dramatiq's thread

    def __next__(self) -> MessageProxy | None:
        """See to what has to be seen to now and then, and wait a little.

        Returns:
            A message that no thread takes by itself; None if there is none.

        Raises:
            ConnectionClosed: RabbitMQ doesn't do its part, whatever the reason; Dramatiq then makes another consumer.
        """
        if not self._broker.is_booted():
            return None
        try:
            self._channel.check()
            if self._broker.draining:
                self._pause()
                self._leave_line()
                self._give_back_ready()
            elif self._consumer_tag is None and self._may_begin():
                self._begin()
            if not self._ready:
                self._wake.wait(self._timeout_s)
                self._wake.clear()
                self._channel.check()
                self._be_sparing()
            return self._next_ready()
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None

    def _may_begin(self) -> bool:
        """Return whether a thread is free: this consumer's slot if it knows that something waits, else any."""
        return self._slots.full_for_s() <= _FULL_S if self._ticket is None else self._ticket.granted

    def _begin(self) -> None:
        reply = self._channel.call(spec.Basic.Consume(queue=self._queue_name), self._broker.deadline())
        self._consumer_tag = reply.consumer_tag

    def _be_sparing(self) -> None:
        """Send back what waits for too long; and if nothing does, let nothing come while there is no thread for it."""
        if self._consumer_tag is None:
            return
        if not self._arrived:
            self._leave_line()  # if it has a slot, another worker has taken what that was for
            if self._slots.full_for_s() > _FULL_S:
                self._pause()  # what comes from now on would wait for a long task
        elif self._broker.may_return and monotonic() - self._arrived_at > _PATIENCE_S:
            self._pause()

    def _pause(self) -> None:
        """Return what arrived to the queue and take nothing more, until there is a thread for it."""
        if self._consumer_tag is not None:
            # What arrives before the answer goes back too. A worker that drains looks again, and waits for nobody.
            cancel = spec.Basic.Cancel(consumer_tag=self._consumer_tag, nowait=self._broker.draining)
            if self._broker.draining:
                self._channel.tell(cancel)
            else:
                self._channel.call(cancel, self._broker.deadline())
            self._consumer_tag = None
        with self._lock:
            arrived = [arrival.place for arrival in self._arrived]
            self._arrived.clear()
        self.give_back(arrived)

    def close(self) -> None:
        """Send the last acknowledgements and close the channel; what is not acknowledged goes back.

        Raises:
            ConnectionClosed: The connection broke, or RabbitMQ does not answer.
        """
        with self._lock:
            self._is_closed = True
        self._leave_line()
        while self._ready:
            self._ready.pop()
            self._slots.release()
        if self._channel.closed is not None:
            self._channel.abandon()
            return
        try:
            self._channel.close(Deadline(_CLOSE_S))
        except ClientError as exc:
            if self._broker.draining and isinstance(exc, TimedOutError):
                self._connection.lose(str(exc))  # so that no other consumer waits for it
            raise ConnectionClosed(exc) from None

    # For any thread

    def opened(self, arrival: Arrival) -> Delivery | None:
        """Look at a message for the thread that is to run it; None if it is not to be run now."""
        if self._channel.closed is None:
            return super().opened(arrival)
        self._slots.release()  # RabbitMQ delivers it again
        return None

    def end(self, place: Any) -> None:
        """Acknowledge a message."""
        channel, tag = place
        if self._has(channel):
            channel.ack([tag])

    def give_back(self, places: Sequence[Any], *, suspect: bool = False) -> None:
        """Return messages to their places in the queue; RabbitMQ says of each that it was delivered before."""
        for channel, tag in places:
            if self._has(channel):
                channel.reject([tag], requeue=True)

    def fail(self, message: Delivery) -> None:
        """Move a message to Dramatiq's own dead ones, for its dashboards."""
        channel, tag = message.place
        if self._has(channel):
            channel.reject([tag], requeue=False)

    def _has(self, channel: Channel) -> bool:
        """Return whether a message came over this consumer's own channel, and that is open."""
        if channel is self._channel and channel.closed is None:
            return True
        _log.warning(
            "a message of %s: the connection was lost meanwhile, so RabbitMQ delivers it again", self._queue_name
        )
        return False

    def _receive(self, arrived: Arrived) -> None:
        """Take what arrives; the connection's thread calls it."""
        tag, body, redelivered = arrived
        with self._lock:
            if not self._arrived:
                self._arrived_at = monotonic()
            self._arrived.append(Arrival(self, (self._channel, tag), body, redelivered))
            self._hand_on()

    def _slot_granted(self) -> None:
        """Use a slot that was waited for; whichever thread frees it calls it."""
        with self._lock:
            self._hand_on()
        if self._ticket is not None:
            self._wake.set()  # to begin again

    def _hand_on(self) -> None:
        """Hand on what arrived, as far as there are slots, and get in line for the rest."""
        if self._is_closed or self._broker.draining:
            return
        while self._arrived:
            if self._ticket is None:
                self._ticket = self._slots.ticket(self._slot_granted)
            if not self._ticket.granted:
                return
            self._ticket = None  # the message holds the slot
            self._arrived_at = monotonic()
            arrival = self._arrived.popleft()
            if self._work is not None:
                self._work.put(arrival)
            else:
                self._ready.append(arrival)
                self._wake.set()

    def _leave_line(self) -> None:
        """Give up the place in the line for a slot, or the slot, if nothing waits here for it."""
        with self._lock:
            if self._arrived and not self._is_closed:
                return
            ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._slots.give_up(ticket)


def _declarations(canonical: str) -> dict[str, dict[str, Any]]:
    """Return the queues that belong to a queue, the delayed messages' and the dead ones' too, and their arguments."""
    arguments = queue_arguments(canonical)
    dead = {"x-queue-type": "classic", "x-message-ttl": DEAD_MESSAGE_TTL}
    return {canonical: arguments, dq_name(canonical): arguments, xq_name(canonical): dead}
