"""Things that each process has for itself: a forked child makes its own, and leaves its parent's alone."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

from taskbridge.locks import Lock

T = TypeVar("T")

_inherited: Final[list[Any]] = []
"""What a fork brought along. It is the parent's, and never collected as garbage: that could close its connections."""

_living: Final[WeakSet[PerProcess[Any]]] = WeakSet()


def process_name() -> str:
    """Return a name for this process that no other process has or had."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class PerProcess(Generic[T]):
    """Something that is made when a process first asks for it. Threads share it.

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


def _leave_the_parents() -> None:
    for each in list(_living):
        if each.made is not None:
            _inherited.append(each.made)
            each.made = None


os.register_at_fork(after_in_child=_leave_the_parents)
