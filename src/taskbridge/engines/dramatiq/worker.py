"""What a worker process has besides Dramatiq's own: the hooks, the pump, and an end that keeps to the grace.

It all hangs on the broker, as a middleware, so that a worker started by hand has it too.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from time import monotonic, sleep
from types import FrameType
from typing import Any, Final, cast

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware

from taskbridge.engines.base import Host
from taskbridge.engines.busy import BusySigns
from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.wire import own_queue
from taskbridge.engines.pump import Pump
from taskbridge.engines.runs import WATCH_S, Run, Runs
from taskbridge.engines.settle import prepare_marks, unmark
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.hooks import Event
from taskbridge.schedules.sender import Scheduler

_log = logging.getLogger("taskbridge.dramatiq")

_WAKE_MS: Final = 250
"""How often idle threads look whether the worker stops; Dramatiq's default, a second, would be a part of A4's five."""

_AFTER_GRACE_S: Final = 1.0
"""How long interrupted tasks have to end before the worker stops without them."""

_LATEST_S: Final = 3.5
"""How long after the grace a worker process ends whatever holds it: a hook, a thread, a broker that doesn't answer."""

_LOOK_S: Final = 0.05

_BOOT_LOOK_S: Final = 0.02

_BOOT_S: Final = 10.0
"""How long a worker that has booted waits for Dramatiq's main process to be told of it, at most."""

