"""Until when something is waited for, what a thread waits for, and locks that are taken no longer than that."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final

from taskbridge import locks

_LOOK_S: Final = 0.1
_LEAVE_S: Final = 0.3
_LONGEST_WAIT_S: Final = 3600.0  # locks refuse to wait for ever by a number


class TimedOutError(Exception):
    """A deadline passed."""


class Deadline:
    """A moment after which nothing is waited for.

    Args:
        timeout_s: How far away it is; infinite if only `stop` ends the wait.
        stop: Once it is set, the moment is 0.3 s away at most.
    """

    __slots__ = ("_at", "_stop", "timeout_s")

    def __init__(self, timeout_s: float = math.inf, stop: threading.Event | None = None) -> None:
        self.timeout_s: float = timeout_s
        self._at = time.monotonic() + timeout_s
        self._stop = stop

    @property
    def left_s(self) -> float:
        """The seconds until then, at least 0."""
        now = time.monotonic()
        if self._stop is not None and self._stop.is_set():
            self._at = min(self._at, now + _LEAVE_S)
            self._stop = None
        return max(0.0, self._at - now)

    @property
    def slice_s(self) -> float:
        """How long to wait at a time: all the time that is left, or so long that `stop` is seen soon."""
        return min(self.left_s, _LONGEST_WAIT_S if self._stop is None else _LOOK_S)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s == 0.0


class Awaited:
    """What one thread waits for, and another may bring about.

    Attributes:
        done: Whether it has come.
    """

    __slots__ = ("_bell", "done")

    def __init__(self) -> None:
        self.done: bool = False
        self._bell: SimpleQueue[None] | None = None  # most threads read themselves what they wait for, and need none

    def finish(self) -> None:
        """Note that it has come, and wake the thread."""
        self.done = True
        self.ring()

    def ring(self) -> None:
        """Wake the thread, to look again."""
        if self._bell is not None:
            self._bell.put(None)

    def arm(self) -> None:
        """Let `ring` be heard from now on; whoever is to ring is told after that."""
        if self._bell is None:
            self._bell = SimpleQueue()

    def sleep(self, timeout_s: float) -> None:
        """Wait until it rings, or has rung since `arm`, but no longer than this."""
        assert self._bell is not None
        try:
            self._bell.get(timeout=timeout_s)
        except Empty:
            return  # the caller looks at the time


class Lock:
    """A lock that is never left behind: not even when a signal, or a time limit, interrupts a thread that takes it.

    A signal's handler may take it once more in the thread that has it.
    """

    def __init__(self) -> None:
        self._lock: Any = locks.RLock()  # which knows its owner

    @contextmanager
    def held(self, deadline: Deadline, problem: str) -> Generator[None, None, None]:
        """Hold the lock during the block.

        Raises:
            TimedOutError: With this problem: others hold it all the time.
        """
        try:
            self.take(deadline, problem)
            yield
        finally:
            try:
                self.drop()
            except BaseException:  # a time limit, as it was called
                self.drop()
                raise

    @contextmanager
    def tried(self) -> Generator[bool, None, None]:
        """Hold the lock during the block if nobody else does, and tell so."""
        try:
            yield self.take_if_free()
        finally:
            try:
                self.drop()
            except BaseException:  # a time limit, as it was called
                self.drop()
                raise

    # Without a block, which takes a microsecond; inside `try`, with `drop` in its `finally`

    def take(self, deadline: Deadline, problem: str) -> None:
        """Take the lock.

        Raises:
            TimedOutError: With this problem: others hold it all the time.
        """
        if self._lock.acquire(blocking=False):
            return
        while not self._lock.acquire(timeout=deadline.slice_s):
            if deadline.passed:
                raise TimedOutError(problem)

    def take_if_free(self) -> bool:
        """Take the lock if nobody else has it, and tell so."""
        taken: bool = self._lock.acquire(blocking=False)
        return taken

    def take_within(self, timeout_s: float) -> bool:
        """Take the lock in this time, and tell whether that was possible."""
        taken: bool = self._lock.acquire(timeout=timeout_s)
        return taken

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        mine: bool = self._lock._is_owned()
        return mine

    def drop(self) -> None:
        """Let the lock go, if this thread has it."""
        if self._lock._is_owned():
            self._lock.release()
