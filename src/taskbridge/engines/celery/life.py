"""What a worker's main process has besides Celery's own: hooks, pump, leases, and an end that keeps to the grace.

Its threads start after the pool's children are forked, and end after the pool.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from taskbridge import locks
from taskbridge.engines.base import Host
from taskbridge.engines.busy import BusySigns
from taskbridge.engines.celery.attempts import Attempts
from taskbridge.engines.celery.carrier import Carrier
from taskbridge.engines.celery.runs import ChildRuns
from taskbridge.engines.celery.stock import worker_state
from taskbridge.engines.pump import Pump
from taskbridge.engines.runs import ORDERLY_S, WATCH_S, Run
from taskbridge.engines.settle import NotSettledError, bury_unreadable, prepare_marks, unmark
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError
from taskbridge.hooks import Event
from taskbridge.schedules.sender import Scheduler

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_log = logging.getLogger("taskbridge.celery")

_LOOK_S: Final = 0.05

_AFTER_GRACE_S: Final = 3.0
"""How long interrupted tasks have to end before the worker ends without them; rule A4 allows 5 s in all."""

_LAST_S: Final = 1.0
"""How long the broker then has to answer."""

_PAUSE_S: Final = 1.0
_UNMARK_S: Final = 1.0
_NOT_UNMARKED: Final = "the store does not answer, interrupted runs will count as lost: %s"

_Work = Callable[[], None]


class Desk:
    """A thread for what has to wait for the broker, so that Celery's main loop does not."""

    def __init__(self) -> None:
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskbridge-desk", daemon=True)
            self._thread.start()

    def submit(self, work: _Work) -> None:
        """Have something done, after what was submitted before."""
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                _log.exception("a message that can't run could not be dealt with")

    def stop(self, timeout_s: float) -> None:
        """Finish what was submitted, within this time."""
        self._work.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None


