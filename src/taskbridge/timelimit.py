"""Raising an exception in another thread, and ending a run by it that takes too long (rule T1).

CPython delivers an exception that is set from outside between two bytecodes; it can't interrupt a call into C, such
as a long `time.sleep` (the technique and its limit are Dramatiq's too: dramatiq/threading.py). While a thread waits for
a coroutine, it holds locks that the event loop needs too, so there it takes such exceptions by hand.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.exceptions import TimeLimitExceeded

_LONGEST_WAIT_S: Final = 3600.0  # queues refuse to wait for ever by a number


_delivering: Final = locks.Lock()
_by_hand: Final[dict[int, list[type[BaseException]]]] = {}  # by thread: the exceptions that it takes by hand

os.register_at_fork(after_in_child=_by_hand.clear)  # a child's threads may get the same numbers


def raise_in_thread(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise an exception in another thread at its next bytecode; None takes back one not yet delivered."""
    import ctypes  # here, for it takes 5 ms to import and few processes need it

    with _delivering:
        if (waiting := _by_hand.get(thread_id)) is not None:
            waiting[:] = [] if error is None else [error]
            return
        target = ctypes.c_ulong(thread_id)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(target, None if error is None else ctypes.py_object(error))


@contextmanager
def taken_by_hand() -> Generator[Callable[[], None]]:
    """Have what others raise in this thread raised only where the block calls what it is given, and at its end."""
    thread_id, waiting = threading.get_ident(), list[type[BaseException]]()

    def look() -> None:
        if waiting:
            raise waiting.pop()

    try:
        _by_hand[thread_id] = waiting
        yield look
    finally:
        with _delivering:
            _by_hand.pop(thread_id, None)
        look()


@dataclass(eq=False, slots=True)
class _Watch:
    deadline: float
    thread_id: int
    fired: bool = False


class _Watchdog:
    """One thread that waits for the earliest deadline.

    The exception that it raises may arrive while its target is in here, so nothing that they share can be left behind
    half done: a queue, a set and a lock that are made of C, whose `with` holds the lock or doesn't. A
    `threading.Condition` is entered by a function in Python, in which the exception would arrive with the lock just
    taken.
    """

    def __init__(self) -> None:
        import ctypes  # now, for the first thread that is late must not wait for it

        del ctypes
        self._watches: set[_Watch] = set()
        self._more: SimpleQueue[None] = SimpleQueue()
        self._firing = locks.Lock()
        threading.Thread(target=self._run, name="taskbridge-time-limit", daemon=True).start()

    def add(self, limit_s: float) -> _Watch:
        watch = _Watch(monotonic() + limit_s, threading.get_ident())
        self._watches.add(watch)
        self._more.put(None)
        return watch

    def end(self, watch: _Watch) -> None:
        """Stop watching; nothing is raised any more once this returns."""
        with self._firing:
            self._watches.discard(watch)
            if watch.fired:
                raise_in_thread(watch.thread_id, None)

    def _run(self) -> None:
        while True:
            first = min((watch.deadline for watch in self._watches.copy()), default=inf)
            with suppress(Empty):
                self._more.get(timeout=max(0.0, min(first - monotonic(), _LONGEST_WAIT_S)))
            now = monotonic()
            with self._firing:
                for watch in [each for each in self._watches.copy() if each.deadline <= now]:
                    self._watches.discard(watch)
                    watch.fired = True
                    raise_in_thread(watch.thread_id, TimeLimitExceeded)


_watchdog: Final = locks.PerProcess(_Watchdog)


@contextmanager
def limited(limit_s: float) -> Generator[None, None, None]:
    """Raise `TimeLimitExceeded` in this thread when the block takes longer than this."""
    watchdog = _watchdog.get()
    watch = watchdog.add(limit_s)
    try:
        yield
    except TimeLimitExceeded as exc:
        if exc.args:
            raise
        raise TimeLimitExceeded(f"it ran longer than {limit_s:g} s") from exc
    finally:
        watchdog.end(watch)
