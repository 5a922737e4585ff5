"""Dramatiq's broker for tests, StubBroker, made to keep to priorities: the real worker, embedded in one process."""

from __future__ import annotations

from collections.abc import Sequence

from dramatiq import Consumer
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import Middleware

from taskbridge.engines.dramatiq.broker import Arrival, EngineBroker, EngineConsumer
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.memory_queue import LeveledQueue, Place
from taskbridge.engines.dramatiq.wire import MemoryWire


class MemoryBroker(EngineBroker, StubBroker):
    """A StubBroker on the queues of a wire, with what StubBroker can do in tests: `join`, `flush`, `dead_letters`."""

    def __init__(self, wire: MemoryWire, middleware: list[Middleware]) -> None:
        super().__init__(middleware=middleware)
        self._wire = wire

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, and the one for its delayed messages.

        They are there before anybody is told of them: a worker that runs starts consumers then.
        """
        if queue_name in self.queues:
            return
        delayed = dq_name(queue_name)
        self.emit_before("declare_queue", queue_name)
        for name in (queue_name, delayed):
            self.queues[name] = queue = self._wire.queue(name)
            self.dead_letters_by_queue[name] = queue.dead
        self.delay_queues.add(delayed)
        self.emit_after("declare_queue", queue_name)
        self.emit_after("declare_delay_queue", delayed)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 100) -> Consumer:
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return _MemoryConsumer(self, queue_name, prefetch, timeout)

    def closed(self) -> None:
        """Put back what threads still run that were given up."""
        for queue in self.queues.values():
            queue.give_back(queue.taken())


class _MemoryConsumer(EngineConsumer):
    """Takes from a queue in memory."""

    def __init__(self, broker: MemoryBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout_ms)
        self._queue: LeveledQueue = broker.queues[queue_name]

    def take(self, most: int, *, soon: bool) -> Sequence[Arrival]:
        return [Arrival(self, place, place.text) for place in self._queue.take(most)]

    def wait(self) -> None:
        self._queue.wait(self._timeout_s)

    def end(self, place: Place) -> None:
        self._queue.end(place)

    def give_back(self, places: Sequence[Place], *, suspect: bool = False) -> None:
        self._queue.give_back(places)

    def fail(self, message: Delivery) -> None:
        message.keeps_error = True  # which `StubBroker.join` raises
        self._queue.fail(message)
