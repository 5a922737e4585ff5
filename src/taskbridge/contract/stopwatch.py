"""How long something takes on a machine that stands still at times."""

from __future__ import annotations

import threading
import time
from typing import Final

_TICK_S: Final = 0.01
_LATE_S: Final = 0.02


class Stopwatch:
    """Times a block, less what the machine kept from this process meanwhile.

    A thread that does nothing but wake up tells when it was woken late: then no other thread could do anything either.

    Attributes:
        took_s: What the block took, in seconds, once it has ended.
    """

    def __init__(self) -> None:
        self.took_s: float = 0.0
        self._stalled_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="contract-stopwatch", daemon=True)
        self._began = 0.0

    def __enter__(self) -> Stopwatch:
        """Begin."""
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End."""
        elapsed_s = time.monotonic() - self._began
        self._over.set()
        self._thread.join()
        self.took_s = elapsed_s - self._stalled_s

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(_TICK_S):
            now = time.monotonic()
            late_s = now - before - _TICK_S
            if late_s > _LATE_S:
                self._stalled_s += late_s
            before = now
