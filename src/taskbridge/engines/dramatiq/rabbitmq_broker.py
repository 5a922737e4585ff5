"""Dramatiq's RabbitMQ broker with confirms, four priorities, and consumers that hold nothing they have no thread for.

The queues are declared as `RabbitmqBroker(max_priority=3)` declares them, so that plain Dramatiq clients and this
package's own publisher agree with it.

The consumers don't use pika's connections, of which each belongs to one thread, so that a message passes through two
more threads on its way to the one that runs it, and its acknowledgement through one. They share one connection that any
thread may write to. Its own thread puts what arrives where the worker's threads take it from, if
one of them is free; else whichever thread becomes free does so.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterable
from time import monotonic
from typing import Any, Final, NamedTuple

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
from taskbridge.engines.dramatiq.broker import EngineBroker, Slots, Ticket
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

_ARRIVAL_S: Final = 0.2
"""How long a slot is kept for a queue whose consumer has just begun again."""

_CLOSE_S: Final = 0.5
"""How long a consumer that closes waits for RabbitMQ, which has its last acknowledgements then."""

_TROUBLE: Final = (ClientError, NotSettledError)


class SparingRabbitmqBroker(EngineBroker, RabbitmqBroker):
    """Dramatiq's broker, with consumers of its own."""

    def __init__(self, settings: Settings, middleware: list[Middleware]) -> None:
        url = settings.url.broker_url
        super().__init__(url=url, middleware=middleware, confirm_delivery=True, max_priority=MAX_PRIORITY)
        parameters: Any = self.parameters
        if "heartbeat=" not in url:
            parameters.heartbeat = _HEARTBEAT_S
        if "blocked_connection_timeout=" not in url:
            parameters.blocked_connection_timeout = settings.send_timeout_s
        self.timeout_s: float = settings.send_timeout_s  # that RabbitMQ may take to answer
        self._linking = locks.Lock()
        self._links: list[Connection] = []

        # What was returned counts as delivered before. Without a store nobody can tell that it was not started.
        self.may_return: bool = settings.store is not None

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


class _Arrival(NamedTuple):
    """A delivery that nobody has looked at yet."""

    consumer: _SparingConsumer
    delivery: Arrived

    def opened(self) -> MessageProxy | None:
        """Return the message, for the thread that is to run it; None if there is nothing to run."""
        return self.consumer.taken(self)


