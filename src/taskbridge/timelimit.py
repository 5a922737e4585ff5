"""Ending a run that takes too long, from another thread (rule T1).

CPython delivers an exception that is set from outside between two bytecodes; it can't interrupt a call into C, such
as a long `time.sleep` (the technique and its limit are Dramatiq's too: dramatiq/threading.py).
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.exceptions import TimeLimitExceeded

_LONGEST_WAIT_S: Final = 3600.0  # queues refuse to wait for ever by a number

_MANY: Final = 1000
"""How many watches there may be before those that are over are looked for."""


def raise_in_thread(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise an exception in another thread at its next bytecode; None takes back one not yet delivered."""
    import ctypes  # here, for it takes 5 ms to import and few processes need it

    target = ctypes.c_ulong(thread_id)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(target, None if error is None else ctypes.py_object(error))


@dataclass(order=True)
class _Watch:
    deadline: float
    number: int
    thread_id: int = field(compare=False)
    over: bool = field(compare=False, default=False)
    fired: bool = field(compare=False, default=False)


class _Watchdog:
    """One thread that waits for the earliest deadline.

    The exception that it raises may arrive while its target is in here, so nothing that they share can be left behind
    half done: a queue and a lock that are made of C, whose `with` holds the lock or doesn't. A `threading.Condition`
    is entered by a function in Python, in which the exception would arrive with the lock just taken.
    """

    def __init__(self) -> None:
        import ctypes  # now, for the first thread that is late must not wait for it

        del ctypes
        self._pid = os.getpid()
        self._new: SimpleQueue[_Watch] = SimpleQueue()
        self._firing = locks.Lock()
        self._numbers = itertools.count()
        threading.Thread(target=self._run, name="taskbridge-time-limit", daemon=True).start()

    @property
    def usable(self) -> bool:
        """Whether this process started it: a forked child has no such thread."""
        return self._pid == os.getpid()

    def add(self, limit_s: float) -> _Watch:
        watch = _Watch(monotonic() + limit_s, next(self._numbers), threading.get_ident())
        self._new.put(watch)
        return watch

    def end(self, watch: _Watch) -> None:
        """Stop watching; nothing is raised any more once this returns."""
        with self._firing:
            watch.over = True
            if watch.fired:
                raise_in_thread(watch.thread_id, None)

    def _run(self) -> None:
        watches: list[_Watch] = []
        many = _MANY
        while True:
            wait_s = max(0.0, watches[0].deadline - monotonic()) if watches else _LONGEST_WAIT_S
            with suppress(Empty):
                heapq.heappush(watches, self._new.get(timeout=min(wait_s, _LONGEST_WAIT_S)))
            self._fire(watches, monotonic())
            if len(watches) > many:  # quick tasks with a long limit
                watches = [watch for watch in watches if not watch.over]
                heapq.heapify(watches)
                many = max(_MANY, 2 * len(watches))

    def _fire(self, watches: list[_Watch], now: float) -> None:
        while watches and (watches[0].over or watches[0].deadline <= now):
            watch = heapq.heappop(watches)
            with self._firing:
                if not watch.over:
                    watch.fired = True
                    raise_in_thread(watch.thread_id, TimeLimitExceeded)


_lock = locks.Lock()
_watchdogs: list[_Watchdog] = []


def _watchdog() -> _Watchdog:
    with _lock:
        if not _watchdogs or not _watchdogs[-1].usable:
            _watchdogs[:] = [_Watchdog()]
        return _watchdogs[-1]


@contextmanager
def limited(limit_s: float | None) -> Generator[None, None, None]:
    """Raise `TimeLimitExceeded` in this thread when the block takes longer than this; None is no limit."""
    if limit_s is None:
        yield
        return
    watchdog = _watchdog()
    watch = watchdog.add(limit_s)
    try:
        yield
    except TimeLimitExceeded as exc:
        if exc.args:
            raise
        raise TimeLimitExceeded(f"it ran longer than {limit_s:g} s") from exc
    finally:
        watchdog.end(watch)
