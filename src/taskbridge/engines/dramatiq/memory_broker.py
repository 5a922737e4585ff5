"""Dramatiq's broker for tests, StubBroker, made to keep to priorities: the real worker, embedded in one process."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from queue import Empty
from time import sleep

from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.errors import ConnectionClosed, QueueNotFound
from dramatiq.middleware import Middleware

from taskbridge import locks
from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.memory_queue import LeveledQueue
from taskbridge.engines.dramatiq.slots import Slots, Ticket
from taskbridge.engines.dramatiq.wire import MemoryWire
from taskbridge.engines.settle import NotSettledError


class MemoryBroker(EngineBroker, StubBroker):
    """A StubBroker on the queues of a wire, with what StubBroker can do in tests: `join`, `flush`, `dead_letters`."""

    def __init__(self, wire: MemoryWire, middleware: list[Middleware]) -> None:
        super().__init__(middleware=middleware)
        self._wire = wire
        self._in_hand: dict[int, tuple[LeveledQueue, Delivery]] = {}
        self._lock = locks.Lock()

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, and the one for its delayed messages."""
        if queue_name in self.queues:
            return
        delayed = dq_name(queue_name)
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = self._wire.queue(queue_name)
        self.queues[delayed] = self._wire.queue(delayed)
        self.emit_after("declare_queue", queue_name)
        self.delay_queues.add(delayed)
        self.emit_after("declare_delay_queue", delayed)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        """Return a consumer of a queue.

        Raises:
            QueueNotFound: It was not declared.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return _MemoryConsumer(self, queue_name, prefetch, timeout)

    def hold(self, queue: LeveledQueue, delivery: Delivery) -> None:
        """Note that a message is in hand."""
        with self._lock:
            self._in_hand[id(delivery)] = queue, delivery

    def let_go(self, delivery: Delivery) -> bool:
        """Note that a message is no longer in hand; return whether it was."""
        with self._lock:
            return self._in_hand.pop(id(delivery), None) is not None

    def closed(self, *, keep: Collection[Delivery] = ()) -> None:
        """Put back what threads still run that were given up."""
        with self._lock:
            left = list(self._in_hand.values())
            self._in_hand.clear()
        for queue, delivery in left:
            if delivery not in keep:
                queue.put_back(delivery.place)


class _MemoryConsumer(Consumer):
    def __init__(self, broker: MemoryBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._queue: LeveledQueue = broker.queues[queue_name]
        self._dead = broker.dead_letters_by_queue[queue_name]
        self._timeout_s = timeout_ms / 1000
        is_delayed = queue_name.endswith(".DQ")
        self._slots = Slots(prefetch) if is_delayed or broker.slots is None else broker.slots
        self._wake = locks.Event()
        self._ticket: Ticket | None = None

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there is none for a while, or no thread for it.

        Raises:
            ConnectionClosed: The worker stops.
        """
        if self._broker.draining:
            sleep(self._timeout_s)
            return None
        if not self._take_slot():
            return None
        delivery = None
        try:
            delivery = self._take()
        except NotSettledError as exc:
            raise ConnectionClosed(exc) from None
        finally:
            if delivery is None:
                self._slots.release()
        if delivery is None:
            self._queue.wait(self._timeout_s)
        return delivery

    def _take_slot(self) -> bool:
        if self._ticket is None:
            self._ticket = self._slots.ticket(self._wake.set)
        if not self._ticket.granted:
            self._wake.wait(self._timeout_s)
        self._wake.clear()
        if not self._ticket.granted:  # not in time, or what woke it came late and was for the ticket before
            return False
        self._ticket = None
        return True

    def _take(self) -> Delivery | None:
        try:
            place = self._queue.get_nowait()
        except Empty:
            return None
        try:
            delivery = self._broker.reception.admit(self._queue_name, place[2], place=place)
        except NotSettledError:
            self._queue.put_back(place)
            raise
        if delivery is None:
            self._queue.task_done()
        else:
            self._broker.hold(self._queue, delivery)
        return delivery

    def ack(self, message: MessageProxy) -> None:
        """Be done with a message, or put one back that returns."""
        assert isinstance(message, Delivery)
        if not self._broker.let_go(message):
            return  # it was given back while its thread still ran it
        if message.returns:
            self._queue.put_back(message.place)
        else:
            self._queue.task_done()
        self._slots.release()

    def nack(self, message: MessageProxy) -> None:
        """Keep a message among Dramatiq's own dead ones."""
        assert isinstance(message, Delivery)
        if not self._broker.let_go(message):
            return
        self._dead.append(message)
        self._queue.task_done()
        self._slots.release()

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Put messages back."""
        for message in messages:
            assert isinstance(message, Delivery)
            message.returns = True
            self.ack(message)

    def close(self) -> None:
        """Leave the line for a slot."""
        if self._ticket is not None:
            self._slots.give_up(self._ticket)
            self._ticket = None
