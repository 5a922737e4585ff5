"""Dramatiq's RabbitMQ broker with confirms, four priorities, and consumers that hold nothing they have no thread for.

The queues are declared as `RabbitmqBroker(max_priority=3)` declares them, so that plain Dramatiq clients and this
package's own publisher agree with it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

import pika
import pika.exceptions
from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker
from dramatiq.common import dq_name, q_name, xq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware

from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.slots import Slots, Ticket
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

_OWNER_S: Final = 0.5
"""How long a consumer that closes waits for its own thread to be done with the connection."""

_FLUSH_S: Final = 2.0
"""How long a consumer that closes waits for its last acknowledgements to be sent."""

_TROUBLE: Final = (pika.exceptions.AMQPError, OSError)


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

        # What was returned counts as delivered before. Without a store nobody can tell that it was not started.
        self.may_return: bool = settings.store is not None

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue, which it declares.

        Raises:
            ConnectionClosed: RabbitMQ doesn't do its part.
        """
        self.declare_queue(queue_name)
        return _SparingConsumer(self, queue_name, prefetch, timeout)


class _SparingConsumer(Consumer):
    """Takes messages of one queue over a connection of its own, which only the consumer's own thread may touch."""

    def __init__(self, broker: SparingRabbitmqBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._timeout_s = timeout_ms / 1000
        is_delayed = queue_name.endswith(".DQ")
        self._slots = Slots(prefetch) if is_delayed or broker.slots is None else broker.slots
        self._ticket: Ticket | None = None
        self._arrived: deque[tuple[int, bool, bytes]] = deque()
        self._arrived_at = 0.0
        self._consumer_tag: str | None = None
        self._using = threading.Lock()
        self._is_cancelled = False
        try:
            self._connection: Any = pika.BlockingConnection(broker.parameters)
            self._channel: Any = self._connection.channel()
            self._declare()
            self._channel.basic_qos(prefetch_count=prefetch)
            self._channel.add_on_cancel_callback(self._on_cancel)
            self._begin()
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there is none for a while, or no thread for it.

        Raises:
            ConnectionClosed: RabbitMQ doesn't do its part, whatever the reason; Dramatiq then makes another consumer.
        """
        if not self._broker.is_booted():
            return None
        try:
            with self._using:
                return self._next()
        except (*_TROUBLE, NotSettledError) as exc:
            raise ConnectionClosed(exc) from None

    def _next(self) -> MessageProxy | None:
        if self._broker.draining:
            self._drain()
            return None
        if self._is_cancelled or self._channel.is_closed:
            raise ConnectionClosed(f"the consumer of {self._queue_name} was cancelled")
        if self._consumer_tag is None:
            self._resume()
        elif not self._arrived:
            self._leave_line()
            self._connection.process_data_events(self._timeout_s)
            if not self._arrived and self._slots.full_for_s() > _FULL_S:
                self._send_back()  # nothing, as yet: what comes from now on would wait here for a long task's end
        return self._hand_out() if self._arrived else None

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message that is done with, or return one to its queue that goes back."""
        delivery = _delivery(message)
        _, tag = delivery.place
        if delivery.returns:
            self._settle(delivery, partial(self._channel.basic_nack, tag, requeue=True))
        else:
            self._settle(delivery, partial(self._channel.basic_ack, tag))

    def nack(self, message: MessageProxy) -> None:
        """Move a message to Dramatiq's own dead ones, for its dashboards."""
        delivery = _delivery(message)
        _, tag = delivery.place
        self._settle(delivery, partial(self._channel.basic_nack, tag, requeue=False))

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Do nothing: RabbitMQ returns what is unacknowledged when the connection is closed."""

    def close(self) -> None:
        """Send the last acknowledgements and close the connection.

        Raises:
            ConnectionClosed: It broke, or the consumer's own thread still waits on it for a reply.
        """
        if not self._using.acquire(timeout=_OWNER_S):  # pika's connections can't bear two threads
            raise ConnectionClosed("RabbitMQ does not answer")
        try:
            self._close()
        finally:
            self._using.release()

    def _close(self) -> None:
        self._leave_line()
        try:
            flushed = threading.Event()
            self._connection.add_callback_threadsafe(flushed.set)
            deadline = monotonic() + _FLUSH_S
            while not flushed.is_set() and monotonic() < deadline:
                self._connection.process_data_events(0.05)
            self._connection.close()
        except _TROUBLE as exc:
            raise ConnectionClosed(exc) from None

    def _declare(self) -> None:
        """Declare the queue, the one for its delayed messages and the one for its dead, as Dramatiq does."""
        canonical = q_name(self._queue_name)
        arguments = queue_arguments(canonical)
        self._channel.queue_declare(queue=canonical, durable=True, arguments=arguments)
        self._channel.queue_declare(queue=dq_name(canonical), durable=True, arguments=arguments)
        self._channel.queue_declare(
            queue=xq_name(canonical), durable=True, arguments={"x-message-ttl": DEAD_MESSAGE_TTL}
        )
        self._broker.queues_pending.discard(canonical)

    def _begin(self) -> None:
        self._consumer_tag = self._channel.basic_consume(self._queue_name, self._on_message)

    def _on_message(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        if not self._arrived:
            self._arrived_at = monotonic()
        self._arrived.append((method.delivery_tag, method.redelivered, body))

    def _on_cancel(self, _frame: Any) -> None:
        self._is_cancelled = True  # the queue was deleted

    def _hand_out(self) -> Delivery | None:
        """Return what arrived first, if there is a thread for it; send all back if there is none for too long."""
        if not self._has_slot():
            self._connection.process_data_events(self._timeout_s)  # ends when a slot is granted
            if not self._has_slot():
                if self._broker.may_return and monotonic() - self._arrived_at > _PATIENCE_S:
                    self._send_back()
                return None
        tag, redelivered, body = self._arrived.popleft()
        place = self._channel, tag
        delivery = self._broker.reception.admit(self._queue_name, body, place=place, redelivered=redelivered)
        if delivery is None:
            self._channel.basic_ack(tag)
        else:
            self._ticket = None  # the message holds the slot
            self._arrived_at = monotonic()
        return delivery

    def _send_back(self) -> None:
        """Return what arrived to the queue and take nothing more, until there is a thread for it."""
        if self._consumer_tag is not None:
            self._channel.basic_cancel(self._consumer_tag)
            self._consumer_tag = None
        while self._arrived:
            self._channel.basic_nack(self._arrived.popleft()[0], requeue=True)

    def _resume(self) -> None:
        """Consume again once a thread is free, and keep it for what arrives first if something is known to wait."""
        if self._ticket is None:
            if self._slots.full_for_s() > _FULL_S:
                self._connection.process_data_events(self._timeout_s)
            else:
                self._begin()
            return
        if not self._ticket.granted:
            self._connection.process_data_events(self._timeout_s)
            return
        self._begin()
        deadline = monotonic() + _ARRIVAL_S
        while not self._arrived and (left_s := deadline - monotonic()) > 0:
            self._connection.process_data_events(left_s)

    def _drain(self) -> None:
        self._leave_line()
        self._send_back()
        self._connection.process_data_events(self._timeout_s)  # sends acknowledgements

    def _has_slot(self) -> bool:
        if self._ticket is None:
            self._ticket = self._slots.ticket(self._wake)
        return self._ticket.granted

    def _leave_line(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._slots.give_up(ticket)

    def _wake(self) -> None:
        with suppress(pika.exceptions.AMQPError):  # a closed connection: its consumer is about to notice
            self._connection.add_callback_threadsafe(_nothing)

    def _settle(self, delivery: Delivery, act: Callable[[], None]) -> None:
        """Do something to a message in the thread that owns the connection."""
        self._slots.release()
        channel, _ = delivery.place
        with suppress(pika.exceptions.AMQPError):  # a closed connection, as below
            if channel is self._channel:
                self._connection.add_callback_threadsafe(act)
                return
        _log.warning(
            "task %s id %s: the connection was lost meanwhile, so RabbitMQ delivers it again",
            delivery.actor_name,
            delivery.message_id,
        )


def _nothing() -> None:
    """End a wait."""


def _delivery(message: MessageProxy) -> Delivery:
    assert isinstance(message, Delivery)
    return message
