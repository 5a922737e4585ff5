"""The life of a worker process, the same on both engines (rules A4, R8, T2 and H).

| phase | what happens in it | it ends when |
|---|---|---|
| booting | the engine starts its threads or children; nothing is taken | the engine calls `run` |
| running | messages are taken; pump, scheduler and busy signs run | SIGTERM (`drain`), or a run is stuck |
| draining | nothing is taken; what runs may finish within the grace | all has ended, or the grace is over |
| interrupted | `Interrupted` is raised in each run; nothing waits for a broker | all has ended, or 1.5 s are over |
| ended | `worker_stopping` was called and the threads have stopped | the process exits |

A run that has not ended 1.5 s after the grace is inside a call that nothing can interrupt. Its mark is removed and its
message requeued, so that it is no attempt (rule R8), and the process exits without it, with code 0. The same happens
when the engine itself has not ended by then, because its broker doesn't answer.

An engine subclasses `WorkerLife` and says how it stops taking messages, what it runs, and how it requeues.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import count
from math import inf
from time import monotonic, sleep
from typing import Final

from taskbridge import locks
from taskbridge.engines.base import APP_VARIABLE, MOST_MEMORY, MOST_TASKS, Host, tell_supervisor
from taskbridge.engines.pump import BusySigns, Pump
from taskbridge.engines.settle import Attempts, prepare_marks, this_process, unmark
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError
from taskbridge.hooks import Event
from taskbridge.logs import logger, say
from taskbridge.message import Message
from taskbridge.runner import ENDS_S, ORDERLY_S, WATCH_S, Run, Runs
from taskbridge.schedules.sender import Scheduler
from taskbridge.vitals import Vitals

_log = logger("taskbridge.worker")

AFTER_GRACE_S: Final = 1.5
"""How long interrupted tasks have to clean up, and the engine to end, before the process exits without them.

