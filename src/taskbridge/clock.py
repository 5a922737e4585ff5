"""The time, real or virtual."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, in seconds since the epoch."""

    def now(self) -> float:
        """Return the time."""
        ...


class RealClock:
    """The system's time."""

    def now(self) -> float:
        """Return the system's time."""
        return time.time()


class VirtualClock:
    """The system's time, until it is moved forward."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> float:
        """Return the system's time, plus what the clock was moved."""
        return time.time() + self._ahead_s

    def move_to(self, moment: float) -> None:
        """Move the clock forward to a time; never back."""
        self._ahead_s += max(0.0, moment - self.now())