_STOP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class Life(Middleware):
    """The life of a worker process, from boot to end (rules A4, R8, T2, H).

    Attributes:
        runs: What runs in this process.
        draining: Whether the worker takes nothing new.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pump = Pump(host)
        self._scheduler = Scheduler(host)
        self._busy: BusySigns | None = None
        self.runs: Final = Runs(host)
        self.runs.ends_process = lambda: self._is_whole_process
        self._deadline = 0.0
        self._latest = 0.0
        self._is_whole_process = False
        self._was_told = False
        self.draining: bool = False

    # The worker

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Prepare the process: called in the thread that starts the worker, before any other thread runs."""
        self.draining = False
        self.runs.open()
        self._host.stopping.clear()
        worker.queue_prefetch = worker.worker_threads  # consumers take less: what the free threads need
        worker.worker_timeout = min(worker.worker_timeout, _WAKE_MS)
        self._keep_to_grace(worker)
        work = _engine_broker(broker).work_queue()
        if work is not None:
            cast("Any", worker).work_queue = work
        _engine_broker(broker).opens(worker.worker_threads)
        _engine_broker(broker).hand_over = lambda delivery: worker.consumers[delivery.queue_name].handle_message(
            delivery
        )
        self._host.hooks.call(Event(name="worker_started"))
        self._busy = BusySigns(self._host, lambda: self._full_queues(worker))
        self._busy.start()
        if self._is_whole_process:
            threading.Thread(target=self._watch, args=(worker,), name="taskbridge-watch", daemon=True).start()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Take messages, and what is due, once Dramatiq's main process has been told that this one runs.

        A process that dies before (of its first message, say) is missed only after 30 s (dramatiq/cli.py, main).
        """
        told = _told_main_process()
        if told is None:
            self._begin(broker)
            return
        threading.Thread(target=self._begin_once, args=(told, broker), name="taskbridge-boot", daemon=True).start()

    def _begin_once(self, told: Callable[[], bool], broker: Broker) -> None:
        deadline = monotonic() + _BOOT_S
        while not told() and monotonic() < deadline:
            sleep(_BOOT_LOOK_S)
        self._begin(broker)

    def _begin(self, broker: Broker) -> None:
        prepare_marks(self._host)
        if not self.draining:
            _engine_broker(broker).booted.set()
            self._pump.start()
            self._scheduler.start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Begin to stop."""
        self._drain(worker)
        threading.Thread(target=self._end, args=(worker,), name="taskbridge-grace", daemon=True).start()
        self._host.hooks.call(Event(name="worker_stopping"))
        for (
            running
        ) in worker.workers:  # Dramatiq's own wait counts the time until a thread's end again for each one after
            running.join(max(0.0, self._latest - monotonic()))
        if self._is_whole_process and any(thread.is_alive() for thread in worker.workers):
            self._end_with_stuck_runs(broker)

    def _end_with_stuck_runs(self, broker: Broker) -> None:
        """End the process although tasks are in calls that nothing can interrupt; their messages go back (rule R8).

        Dramatiq would wait once more for each of these threads, until `_end` ends the process, and the runs with it.
        """
        stuck = self.runs.all()
        _log.warning("the worker ends; %d tasks can't be interrupted, and their messages go back", len(stuck))
        unmark(self._host, [run.message for run in stuck])
        _engine_broker(broker).closed()
        logging.shutdown()
        os._exit(0)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Give back what is left: tasks that could not be interrupted, such as those inside a long call into C."""
        abandoned = self.runs.all()
        for run in abandoned:
            run.holder.abandoned = True
        if abandoned and self._host.marks is not None:
            try:
                self._host.marks.all_given_back(timeout_s=_AFTER_GRACE_S)
            except BrokerUnavailable as exc:
                _log.warning("%d runs that were given up will count as lost: %s", len(abandoned), exc)
        _engine_broker(broker).closed()
        if self._busy is not None:
            self._busy.stop()
        self._scheduler.stop()
        self._pump.stop()

    def _full_queues(self, worker: Worker) -> list[str]:
        """Return the queues that are consumed here, if all threads are taken."""
        slots = _engine_broker(worker.broker).slots
        if self.draining or slots is None or slots.full_for_s() == 0:
            return []
        living = [name for name, consumer in list(worker.consumers.items()) if consumer.is_alive()]
        own = [own_queue(self._host.settings.namespace, name) for name in living if not name.endswith(".DQ")]
        return [queue for queue in own if queue is not None]

    def _drain(self, worker: Worker) -> None:
        """Take nothing new from now on; what runs has the grace. Does nothing the second time."""
        if self.draining:
            return
        self._deadline = monotonic() + self._host.settings.grace_s
        self.draining = True
        _engine_broker(worker.broker).closes()
        for thread in worker.workers:
            thread.stop()

    def _end(self, worker: Worker) -> None:
        """Wait until nothing runs or the grace is over, and then interrupt."""
        while monotonic() < self._deadline and any(thread.is_alive() for thread in worker.workers):
            sleep(_LOOK_S)
        self._interrupt()
        self._pump.stop(_AFTER_GRACE_S)
        if self._is_whole_process:
            sleep(max(0.0, self._deadline + _LATEST_S - monotonic()))
            _log.error("the worker has not ended by itself and is ended now")
            os._exit(0)

    def _interrupt(self, *, but: Collection[Run] = ()) -> None:
        """Interrupt all that runs, and let nothing wait for a broker any longer."""
        self._host.stopping.set()
        self.runs.interrupt(but=but)

    def _watch(self, worker: Worker) -> None:
        """End the process if a task is stuck; once the worker stops, `_end` sees to that."""
        while not self.draining:
            sleep(WATCH_S)
            stuck = self.runs.stuck()
            if stuck and not self.draining:
                self._crash(worker, stuck)

    def _crash(self, worker: Worker, stuck: Sequence[Run]) -> None:
        """End the process with the tasks that are stuck: they are lost, and all else is given back."""
        for run in stuck:
            _log.critical(
                "task %s id %s attempt %d is stuck after its time limit: the worker process ends with it",
                run.message.task,
                run.message.id,
                run.message.attempt,
            )
        self._drain(worker)
        self._interrupt(but=stuck)
        deadline = monotonic() + _AFTER_GRACE_S
        while monotonic() < deadline and len(self.runs.all()) > len(stuck):
            sleep(_LOOK_S)
        unmark(self._host, [run.message for run in self.runs.all() if run not in stuck])
        _engine_broker(worker.broker).closed(keep=[run.holder for run in stuck])
        logging.shutdown()
        os._exit(1)

    def _keep_to_grace(self, worker: Worker) -> None:
        """Make the worker's stop end soon after the grace: its own timeout is 10 minutes by default."""
        stock_stop: Callable[[int], None] = worker.stop

        def stop(timeout: int = 600_000) -> None:
            self._drain(worker)
            left_s = min(timeout / 1000, max(0.0, self._deadline - monotonic()) + _AFTER_GRACE_S)
            self._latest = monotonic() + left_s
            stock_stop(int(left_s * 1000))

        cast("Any", worker).stop = stop
        self._drain_at_signal(worker)

    def _drain_at_signal(self, worker: Worker) -> None:
        """Take nothing new from the moment of the signal: Dramatiq's process looks only once a second (cli.py)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _STOP_SIGNALS:
            stock = signal.getsignal(number)
            if callable(stock) and getattr(stock, "__module__", "") == "dramatiq.cli":
                signal.signal(number, self._handler(worker, stock))
                self._is_whole_process = True

    def _handler(
        self, worker: Worker, stock: Callable[[int, FrameType | None], Any]
    ) -> Callable[[int, FrameType | None], Any]:
        def handle(number: int, frame: FrameType | None) -> Any:
            if self._was_told:  # Dramatiq's own handler would now end the process, and what runs would count as lost
                return None
            self._was_told = True
            self._drain(worker)
            return stock(number, frame)

        return handle


def _engine_broker(broker: Broker) -> EngineBroker:
    assert isinstance(broker, EngineBroker)
    return broker


def _told_main_process() -> Callable[[], bool] | None:
    """Return what says whether Dramatiq's main process knows that this one has booted; None outside its command line.

    It is told by an event, which only the function below on the stack holds (dramatiq/cli.py, worker_process).
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "worker_process":
        frame = frame.f_back
    event = None if frame is None else frame.f_locals.get("event")
    return getattr(event, "is_set", None)
