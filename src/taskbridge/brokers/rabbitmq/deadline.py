"""Until when something is waited for."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

_LOOK_S: Final = 0.1
_LEAVE_S: Final = 0.3


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
        return self.left_s if self._stop is None else min(self.left_s, _LOOK_S)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s == 0.0

    def within(self, timeout_s: float | None) -> Deadline:
        """Return this deadline, or one so many seconds from now if that is earlier; None is no other."""
        return self if timeout_s is None or timeout_s >= self.left_s else Deadline(timeout_s, self._stop)
