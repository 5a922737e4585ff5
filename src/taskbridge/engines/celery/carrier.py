"""Carries a message out: runs it, settles it, and then tells Celery what to show.

Celery acknowledges a message after its task has returned, retried or failed, and puts one back whose task raised
`Reject(requeue=True)`. What a verdict needs is in the broker before that (rules A1 and R5).
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import cycle
from queue import SimpleQueue
from time import monotonic
from types import FrameType
from typing import Any, Final

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import CeleryError, Ignore, Reject, Retry
from celery.signals import task_postrun, task_success

from taskbridge import failures
from taskbridge.engines.base import Host
from taskbridge.engines.celery.stock import CeleryIgnore, stock
from taskbridge.engines.settle import NotRun, NotSettledError, begin, finish, not_settled
from taskbridge.exceptions import TaskBridgeError
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.retry import Dead, Discarded, Done, GivenBack, Interrupted, RunAgain, Verdict
from taskbridge.runner import Runs

_log = logger("taskbridge.celery")

_Handler = Callable[[int, FrameType | None], Any]

LINKS: Final = ("callbacks", "chain", "chord", "group")
"""What a request names that a plain client has linked to its task, and that is to be told what it returned."""

CARRIED: Final = "taskbridge"
"""Where the `delivery_info` of a request has its message, or what has become of it, until it comes to the carrier.

