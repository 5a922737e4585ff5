"""The threads in which Celery's pool of threads runs its tasks, as few of them awake as the tasks allow.

The stock pool wakes a thread for every task, and each that ends wakes the main loop. Tasks that end at once then cost
more in switches between threads than in work. Here at most one thread is on its way at a time: it is woken for the
first task, and wakes another before it starts with one if there is more to do. So a task that takes long keeps nothing
waiting, and a thread whose task ends before the next thread is there takes the next task itself. The main loop is told
of tasks that have ended before a thread goes to sleep, or starts with a task while nobody else is on the way.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

_log = logging.getLogger("taskbridge.celery")

_Work = Callable[[], object]


class Slots:
    """Takes the place of the executor in Celery's pool of threads (celery/concurrency/thread.py, TaskPool).

    Args:
        number: Threads, at least 1; they start with the first task.

    Attributes:
        tell: Called in a thread after it has ended tasks: once for one of them or several.
    """

    def __init__(self, number: int) -> None:
        self._number: Final = number
        self._work: deque[_Work] = deque()
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._asleep: set[int] = set()
        self._is_coming = False
        self._have_ended = False
        self._is_over = False
        self._threads: list[threading.Thread] = []  # of this name, for Celery counts them
        self.tell: Callable[[], object] = bool

    def put(self, work: _Work) -> None:
        """Have something done in a thread; what it raises is logged."""
        if not self._threads:
            self._start()
        self._work.append(work)
        if not self._is_coming:
            self._call()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Have a function called in a thread, as `concurrent.futures.Executor.submit` does."""
        future: Future[Any] = Future()
        self.put(partial(_fulfil, future, function, args, options))
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
            _log.exception("Celery could not deal with what became of a task")
        self._have_ended = True
        return True

    def _tell(self) -> None:
        if self._have_ended:
            self._have_ended = False
            self.tell()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when their tasks have ended.

        Args:
            wait: Whether to wait for that.
            cancel_futures: Whether to drop what no thread has begun with.
        """
        if cancel_futures:
            self._work.clear()
        self._is_over = True
        atexit.unregister(self.shutdown)
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if wait else ():
            thread.join()


def _fulfil(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        result = function(*args, **options)
    except BaseException as exc:
        future.set_exception(exc)
    else:
        future.set_result(result)