class Life:
    """The life of a worker, in its main process (rules A4, R8, H).

    Attributes:
        pid: The worker's main process; None while there is no worker.
        stopping: Whether it takes nothing new.
        desk: For messages that can't run.
        attempts: What the worker runs, and has run lately.
    """

    def __init__(self, engine: CeleryEngine, host: Host, runs: ChildRuns, carrier: Carrier) -> None:
        self._engine = engine
        self._host = host
        self.runs: Final = runs
        self._carrier = carrier
        self._pump = Pump(host)
        self._scheduler = Scheduler(host)
        self._busy = BusySigns(host, self._full_queues)
        self._begun = locks.Event()
        self._ended = locks.Event()
        self._consumer: Any = None
        self._has_children = False
        self._embedding = locks.Lock()
        self._is_embedded = False
        self._is_whole_process = False
        self.runs.ends_process = lambda: self._is_whole_process
        self.pid: int | None = None
        self.stopping: bool = False
        self.desk: Desk = Desk()
        self.attempts: Attempts = Attempts()

    def opens(self, consumer: Any, *, has_children: bool) -> None:
        """Prepare a worker, before its pool's children are forked."""
        self._consumer = consumer
        self._has_children = has_children
        self.pid = os.getpid()
        self._is_whole_process = threading.current_thread() is threading.main_thread() and not self._is_embedded
        self.stopping = False
        self.attempts = Attempts()
        self._begun.clear()
        self._ended.clear()
        self._host.stopping.clear()
        self.runs.open()
        self._carrier.opens(self.pid)

    @contextmanager
    def embedding(self) -> Generator[None, None, None]:
        """Note that the worker is embedded: whoever starts it calls the hooks and keeps to the grace.

        Raises:
            TaskBridgeError: A worker of this bridge runs already.
        """
        if not self._embedding.acquire(blocking=False):
            raise TaskBridgeError("an embedded worker of this bridge runs already; give that one more threads")
        self._is_embedded = True
        try:
            yield
        finally:
            self._is_embedded = False
            self._embedding.release()

    def start(self) -> None:
        """Start the threads and call the hooks, in the worker's main thread, before it consumes anything."""
        if not self._has_children and not self._is_embedded:
            self._host.hooks.call(Event(name="worker_started"))
        if not self._has_children:
            prepare_marks(self._host)
        self.desk.start()
        if self._engine.settings.url.broker == "redis":
            self._engine.leases.start()
        self._pump.start()
        self._scheduler.start()
        self._busy.start()
        if not self._is_embedded:
            threading.Thread(target=self._keep_to_grace, name="taskbridge-grace", daemon=True).start()
        if self._is_whole_process and not self._has_children:  # a child with a stuck task ends by itself (`Runs`)
            threading.Thread(target=self._watch, name="taskbridge-watch", daemon=True).start()

    # Runs that are stuck

    def _watch(self) -> None:
        """End the process if a run is stuck; once the worker stops, `_keep_to_grace` sees to that."""
        while not self._begun.wait(WATCH_S):
            stuck = self.runs.stuck()
            if stuck and not self._begun.is_set():
                self._crash(stuck)

    def _crash(self, stuck: Sequence[Run]) -> None:
        """End the process with the runs that are stuck: they are lost, and all else is given back (rule T2)."""
        for run in stuck:
            _log.critical(
                "task %s id %s attempt %d is stuck after its time limit: the worker process ends with it",
                run.message.task,
                run.message.id,
                run.message.attempt,
            )
        self._consumer.stop_consuming()
        self._host.stopping.set()
        self.runs.interrupt(but=stuck)
        deadline = monotonic() + ORDERLY_S
        while monotonic() < deadline and len(self.runs.all()) > len(stuck):
            sleep(_LOOK_S)
        self._consumer.flush_acknowledgements()
        unmark(self._host, [run.message for run in self.runs.all() if run not in stuck])
        if self._host.marks is not None:
            self._host.marks.close()  # from here on, the marks that are left are a dead worker's
        if self._engine.settings.url.broker == "redis":
            self._engine.leases.stop()
        logging.shutdown()
        os._exit(1)  # RabbitMQ requeues what an ended connection held

    # Messages that can't run

    def bury_raw(
        self,
        raw: bytes,
        error: Exception,
        *,
        then: Callable[[], None],
        reason: str = "undecodable",
        message_id: object = None,
    ) -> None:
        """Bury bytes that can't be read (rule Q7), soon; `message_id` is what they call themselves, if known."""
        _log.error("a message of %d bytes can't be read and is dead: %s", len(raw), error)

        def work() -> None:
            with suppress(NotSettledError):  # the worker stops: its lease runs out, and another worker tries
                bury_unreadable(self._host, raw, reason=reason, error=error, message_id=message_id)
                then()

        self.desk.submit(work)

    def bury_leased(self, tag: str, raw: bytes, error: Exception) -> None:
        """Bury bytes that were found under a lease that was over."""
        self.bury_raw(raw, error, then=lambda: self._engine.leases.end(tag))

    def _full_queues(self) -> list[str]:
        """Return the queues that are consumed here, if all slots are taken."""
        if len(self.active_requests()) < self._consumer.pool.num_processes:
            return []
        return self._engine.consumed_queues()

    def free_slots(self) -> int:
        """Return how many more tasks the pool can run at once."""
        if self._consumer is None or self._consumer.pool is None:
            return 1
        slots: int = self._consumer.pool.num_processes
        return slots - len(worker_state.reserved_requests)

    # The end

    def begin_stop(self) -> None:
        """Begin to stop: from here the grace counts. Fit for a signal handler; a second time does nothing."""
        self.stopping = True
        self._begun.set()
        if self._consumer is not None:
            self._consumer.wake()  # else its loop sleeps on, until it is time for something

    def active_requests(self) -> list[Any]:
        """Return the requests that Celery's pool has accepted."""
        while True:
            with suppress(RuntimeError):  # changed by another thread meanwhile
                return list(worker_state.active_requests)

    def _keep_to_grace(self) -> None:
        self._begun.wait()
        deadline = monotonic() + self._host.settings.grace_s
        while monotonic() < deadline:
            if self._ended.wait(_LOOK_S):
                return
        self._host.stopping.set()
        self._interrupt()
        if not self._ended.wait(_AFTER_GRACE_S):
            self._end_without_them()

    def _interrupt(self) -> None:
        """Interrupt what runs: it is given back (rule R8)."""
        if not self._has_children:
            self.runs.interrupt()
            return
        for request in self.active_requests():
            if request.worker_pid:
                with suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGTERM)

    def _end_without_them(self) -> None:
        """End the process although tasks are stuck in it or in a child, in a call that nothing can interrupt."""
        requests = self.active_requests()
        _log.warning("the worker ends; %d tasks can't be interrupted, and their messages go back", len(requests))
        for request in requests:
            if self._has_children and request.worker_pid:
                with suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGKILL)
        # In a thread, for a broker that does not answer must not hold the process.
        last = threading.Thread(target=self._give_back, args=(requests,), name="taskbridge-last", daemon=True)
        last.start()
        last.join(_LAST_S)
        logging.shutdown()
        os._exit(0)  # RabbitMQ requeues what an ended connection held

    def _give_back(self, requests: list[Any]) -> None:
        self._consumer.flush_acknowledgements()
        if self._has_children:
            messages = [self._consumer.message_of(request) for request in requests]
            unmark(self._host, [message for message in messages if message is not None])
        else:
            self.unmark_all()
        if self._engine.settings.url.broker == "redis":
            self._engine.leases.stop()

    def unmark_all(self) -> None:
        """Take the marks of all runs in this process away, so that they don't count as attempts."""
        marks = self._host.marks
        if marks is not None:
            try:
                marks.all_given_back(timeout_s=_UNMARK_S)
            except BrokerUnavailable as exc:
                _log.warning(_NOT_UNMARKED, exc.problem)

    def ends(self) -> None:
        """Stop the threads, after the pool has ended and the connection is closed."""
        self._host.stopping.set()
        self._busy.stop()
        self._scheduler.stop()
        self._pump.stop()
        self.desk.stop(_PAUSE_S)
        self.desk = Desk()
        if self._engine.settings.url.broker == "redis":
            self._engine.leases.stop()
        self._begun.set()
        self._ended.set()
        self.pid = None

    def begins_to_end(self) -> None:
        """Call the hooks, in the worker's main thread, as it begins to stop."""
        self.begin_stop()
        if not self._has_children and not self._is_embedded:
            self._host.hooks.call(Event(name="worker_stopping"))
