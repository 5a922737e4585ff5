"""How long something takes on a machine that stands still at times."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Final

from typing_extensions import Self

_TICK_S: Final = 0.01
_CORE_TICK_S: Final = 0.05
_LATE_S: Final = 0.02

STALL_S: Final = 0.3
"""From when on the machine, or a core, is said to have stood still: who only had to wake up was woken so much later."""


class Stopwatch:
    """Times a block, and notes what the machine kept from this process meanwhile.

    A thread that does nothing but wake up tells when it was woken late: then no other thread could do anything either.
    One more on each core tells when that stood still, on which another process may have been at work.

    Attributes:
        took_s: What the block took less what it was kept from, in seconds, once it has ended.
    """

    def __init__(self) -> None:
        self.took_s: float = 0.0
        self._late: list[tuple[float, float]] = []
        self._late_on_cores: list[tuple[float, float]] = []
        self._over = threading.Event()
        threads = [(self._late, _TICK_S, None), *((self._late_on_cores, _CORE_TICK_S, core) for core in _cores())]
        self._threads = [
            threading.Thread(target=self._tick, args=args, name="contract-stopwatch", daemon=True) for args in threads
        ]
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        elapsed_s = time.monotonic() - self._began
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.took_s = elapsed_s - sum(late_s for _, late_s in self._late)

    def stalled_s(self, *, since: float = 0.0) -> float:
        """Return how long the machine, or a core, stood still in all (`STALL_S`), since an instant of `time.monotonic`.

        While several cores do so at once, that counts once.
        """
        noted = [*self._late, *self._late_on_cores]
        stalled_s, until = 0.0, -inf
        for began, at in sorted((at - late_s, at) for at, late_s in noted if late_s >= STALL_S and at >= since):
            stalled_s += max(0.0, at - max(began, until))
            until = max(until, at)
        return stalled_s

    def _tick(self, late: list[tuple[float, float]], tick_s: float, core: int | None) -> None:
        if core is not None:
            with suppress(OSError):  # it is this process's no longer
                os.sched_setaffinity(threading.get_native_id(), {core})
        before = time.monotonic()
        is_over = False
        while not is_over:
            is_over = self._over.wait(tick_s)
            now = time.monotonic()
            late_s = now - before - (0.0 if is_over else tick_s)
            if late_s > _LATE_S:
                late.append((now, late_s))
            before = now


def _cores() -> Sequence[int]:
    """Return the cores that this process may use, if there are several that can be told apart."""
    if sys.platform != "linux":
        return ()
    cores = sorted(os.sched_getaffinity(0))
    return cores if len(cores) > 1 else ()