With `LAST_S`, and the second that an engine's own main process may take to notice, it is within the 5 s of rule A4.
"""

LAST_S: Final = 1.0
"""How long a process that exits without its runs waits for the broker and the store to take what it gives back."""

LOOK_S: Final = 0.05
_RETIRING_S: Final = 0.2


class WorkerLife:
    """The life of one worker process at a time."""

    def __init__(self, host: Host, runs: Runs) -> None:
        self._host = host
        self.runs: Final = runs  # what runs in this process
        self.attempts: Final = Attempts()  # what is known here of attempts, beside what a store tells
        self.runs.ends_process = lambda: self._is_whole_process
        host.is_stopping, host.cancellations.runs = self.is_stopping, runs
        self.draining: bool = False  # whether nothing is taken: the worker stops, or has stopped
        self.is_embedded: bool = False  # whether the worker shares its process with an application
        self._embedding = locks.Lock()
        self._threads = Pump(host), Scheduler(host), host.relay, BusySigns(host, self._queues_if_full)
        self.vitals: Vitals = Vitals(host, name=this_process, queues=self.consumed_queues, slots=self.slots)
        self._is_whole_process = False
        self._deadline = 0.0
        self._drained = locks.Event()
        self._ended = locks.Event()
        self.abandoned: threading.Event = locks.Event()  # set when the worker is to end without tasks that still run

    @contextmanager
    def embedding(self) -> Generator[None, None, None]:
        """Note that the worker is embedded in an application's process; raises `TaskBridgeError` if another one is."""
        if not self._embedding.acquire(blocking=False):
            raise TaskBridgeError("an embedded worker of this bridge runs already; give that one more threads")
        self.is_embedded = True
        try:
            yield
        finally:
            self.is_embedded = False
            self._embedding.release()

    # What an engine says

    def stop_taking(self) -> None:
        """Take no further message. A signal handler calls it: it must neither wait nor take a lock."""
        raise NotImplementedError

    def take_no_more(self) -> None:
        """Take no further message, though nobody has told the engine to stop."""
        self.stop_taking()

    def is_idle(self) -> bool:
        """Return whether no task runs."""
        return not self.runs.all()

    def interrupt(self) -> None:
        """Raise `Interrupted` in all tasks that run."""
        self.runs.interrupt()

    def abandon(self, lost: Collection[Run]) -> list[Message]:
        """Return the messages whose tasks still run, but for what is lost; their outcome is ignored from here on."""
        return [run.message for run in self.runs.all() if run not in lost]

    def give_back(self) -> None:
        """Requeue all that this process holds, without its threads: they may be stuck."""
        raise NotImplementedError

    def holds_nothing(self) -> bool:
        """Return whether no message is in hand, running or about to."""
        raise NotImplementedError

    def ask_to_end(self) -> None:
        """Send SIGTERM to the process that an operator would send it to."""
        raise NotImplementedError

    def full_queues(self) -> Sequence[str]:
        """Return the queues that are consumed here, if no slot is free; nothing if one is."""
        raise NotImplementedError

    def consumed_queues(self) -> Sequence[str]:
        """Return the queues that are consumed here, by taskbridge's names."""
        raise NotImplementedError

    def slots(self) -> int:
        """Return how many tasks run at a time in this process; 0 if they run in its children."""
        raise NotImplementedError

    # From start to end

    def boot(self, *, is_whole_process: bool) -> None:
        """Begin a life, before any thread or child of the worker exists.

        `is_whole_process` is whether the process is there for this worker alone, so that it may be ended with it.
        """
        self._is_whole_process = is_whole_process
        if is_whole_process:
            _own_streams()
            _reset_sigterm_in_forked_processes()
        self._drained, self._ended, self.abandoned = locks.Event(), locks.Event(), locks.Event()
        self._host.stopping.clear()
        self.runs.open()
        self.runs.on_end = _when_worn_out(self._retire) if is_whole_process else None
        self.draining = False

    def started(self, *, has_children: bool = False) -> None:
        """Call the hooks `worker_started`, in the worker's main thread, before any message is taken.

        Args:
            has_children: Whether tasks run in children, which call the hooks and end stuck runs themselves.
        """
        watches = self._is_whole_process and not has_children
        _start_thread(partial(self._keep_to_grace, self._drained, self._ended, watches=watches), "grace")
        if not has_children:
            self._host.hooks.call(Event(name="worker_started"))

    def run(self, *, has_children: bool = False) -> None:
        """Start the threads: messages may be taken from now on.

        Args:
            has_children: Whether tasks run in children, which prepare their marks themselves.
        """
        if not has_children:
            prepare_marks(self._host)
        self.vitals.start()
        if self._host.pauses is not None:
            self._host.pauses.begin()
        if not self.draining:
            for thread in self._threads:
                thread.start()

    def drain(self) -> None:
        """Take nothing new; from here the grace counts. Fit for a signal handler; a second time does nothing."""
        if self.draining:
            return
        self._deadline = monotonic() + self._host.settings.grace_s
        self.draining = True
        self.stop_taking()
        self._drained.set()

    def is_stopping(self) -> bool:
        """Return whether the grace counts, or is over."""
        return self._drained.is_set()

    def _retire(self, why: str) -> None:
        """Let another process take this one's place: take nothing new, and end when all has ended, whenever that is."""
        if self.draining:
            return
        _log.info("this process ends, and another one takes its place: %s", why)
        tell_supervisor("-")
        self.take_no_more()
        settings, until = self._host.settings, inf
        patience_s = max(settings.grace_s, settings.lease_s)  # what has ended may wait for a broker to say so
        while not (self.holds_nothing() or self.draining or monotonic() > until):
            sleep(_RETIRING_S)
            self.take_no_more()  # it may have connected anew
            until = inf if self.runs.all() else min(until, monotonic() + patience_s)  # an engine may lose count
        self.ask_to_end()

    def stopping(self) -> None:
        """Call the hooks `worker_stopping`, in the worker's main thread, when no task runs any more."""
        self._host.hooks.call(Event(name="worker_stopping"))

    def end(self) -> None:
        """Stop the threads: all tasks have ended, and what was held is given back."""
        self._host.stopping.set()
        for thread in (self.vitals, *reversed(self._threads)):
            thread.stop()
        self.draining = True
        left = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
        if left and self._is_whole_process:
            _log.warning("threads that tasks have started have the rest of the grace to end: %s", ", ".join(left))
        self._ended.set()
        self._drained.set()

    # The end of the grace, and of stuck runs

    def _keep_to_grace(self, drained: threading.Event, ended: threading.Event, *, watches: bool) -> None:
        """See to the end of one life, whose events these are: another one may follow at once in this process.

        Until the worker stops, it looks for runs that are stuck, if it is to, and ends the process with them.
        """
        while not drained.wait(WATCH_S if watches else None):
            try:
                stuck = self.runs.stuck()
                if stuck and not self.draining:
                    self.crash(stuck)
            except Exception:  # this thread has yet to see to the end of the grace
                _log.exception("looking for stuck runs failed, going on")
        if ended.wait(max(0.0, self._deadline - monotonic())):
            self._leave_rest()
            return
        self._host.stopping.set()
        self.interrupt()
        if ended.wait(AFTER_GRACE_S):
            self._leave_rest()
            return
        if self._is_whole_process:
            if self.is_idle():
                _log.warning("the worker has not stopped in time, and exits now; its broker may not answer")
            self._exit(0)
        self._give_back_all(())
        self.abandoned.set()

    def _leave_rest(self) -> None:
        """End a process of `taskbridge worker` whose time is over, though the engine or a thread of a task goes on."""
        if self._is_whole_process and APP_VARIABLE in os.environ:  # else a script of the application's may go on
            sleep(max(0.0, self._deadline + AFTER_GRACE_S - monotonic()))
            logging.shutdown()
            os._exit(0)

    def _exit(self, code: int, *, lost: Collection[Run] = ()) -> None:
        """End the process; in a thread, for a broker that does not answer must not hold it."""
        last = _start_thread(lambda: self._give_back_all(lost), "last")
        last.join(LAST_S)
        logging.shutdown()
        os._exit(code)

    def _give_back_all(self, lost: Collection[Run]) -> None:
        stuck = self.abandon(lost)
        if stuck and not lost:
            _log.warning("the worker ends; %d tasks can't be interrupted, their messages are requeued", len(stuck))
        unmark(self._host, stuck)
        if not lost:
            self.unmark_all()
        elif self._host.marks is not None:
            self._host.marks.close()  # from here on, the marks that are left are a dead worker's
        self.give_back()

    def unmark_all(self) -> None:
        """Remove the marks of all runs in this process, so that they don't count as attempts."""
        if self._host.marks is not None:
            try:
                self._host.marks.all_given_back(timeout_s=LAST_S)
            except BrokerUnavailable as exc:
                _log.warning("the store does not answer, interrupted runs will count as lost: %s", exc.problem)

    def crash(self, stuck: Collection[Run]) -> None:
        """End the process with the runs that are stuck: they are lost, and all else is given back (rule T2)."""
        for run in stuck:
            text = "is stuck after its time limit: the worker process ends with it"
            say(_log, logging.CRITICAL, run.message, text)
        self.runs.allow(ENDS_S)
        self.take_no_more()
        self.drain()
        self._host.stopping.set()
        self.runs.interrupt(but=stuck)
        deadline = monotonic() + ORDERLY_S
        while monotonic() < deadline and len(self.runs.all()) > len(stuck):
            sleep(LOOK_S)
        self._exit(1, lost=stuck)

    def _queues_if_full(self) -> Sequence[str]:
        return [] if self.draining else self.full_queues()


