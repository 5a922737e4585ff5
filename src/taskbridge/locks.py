"""Locks, conditions and thread-locals that survive a fork, and what each process has for itself.

A forked child has one thread, the one that called `os.fork`. A lock that another thread held at that moment stays held
in the child for ever, and whoever asks for it there hangs. So every lock of taskbridge is made here: in the child it is
free again, and a thread-local is empty (its connections belong to the parent). What a lock guards may be half changed
in the child: assign what was built in one step, at the end.

The classes are those of `threading`, so that using them costs nothing more. The child frees them by the method by
which the standard library frees its own (`threading.py`, `logging`): `_at_fork_reinit`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_log = logging.getLogger("taskbridge")

_FORK_WAITS_S: Final = 5.0  # how long a fork waits for `no_fork` blocks of others, which may themselves wait for it
_living: Final[WeakSet[Any]] = WeakSet()
_inherited: Final[list[Any]] = []  # the parent's, and never collected as garbage: that could close connections


def Lock() -> threading.Lock:
    """Return a lock that is free in a forked child."""
    lock = threading.Lock()
    _living.add(lock)
    return lock


def RLock() -> threading.RLock:
    """Return a reentrant lock that is free in a forked child."""
    lock = threading.RLock()
    _living.add(lock)
    return lock


class _Surviving:
    def __init__(self) -> None:
        super().__init__()
        _living.add(self)


class Condition(_Surviving, threading.Condition):
    """A condition that is free, and that nobody waits for, in a forked child."""


class Event(_Surviving, threading.Event):
    """An event that can be set and waited for in a forked child; it stays set or not as it was."""


class Local(_Surviving, threading.local):
    """A thread-local that is empty in a forked child; `__init__` runs once in each thread, as in `threading.local`."""

    def _at_fork_reinit(self) -> None:
        self.__dict__.clear()  # of the only thread there is


class PerProcess(Generic[T]):
    """Something that is made when a process first asks for it. Threads share it, and a forked child makes its own.

    Attributes:
        made: This process's; None if there is none yet.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.made: T | None = None
        self._make = make
        self._lock = Lock()
        _living.add(self)

    def get(self) -> T:
        """Return this process's, and make it if it is not there."""
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made

    def take(self) -> T | None:
        """Return this process's and forget it, to close it; None if there is none. The next `get` makes another."""
        with self._lock:
            taken, self.made = self.made, None
            return taken

    def close(self) -> None:
        """Close and forget this process's, if there is one; it has a method `close`."""
        taken: Any = self.take()
        if taken is not None:
            taken.close()

    def _at_fork_reinit(self) -> None:
        if self.made is not None:
            _inherited.append(self.made)
            self.made = None


_whole: Final = threading.RLock()  # the hooks below take it around each fork
_forking: Final = threading.local()


@contextmanager
def no_fork() -> Generator[None, None, None]:
    """Let no other thread fork while the block runs: forks wait, for 5 s at most.

    It is for first-use imports. A module that another thread was importing at a fork stays half loaded in the child,
    and its import lock held for ever; no lock of ours can help there.
    """
    with _whole:
        yield


def _before_fork() -> None:
    _forking.holds = _whole.acquire(timeout=_FORK_WAITS_S)


def _after_in_parent() -> None:
    if _forking.holds:
        _whole.release()
    else:
        _log.warning("a process was forked while another thread imported modules: the child may not be able to send")


def _after_in_child() -> None:
    if _forking.holds:
        _whole.release()
    else:
        _free(_whole)
    for survivor in list(_living):
        _free(survivor)


def _free(survivor: Any) -> None:
    survivor._at_fork_reinit()


# logging, imported above, takes its own lock before a fork. Hooks before a fork run in the opposite order of their
# registration, so ours runs first. The other way round a fork would wait for the import, and the import for a logger.
os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
