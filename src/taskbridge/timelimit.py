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
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from taskbridge.exceptions import TimeLimitExceeded


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
    """One thread that waits for the earliest deadline."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._watches: list[_Watch] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._run, name="taskbridge-time-limit", daemon=True).start()

    @property
    def usable(self) -> bool:
        """Whether this process started it: a forked child has no such thread."""
        return self._pid == os.getpid()

    def add(self, limit_s: float) -> _Watch:
        watch = _Watch(monotonic() + limit_s, next(self._numbers), threading.get_ident())
        with self._changed:
            heapq.heappush(self._watches, watch)
            self._changed.notify()
        return watch

    def end(self, watch: _Watch) -> None:
        """Stop watching; nothing is raised any more once this returns."""
        with self._changed:
            watch.over = True
            if watch.fired:
                raise_in_thread(watch.thread_id, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                self._fire(monotonic())
                wait_s = self._watches[0].deadline - monotonic() if self._watches else None
                self._changed.wait(wait_s)

    def _fire(self, now: float) -> None:
        while self._watches and (self._watches[0].over or self._watches[0].deadline <= now):
            watch = heapq.heappop(self._watches)
            if not watch.over:
                watch.fired = True
                raise_in_thread(watch.thread_id, TimeLimitExceeded)


_lock = threading.Lock()
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
