"""The life of a Celery worker, in its main process; its tasks run in threads there, or in the children of a pool.

The threads of a life start after the pool's children are forked, and end after the pool.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from taskbridge.engines.base import Host
from taskbridge.engines.celery.carrier import ChildRuns, Slots
from taskbridge.engines.celery.stock import worker_state
from taskbridge.engines.celery.wire import own_queue
from taskbridge.engines.settle import NotSettledError, bury_unreadable
from taskbridge.engines.worker_life import WorkerLife
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.runner import Run

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_log = logger("taskbridge.celery")

_FINISHED_S: Final = 1.0  # how long the background has to finish what it was given


class CeleryLife(WorkerLife):
    """The life of a worker, in its main process."""

    def __init__(self, engine: CeleryEngine, host: Host, runs: ChildRuns) -> None:
        super().__init__(host, runs)
        self._engine = engine
        self._child_runs = runs
        self.announce_signal: Callable[[int | None], None] = runs.announce_signal
        self._consumer: Any = None
        self.has_children: bool = False  # whether tasks run in the children of a pool
        # Does, one after the other, what would make Celery's main loop wait for the broker.
        self.background: Slots = Slots(1)

    # What the worker's consumer calls

    def opens(self, consumer: Any, *, has_children: bool) -> None:
        """Prepare a worker, before its pool's children are forked."""
        self._consumer = consumer
        self.has_children = has_children
        self._child_runs.worker_pid = os.getpid()
        self._child_runs.is_draining = False
        is_main = threading.current_thread() is threading.main_thread()
        self.boot(is_whole_process=is_main and not self.is_embedded)

    def start(self) -> None:
        """Start the threads and call the hooks, in the worker's main thread, before it consumes anything."""
        if not self.is_embedded:
            self.started(has_children=self.has_children)
        if self._engine.settings.url.broker == "redis":
            self._engine.queues.start()
        self.run(has_children=self.has_children)

    def ends(self) -> None:
        """Stop the threads and call the hooks, after the pool has ended and the connection is closed."""
        if not self.has_children and not self.is_embedded:
            self.stopping()
        self._host.stopping.set()  # so that nothing in the background waits for the broker any longer
        self.background.shutdown(wait=False)
        self.background.join(_FINISHED_S)
        self.background = Slots(1)
        if self._engine.settings.url.broker == "redis":
            self._engine.queues.stop()
        self.end()
        self._child_runs.worker_pid = 0

    # What the life asks of the worker

    def stop_taking(self) -> None:
        """Wake the main loop, which else sleeps until it is time for something; Celery itself stops consuming."""
        self._engine.wake()

    def take_no_more(self) -> None:
        self._consumer.stop_consuming()

    def drain(self) -> None:
        """Take nothing new, and let the children of the pool know."""
        self._child_runs.is_draining = True
        super().drain()

    def is_stopping(self) -> bool:
        """Return whether the worker was told to stop, here or in the parent of this child."""
        return self._child_runs.is_draining

    def holds_nothing(self) -> bool:
        return not worker_state.reserved_requests

    def ask_to_end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def is_idle(self) -> bool:
        return not (self.active_requests() if self.has_children else self.runs.all())

    def interrupt(self) -> None:
        if self.has_children:
            self._signal_children(self.active_requests(), signal.SIGTERM)
        else:
            self.runs.interrupt()

    def abandon(self, lost: Collection[Run]) -> list[Message]:
        """Return the messages whose tasks still run; kill the children in which they do."""
        if not self.has_children:
            return super().abandon(lost)
        requests = self.active_requests()
        self._signal_children(requests, signal.SIGKILL)
        messages = [getattr(request.message, "taskbridge", None) for request in requests]
        return [message for message in messages if message is not None]

    def give_back(self) -> None:
        """Write the acknowledgements that wait, and requeue the rest; RabbitMQ does it as the connection ends."""
        self._consumer.flush_acknowledgements()
        if self._engine.settings.url.broker == "redis":
            self._engine.queues.stop()

    def full_queues(self) -> Sequence[str]:
        if len(self.active_requests()) < self._consumer.pool.num_processes:
            return []
        return self.consumed_queues()

    def consumed_queues(self) -> Sequence[str]:
        names = [queue.name for queue in list(self._engine.native.amqp.queues.consume_from.values())]
        own = [own_queue(self._host.settings.namespace, name) for name in names]
        return [queue for queue in own if queue is not None]

    def slots(self) -> int:
        """Return how many threads run tasks; each child of a pool runs one at a time, and their parent none."""
        if self.has_children:
            return int(os.getpid() != self._child_runs.worker_pid)
        return int(self._consumer.pool.num_processes)

    # What the pool runs

    def active_requests(self) -> list[Any]:
        """Return the requests that Celery's pool has accepted."""
        return copied(worker_state.active_requests)

    def _signal_children(self, requests: Iterable[Any], number: signal.Signals) -> None:
        for request in requests:
            if request.worker_pid:
                self.announce_signal(request.worker_pid)
                with suppress(ProcessLookupError):
                    os.kill(request.worker_pid, number)

    # Messages that can't run

    def bury_raw(self, raw: bytes, error: Exception, *, then: Callable[[], None], **about: Any) -> None:
        """Bury bytes that can't be read (rule Q7), soon, as `bury_unreadable` does, and then do something."""

        def work() -> None:
            with suppress(NotSettledError):  # the worker stops: its lease runs out, and another worker tries
                bury_unreadable(self._host, raw, error=error, **about)
                then()

        self.background.put(work)


def copied(requests: Iterable[Any]) -> list[Any]:
    """Return what is in a set of requests that other threads may change meanwhile."""
    while True:
        with suppress(RuntimeError):  # it was changed
            return list(requests)