def _when_worn_out(retire: Callable[[str], None]) -> Callable[[], None] | None:
    """Return what to call after each run, if this process is to end after so many, or with so much memory (rule RC)."""
    most = [int(text) if (text := os.environ.get(name)) else inf for name in (MOST_TASKS, MOST_MEMORY)]
    if most == [inf, inf]:
        return None
    if (held := _most_mb()) >= most[1]:
        text = "this process ends after each task: it has %d MB before the first one, and --max-memory-per-child is %d"
        _log.warning(text, held, most[1])
    runs, retired = count(1), locks.Lock()

    def look() -> None:
        ran, held = next(runs), _most_mb() if most[1] < inf else 0
        if (ran >= most[0] or held >= most[1]) and retired.acquire(blocking=False):
            _start_thread(lambda: retire(f"it has run {ran} tasks, and has had {_most_mb()} MB"), "retire")

    return look


def _most_mb() -> int:
    with suppress(OSError, IndexError), open("/proc/self/status", "rb") as status:  # else Linux tells of its parent too
        return int(status.read().partition(b"VmHWM:")[2].split()[0]) // 1024
    import resource  # here, for Windows has none

    unit = 1024 * 1024 if sys.platform == "darwin" else 1024  # getrusage(2) counts in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def _own_streams() -> None:
    """Give tasks the process's own streams, not what the engine has put in their place; lines are written at once."""
    if not hasattr(sys.stdout, "buffer"):
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(line_buffering=True)


@cache
def _reset_sigterm_in_forked_processes() -> None:
    """Have a process that a task forks end at SIGTERM: the worker's handler would only make it stop taking messages."""
    os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))


def _start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"taskbridge-{name}", daemon=True)
    thread.start()
    return thread
