"""How long something takes on a machine that stands still at times."""

from __future__ import annotations

import threading
import time
from typing import Final

from typing_extensions import Self

_TICK_S: Final = 0.01
_LATE_S: Final = 0.02

STALL_S: Final = 0.3
"""From when on the machine is said to have stood still: a thread that only had to wake up was woken so much later."""


class Stopwatch:
    """Times a block, and notes what the machine kept from this process meanwhile.

    A thread that does nothing but wake up tells when it was woken late: then no other thread could do anything either.

    Attributes:
        took_s: What the block took less what it was kept from, in seconds, once it has ended.
    """

    def __init__(self) -> None:
        self.took_s: float = 0.0
        self._late: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="contract-stopwatch", daemon=True)
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        elapsed_s = time.monotonic() - self._began
        self._over.set()
        self._thread.join()
        self.took_s = elapsed_s - sum(late_s for _, late_s in self._late)

    def stalled_s(self, *, since: float = 0.0) -> float:
        """Return how long the machine stood still in all (`STALL_S`), since an instant of `time.monotonic`."""
        return sum(late_s for at, late_s in list(self._late) if late_s >= STALL_S and at >= since)

    def _tick(self) -> None:
        before = time.monotonic()
        is_over = False
        while not is_over:
            is_over = self._over.wait(_TICK_S)
            now = time.monotonic()
            late_s = now - before - (0.0 if is_over else _TICK_S)
            if late_s > _LATE_S:
                self._late.append((now, late_s))
            before = now
