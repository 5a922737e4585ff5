"""How long something takes on a machine that stands still at times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 0.01
_LATE_S: Final = 0.02

STALL_S: Final = 0.3
"""From when on the machine is said to have stood still: a thread that only had to wake up was woken so much later."""


class Stopwatch:
    """Times a block, less what the machine kept from this process meanwhile.

    A thread that does nothing but wake up tells when it was woken late: then no other thread could do anything either.

    Attributes:
        took_s: What the block took, in seconds, once it has ended.
    """

    def __init__(self) -> None:
        self.took_s: float = 0.0
        self._late_s = 0.0
        self._ticker = _Ticker(self._add)
        self._began = 0.0

    def __enter__(self) -> Stopwatch:
        """Begin."""
        self._ticker.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        elapsed_s = time.monotonic() - self._began
        self._ticker.stop()
        self.took_s = elapsed_s - self._late_s

    def _add(self, late_s: float) -> None:
        if late_s > _LATE_S:
            self._late_s += late_s


class StallWatch:
    """Notes when the machine stands still while a block runs (`STALL_S`): nothing about time can be judged then."""

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []
        self._ticker = _Ticker(self._note)

    def __enter__(self) -> StallWatch:
        """Begin."""
        self._ticker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        self._ticker.stop()

    def stalled_s(self, *, since: float = 0.0, until: float = float("inf")) -> float:
        """Return how long the machine stood still in all, between two instants of `time.monotonic`."""
        return sum(late_s for at, late_s in list(self._stalls) if since <= at and at - late_s <= until)

    def _note(self, late_s: float) -> None:
        if late_s >= STALL_S:
            self._stalls.append((time.monotonic(), late_s))


class _Ticker:
    """A thread that wakes up every 10 ms and says how many seconds late it is."""

    def __init__(self, late: Callable[[float], None]) -> None:
        self._late = late
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="contract-stopwatch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        before = time.monotonic()
        is_over = False
        while not is_over:
            is_over = self._over.wait(_TICK_S)
            now = time.monotonic()
            self._late(now - before - (0.0 if is_over else _TICK_S))
            before = now