Celery makes that dict itself, so nothing of it comes from outside, and hands it to children, too.
"""

STRATEGY: Final = "taskbridge.engines.celery.fast:way_of"
"""What Celery calls the strategy of taskbridge's tasks; it has another one for the user's own."""

CALL_OF_CELERY: Final = "celery.app.task"
"""The module of `Task.__call__`, as long as nobody has put another one in its place."""

_EXIT_AFTER_S: Final = 0.2
"""How long after its task's end a child goes on to exit that was told to: Celery sends the task's outcome meanwhile."""


_MEANINGFUL: Final = (CeleryError, MemoryError, Terminated, TimeLimitExceeded, WorkerLostError)
"""Errors from which Celery draws conclusions (celery/worker/request.py, on_failure)."""


class ChildRuns(Runs):
    """What runs in a worker, or in a child of its prefork pool (rule R8).

    In a child, SIGTERM raises `Interrupted` in the task that runs, if it is the parent's. Celery's own handler raises
    `SystemExit`, which is no different from a task's own. A process manager may send SIGTERM to each process of a
    worker: that one is ignored while a task runs, which has its grace (rule A4).
    """

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self.is_busy: bool = False  # whether a message is being handled
        self.told_to_exit: bool = False  # whether SIGTERM came meanwhile: the child exits after it
        self.worker_pid: int = 0  # the worker's main process; 0 while there is no worker
        self._stock_handler: _Handler | None = None
        self._handler_pid = 0
        shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("i")  # children share it
        self._draining, self._signalled = shared[:1], shared[1:]  # the latter holds process ids
        self._places = cycle(range(len(self._signalled)))

    @property
    def is_draining(self) -> bool:
        """Whether the worker was told to stop, here or in the parent."""
        return bool(self._draining[0])

    @is_draining.setter
    def is_draining(self, value: bool) -> None:
        self._draining[0] = value

    def announce_signal(self, pid: int | None) -> None:
        """Let a child know that the next SIGTERM comes from its parent."""
        self._signalled[next(self._places)] = pid or 0

    def heed_signals(self) -> None:
        """Have SIGTERM interrupt a task, in a child's main thread.

        Called as a task starts: Celery's pool sets its own handler after everything that could be called earlier.
        """
        if not self.worker_pid or os.getpid() in (self.worker_pid, self._handler_pid):
            return
        self._handler_pid = os.getpid()
        self._running.clear()  # the parent's
        stock = signal.getsignal(signal.SIGTERM)
        self._stock_handler = stock if callable(stock) else None
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if not self.is_busy:
            if self._stock_handler is not None:
                self._stock_handler(number, frame)
            return
        if os.getpid() not in self._signalled:
            return
        self._host.stopping.set()
        self.told_to_exit = True
        thread = threading.main_thread().ident
        if thread in self._running and not self._is_over:  # no lock: the handler runs in the thread that may hold it
            self._is_over = True
            raise Interrupted

    def exit_soon(self) -> None:
        """Exit, for this child was told to: its message has been handled."""
        timer = threading.Timer(_EXIT_AFTER_S, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()


_Work = Callable[[], object]


class Slots:
    """Threads that run tasks, as few of them awake as the tasks allow; in the place of Celery's executor of threads.

    That one (celery/concurrency/thread.py, TaskPool) wakes a thread for every task, and each that ends wakes the main
    loop. Tasks that end at once then cost more in switches between threads than in work. Here at most one thread is on
    its way at a time: it is woken for the first task, and wakes another before it starts with one if there is more to
    do. So a task that takes long keeps nothing waiting, and a thread whose task ends before the next thread is there
    takes the next task itself. The main loop is told of tasks that have ended before a thread goes to sleep, or starts
    with a task while nobody else is on the way. Once they are shut down, Python's exit waits for none that is stuck.
    The threads, at least 1, start with the first task.
    """

    def __init__(self, number: int) -> None:
        self._number: Final = number
        self._work: deque[_Work] = deque()
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._asleep: set[int] = set()
        self._is_coming = False
        self._untold = 0
        self._is_over = False
        self._threads: list[threading.Thread] = []  # of this name, for Celery counts them
        self.tell: Callable[[], object] = bool  # called in a thread after it has ended tasks: once for one or several
        self.most_untold: int = number  # how many of them at most

    def put(self, work: _Work) -> None:
        """Have something done in a thread; what it raises is logged. What comes first comes from the main loop."""
        if not self._threads:
            self._start()
        self._work.append(work)
        if not self._is_coming:
            self._call()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Have a function called for the user's own Celery tasks, as `concurrent.futures.Executor.submit` does."""
        future: Future[Any] = Future()
        self.put(lambda: future.set_result(function(*args, **options)))
        return future

    def _start(self) -> None:
        atexit.register(self.shutdown)
        self._threads = [
            threading.Thread(target=self._run, name=f"taskbridge-slot-{number}", daemon=True)
            for number in range(self._number)
        ]
        for thread in self._threads:
            thread.start()

    def _call(self) -> bool:
        """Wake a thread that sleeps; return whether there was one.

        Who calls this has appended work before, and a thread looks for work once more after it has said that it sleeps:
        so one of the two sees what the other one did.
        """
        if not self._asleep:
            return False
        self._is_coming = True
        self._calls.put(None)
        return True

    def _run(self) -> None:
        me = threading.get_ident()
        while not self._is_over:
            while self._take():
                pass
            self._tell()
            self._asleep.add(me)
            if not self._work:
                self._calls.get()
            self._asleep.discard(me)
            self._is_coming = False  # after that, so that nobody calls a thread that is awake
            self._tell()

    def _take(self) -> bool:
        """Do the next piece of work; return whether there was one."""
        try:
            work = self._work.popleft()
        except IndexError:
            return False
        is_coming = self._is_coming or (bool(self._work) and self._call())
        if not is_coming:  # who comes would tell
            self._tell()
        try:
            work()
        except BaseException:
            _log.exception("what a thread had to do for Celery failed")
        self._untold += 1  # if another thread tells meanwhile, that one may be told twice, but never not at all
        if self._untold >= self.most_untold:
            self._tell()
        return True

    def _tell(self) -> None:
        if self._untold:
            self._untold = 0
            try:
                self.tell()
            except Exception:  # this thread has more to do, perhaps with work in its hands
                _log.exception("nobody could be told of tasks that have ended")

    def join(self, timeout_s: float) -> bool:
        """Wait until the threads have ended, but no longer than this; return whether they have."""
        deadline = monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when their tasks have ended; if told to, wait for that, or drop what none has begun with."""
        if cancel_futures:
            self._work.clear()
        self._is_over = True
        atexit.unregister(self.shutdown)
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if wait else ():
            thread.join()


class TaskFailed(TaskBridgeError):
    """Shows an error in Celery that can't be raised there itself: a `SystemExit`, or one that means something to it."""