class _SparingConsumer(Consumer):
    """Takes messages of one queue over a channel of its own.

    Each one that is handed on has a slot. What finds none waits here, and the consumer is in line for one then.
    """

    def __init__(self, broker: SparingRabbitmqBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._timeout_s = timeout_ms / 1000
        is_delayed = queue_name.endswith(".DQ")
        self._slots = Slots(prefetch) if is_delayed or broker.slots is None else broker.slots
        self._hands_over = not is_delayed and broker.work is not None and broker.reception.owns(queue_name)
        self._lock = locks.Lock()  # guards the four below; no slot is given up under it, for that wakes others
        self._ticket: Ticket | None = None
        self._arrived: deque[_Arrival] = deque()
        self._arrived_at = 0.0
        self._is_closed = False
        self._ready: deque[_Arrival] = deque()
        self._news = locks.Event()
        self._consumer_tag: str | None = None
        self._failure: Exception | None = None
        try:
            self._connection = broker.link()
            self._channel = Channel(self._connection, self._receive)
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None
        try:
            self._open(prefetch)
            if not self._hands_over and (broker.slots is None or broker.booted.is_set()):
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
            return self._next()
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None

    def _next(self) -> MessageProxy | None:
        if self._failure is not None:
            raise ConnectionClosed(self._failure)
        self._channel.check()
        if self._broker.draining:
            self._drain()
            return None
        if self._consumer_tag is None:
            self._resume()
        if not self._ready:
            self._news.wait(self._timeout_s)
            self._news.clear()
            self._channel.check()
            self._be_sparing()
        return self._opened(self._ready.popleft()) if self._ready else None

    def _be_sparing(self) -> None:
        """Send back what waits for too long; and if nothing does, let nothing come while there is no thread for it."""
        if self._consumer_tag is None:
            return
        if not self._arrived:
            if self._slots.full_for_s() > _FULL_S:
                self._send_back(leave_line=True)  # nothing, as yet: what comes from now on would wait for a long task
        elif self._broker.may_return and monotonic() - self._arrived_at > _PATIENCE_S:
            self._send_back(leave_line=False)

    def _resume(self) -> None:
        """Consume again once a thread is free, and keep it for what arrives first if something is known to wait."""
        ticket = self._ticket
        if ticket is None:
            if self._slots.full_for_s() <= _FULL_S:
                self._begin()
        elif ticket.granted:
            self._begin()
            deadline = monotonic() + _ARRIVAL_S
            while self._ticket is ticket and not self._ready and (left_s := deadline - monotonic()) > 0:
                self._news.wait(left_s)
                self._news.clear()
            self._leave_line(with_only=ticket)

    def _begin(self) -> None:
        reply = self._channel.call(spec.Basic.Consume(queue=self._queue_name), self._broker.deadline())
        self._consumer_tag = reply.consumer_tag

    def _send_back(self, *, leave_line: bool) -> None:
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
            arrived = [arrival.delivery.tag for arrival in self._arrived]
            self._arrived.clear()
        if leave_line:
            self._leave_line()
        self._channel.reject(arrived, requeue=True)

    def _drain(self) -> None:
        self._send_back(leave_line=True)
        unopened = list(self._ready)
        self._ready.clear()
        self._channel.reject([arrival.delivery.tag for arrival in unopened], requeue=True)
        self._slots.release(len(unopened))
        self._news.wait(self._timeout_s)
        self._news.clear()

    def _open(self, prefetch: int) -> None:
        """Open the channel; declare the queue, the one for its delayed messages and the one for its dead."""
        canonical = q_name(self._queue_name)
        declared = [
            spec.Queue.Declare(queue=name, durable=True, arguments=arguments)
            for name, arguments in _declarations(canonical).items()
        ]
        self._channel.open(self._broker.deadline(), *declared, spec.Basic.Qos(prefetch_count=prefetch))
        self._broker.queues_pending.discard(canonical)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Do nothing: RabbitMQ returns what is unacknowledged when the channel is closed."""

    def close(self) -> None:
        """Send the last acknowledgements and close the channel.

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
        except TimedOutError as exc:
            if self._broker.draining:
                self._connection.lose(str(exc))  # so that no other consumer waits for it
            raise ConnectionClosed(exc) from None
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None

    # For any thread

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message that is done with, or return one to its queue that goes back."""
        delivery = _delivery(message)
        channel, tag = delivery.place
        if self._has(channel, delivery):
            if delivery.returns:
                channel.reject([tag], requeue=True)
            else:
                channel.ack([tag])
        self._slots.release()

    def nack(self, message: MessageProxy) -> None:
        """Move a message to Dramatiq's own dead ones, for its dashboards."""
        delivery = _delivery(message)
        channel, tag = delivery.place
        if self._has(channel, delivery):
            channel.reject([tag], requeue=False)
        self._slots.release()

    def _has(self, channel: Channel, delivery: Delivery) -> bool:
        """Return whether a message came over this consumer's own channel, and that is open."""
        if channel is self._channel and channel.closed is None:
            return True
        _log.warning(
            "task %s id %s: the connection was lost meanwhile, so RabbitMQ delivers it again",
            delivery.actor_name,
            delivery.message_id,
        )
        return False

    def taken(self, arrival: _Arrival) -> MessageProxy | None:
        """Look at a message that a thread takes to run it, and return it; None if it is not to be run now."""
        if self._channel.closed is not None:  # so RabbitMQ delivers it again
            self._slots.release()
            return None
        try:
            if not self._broker.draining:
                return self._opened(arrival)
            self._channel.reject([arrival.delivery.tag], requeue=True)
            self._slots.release()
            return None
        except Exception as exc:  # Dramatiq's thread raises it, and makes another consumer
            if not isinstance(exc, NotSettledError):
                _log.exception("a message of %s can't be looked at, or kept for later", self._queue_name)
            self._failure = exc
            self._news.set()
            self._slots.release()
            return None

    def _opened(self, arrival: _Arrival) -> Delivery | None:
        """Look at a message that has a slot, and return it; None if it is done with.

        Raises:
            NotSettledError: The broker was away until the worker stopped; the message is not acknowledged.
        """
        tag, body, redelivered = arrival.delivery
        place = self._channel, tag
        delivery = self._broker.reception.admit(self._queue_name, body, place=place, redelivered=redelivered)
        if delivery is None:
            self._channel.ack([tag])
            self._slots.release()
        return delivery

    def _receive(self, delivery: Arrived) -> None:
        """Take what arrives; the connection's thread calls it."""
        with self._lock:
            if not self._arrived:
                self._arrived_at = monotonic()
            self._arrived.append(_Arrival(self, delivery))
            self._hand_on()

    def _slot_granted(self) -> None:
        """Use a slot that was waited for; whichever thread frees it calls it."""
        with self._lock:
            self._hand_on()
        if self._ticket is not None:
            self._news.set()  # for `_resume`

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
            if self._hands_over and self._broker.work is not None:
                self._broker.work.put(arrival)
            else:
                self._ready.append(arrival)
                self._news.set()

    def _leave_line(self, *, with_only: Ticket | None = None) -> None:
        """Give up the place in the line for a slot, or the slot; with this ticket, if it is given, and no other."""
        with self._lock:
            if with_only is not None and self._ticket is not with_only:
                return
            ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._slots.give_up(ticket)


def _declarations(canonical: str) -> dict[str, dict[str, Any]]:
    """Return the queues that belong to a queue, the delayed messages' and the dead ones' too, and their arguments."""
    arguments = queue_arguments(canonical)
    dead = {"x-queue-type": "classic", "x-message-ttl": DEAD_MESSAGE_TTL}
    return {canonical: arguments, dq_name(canonical): arguments, xq_name(canonical): dead}


def _delivery(message: MessageProxy) -> Delivery:
    assert isinstance(message, Delivery)
    return message
