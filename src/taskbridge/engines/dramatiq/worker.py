"""The life of a Dramatiq worker: a middleware of the broker, so that a worker started by hand has it too."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware

from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.deliveries import OncePerOutcome
from taskbridge.engines.dramatiq.fast import entry as fast
from taskbridge.engines.dramatiq.wire import own_queue
from taskbridge.engines.worker_life import LOOK_S, WorkerLife
from taskbridge.logs import logger
from taskbridge.runner import Run, Runs

_WAKE_MS: Final = 250
"""How often idle threads look whether the worker stops; Dramatiq's default, a second, would be a part of A4's five."""

_TOLD_S: Final = 0.1
"""How long after its boot a worker process takes its first message.

Dramatiq's main process is told that this one runs as soon as `Worker.start` has returned (dramatiq/cli.py,
worker_process). One that dies before that, of its first message, say, is missed only after 30 s.
"""

_ONCE_PER_OUTCOME: Final = OncePerOutcome()

_STOP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class DramatiqLife(WorkerLife, Middleware):
    """The life of a worker process."""

    def __init__(self, host: Host, broker: EngineBroker) -> None:
        super().__init__(host, Runs())
        self._broker = broker
        self._worker: Worker | None = None
        self.has_main_process: bool = False  # whether Dramatiq's command line has started this process, for one worker
        self._was_told = False

    # What Dramatiq tells

    def after_process_boot(self, broker: Broker) -> None:
        """Note whether Dramatiq's command line has started this process, for one worker.

        It starts a child of its own for each. Tests of an application say that they boot, too, in whichever process.
        """
        is_main = threading.current_thread() is threading.main_thread()
        self.has_main_process = is_main and multiprocessing.parent_process() is not None and not self.is_embedded

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Prepare the process: called in the thread that starts the worker, before any other thread runs."""
        self._worker = worker
        own = logging.getLogger("dramatiq.worker.WorkerThread")  # noqa: TID251 - it is Dramatiq's
        own.addFilter(_ONCE_PER_OUTCOME)  # before the other one, which makes text of what this looks at
        logger(own.name)
        worker.queue_prefetch = worker.worker_threads  # consumers take less: what the free threads need
        worker.worker_timeout = min(worker.worker_timeout, _WAKE_MS)
        self.boot(is_whole_process=self.has_main_process)
        fast.enter(self._broker, worker, is_wanted=self._host.settings.fast)
        self._broker.reception.pauses = self._host.pauses
        self._broker.opens(worker.worker_threads)
        if self.has_main_process:
            self._drain_at_signal()
        self.started()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Take messages, and what is due."""
        if self.has_main_process:
            timer = threading.Timer(_TOLD_S, self._take)
            timer.daemon = True
            timer.start()
        else:
            self._take()

    def _take(self) -> None:
        self.run()
        if not self.draining:
            self._broker.booted.set()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Wait until all tasks have ended, or the grace is over."""
        self.drain()
        for thread in worker.workers:
            thread.stop()
        # Dramatiq's own wait counts the time until a thread's end again for each one after.
        while any(thread.is_alive() for thread in worker.workers) and not self.abandoned.wait(LOOK_S):
            pass
        self.stopping()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Give back what is left."""
        self._broker.closed()
        self.end()
        self._worker = None

    # What the life asks of the worker

    def stop_taking(self) -> None:
        self._broker.draining = True

    def holds_nothing(self) -> bool:
        return self._broker.slots is None or self._broker.slots.are_free()

    def ask_to_end(self) -> None:
        """Send SIGTERM to Dramatiq's main process, which passes it on; it would take this one's end for a crash."""
        parent = multiprocessing.parent_process()
        pid = None if parent is None or not parent.is_alive() else parent.pid
        os.kill(pid or os.getpid(), signal.SIGTERM)

    def abandon(self, lost: Collection[Run]) -> list[Any]:
        """Return the messages whose tasks still run; what their threads do with them from here on is ignored."""
        for run in self.runs.all():
            run.holder.abandoned = True
        return super().abandon(lost)

    def give_back(self) -> None:
        if self._worker is not None:
            self._broker.closed()

    def full_queues(self) -> Sequence[str]:
        slots = self._broker.slots
        return [] if slots is None or slots.full_for_s() == 0 else self.consumed_queues()

    def consumed_queues(self) -> Sequence[str]:
        worker = self._worker
        if worker is None:
            return []
        living = [name for name, consumer in list(worker.consumers.items()) if consumer.is_alive()]
        own = [own_queue(self._host.settings.namespace, name) for name in living if not name.endswith(".DQ")]
        return [queue for queue in own if queue is not None]

    def slots(self) -> int:
        return 0 if self._broker.slots is None else self._broker.slots.total

    def _drain_at_signal(self) -> None:
        """Take nothing new from the moment of the signal: Dramatiq looks only once a second (dramatiq/cli.py)."""
        for number in _STOP_SIGNALS:
            stock = signal.getsignal(number)
            if callable(stock):
                signal.signal(number, partial(self._told, stock))

    def _told(self, stock: Callable[[int, Any], Any], number: int, frame: Any) -> Any:
        if self._was_told:  # Dramatiq's own handler would now end the process, and what runs would count as lost
            return None
        self._was_told = True
        self.drain()
        return stock(number, frame)