class NotCarried(TaskBridgeError):
    """Shows that something was raised before a message came to the carrier, so that nothing has become of it."""


class PutOff(CeleryIgnore):
    """Shows a message that was not run now: it waits, for its attempt may have been started before."""


class Carrier:
    """Carries messages out for one bridge, where Celery's pool runs tasks."""

    def __init__(self, host: Host, runs: ChildRuns) -> None:
        self._host = host
        self._runs = runs

    def carry(self, carried: Message | Verdict, request: Any) -> Any:
        """Run the task of a message and settle it, or show what has become of one that has been settled before.

        Returns what the task returned, if somebody listens, or a plain client has linked anything to it. Raises the
        error of which the message is dead; or `Retry`, `Ignore` or `Reject` if it did not end well, and Celery is to
        show it and to do the like.
        """
        if isinstance(carried, Message):
            self._runs.heed_signals()
            carried = self.settle(carried, redelivered=bool(request.delivery_info.get("redelivered")))
        return self._show(carried, request)

    def settle(self, message: Message, *, redelivered: bool) -> Verdict:
        """Run a message and return its verdict, carried out; Celery is to return one to its queue that is given back.

        `redelivered` is whether the broker says that it was delivered before.
        """
        runs = self._runs
        runs.is_busy = True
        try:
            task = self._host.bound(message.task)
            found = begin(task, message, redelivered=redelivered)
            if isinstance(found, Message):
                message = found
                found = finish(task, message, runs.run(task, message))
            return found
        except NotSettledError:
            return GivenBack()
        except (Exception, SystemExit) as exc:
            return not_settled(self._host, message, exc)
        finally:
            runs.is_busy = False
            if runs.told_to_exit:
                runs.exit_soon()

    def _show(self, verdict: Verdict, request: Any) -> Any:
        """Make Celery, Flower and the like see a verdict that was carried out."""
        match verdict:
            case Done(value):
                is_awaited = task_success.receivers or task_postrun.receivers or any(map(request.get, LINKS))
                return value if is_awaited else None  # for Celery makes a text of it
            case RunAgain(after_s, error):
                raise Retry(exc=shown(error), when=round(after_s, 3))
            case Dead(reason, error):
                raise TaskFailed(f"the message is dead: {reason}") if error is None else shown(error)
            case NotRun(reason):
                raise PutOff(reason)
            case Discarded(reason):
                raise Ignore(reason)
            case GivenBack():
                raise Reject("it goes back to its queue", requeue=True)


def call_task(task: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a task as Celery does, whose own way can't take an argument called `self`.

    Where no worker has put a method of its own in its place, Celery's tracer goes past `Task.__call__`, which would
    hide the request from the task (celery/app/trace.py, build_tracer).
    """
    call = stock(super(type(task), task)).__call__
    if "self" in kwargs or (call.__module__ == CALL_OF_CELERY and not task.request.called_directly):
        call = task.run
    return call(*args, **kwargs)


def is_logged(app: Any, record: logging.LogRecord) -> bool:
    """Filter the log of Celery's tracer: nothing of results, and no failure that is in taskbridge's log, too."""
    about: Any = record.args
    task = app.tasks.get(str(about.get("name"))) if isinstance(about, dict) else None
    is_own = task is not None and task.Strategy == STRATEGY
    if is_own and "return_value" in about:
        about["return_value"] = "None"
    return not is_own or "return_value" in about or about.get("description") == "INTERNAL ERROR"


def shown(error: BaseException) -> Exception:
    """Return an error that Celery may see raised: this one, unless that would end the worker or mean something else.

    `SystemExit` ends a child, `MemoryError` the whole worker, errors of Celery's own would change what becomes of a
    message that is settled, and Celery formats what it shows.
    """
    if isinstance(error, Exception) and not isinstance(error, _MEANINGFUL) and failures.is_ordinary(error):
        return error
    return TaskFailed(f"{failures.type_of(type(error))}: {failures.text_of(error)}")
