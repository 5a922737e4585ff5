"""Things that each process has for itself: a forked child makes its own, and leaves its parent's alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from taskbridge.locks import Lock

T = TypeVar("T")

_inherited: Final[list[Any]] = []
"""What a fork brought along. It is the parent's, and never collected as garbage: that could close its connections."""


def leave(inherited: object) -> None:
    """Keep what is the parent process's, and do nothing with it any more."""
    _inherited.append(inherited)


class PerProcess(Generic[T]):
    """Something that is made when a process first asks for it. Threads share it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        """Return this process's, and make it if it is not there."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            return self._current()

    def peek(self) -> T | None:
        """Return this process's; None if there is none."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None

    def take(self) -> T | None:
        """Return this process's and forget it, to close it; None if there is none. The next `get` makes another."""
        with self._lock:
            found = self._found()
            self._made = None
            return found

    def _found(self) -> T | None:
        if self._made is None:
            return None
        pid, found = self._made
        if pid == os.getpid():
            return found
        leave(found)
        return None

    def _current(self) -> T:
        found = self._found()
        if found is None:
            found = self._make()
            self._made = os.getpid(), found
        return found
