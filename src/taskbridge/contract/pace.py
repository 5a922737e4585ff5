"""How fast this machine is as a run begins, and how many workers may start on it at once.

A scenario's limit is its rule's own tolerance plus `Pace.slack_s`; a time that only has to be long enough, such as how
long a scenario waits before it gives up, is multiplied by `Pace.factor`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from typing_extensions import Self

from taskbridge.contract.stopwatch import STALL_S

VARIABLE: Final = "TASKBRIDGE_CONTRACT_PACE"
"""Holds what `Pace.dumps` returned, for processes that take part in a run and should not measure again."""

_START: Final = "import asyncio, json, logging, multiprocessing, subprocess, urllib.request"
_REFERENCE_S: Final = 0.2
"""How long such a start takes on the idle machine that the limits of the scenarios were chosen on."""
_MOST: Final = 4.0
_WAKES: Final = 30
_WAKE_S: Final = 0.01
_POLL_S: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What was measured.

    Attributes:
        late_s: How late a thread was woken, at worst. For longer than `STALL_S` the machine stood still, which is no
            measure of how late it usually is: what fails meanwhile is run again.
        start_s: How long a Python took to start and to import what workers do, each of as many as there are cores.
    """

    late_s: float = 0.0
    start_s: float = _REFERENCE_S

    @classmethod
    def measured(cls) -> Self:
        """Measure, in about half a second on an idle machine."""
        late_s = 0.0
        for _ in range(_WAKES):
            due = time.monotonic() + _WAKE_S
            time.sleep(_WAKE_S)
            late_s = max(late_s, min(STALL_S, time.monotonic() - due))
        with ThreadPoolExecutor(cores()) as pool:
            return cls(late_s=late_s, start_s=max(pool.map(_start_s, range(cores()))))

    @classmethod
    def of_this_run(cls) -> Self:
        """Return what the environment says was measured; if it says nothing, measure."""
        late_s, _, start_s = os.environ.get(VARIABLE, "").partition(" ")
        return cls(late_s=float(late_s), start_s=float(start_s)) if start_s else cls.measured()

    @property
    def factor(self) -> float:
        """How much longer than on an idle machine things take: 1 to 4."""
        return min(_MOST, max(1.0, self.start_s / _REFERENCE_S))

    @property
    def slack_s(self) -> float:
        """By how much a limit is extended: what a thread is woken late, and what a start takes too long."""
        return self.late_s + (self.factor - 1) * _REFERENCE_S

    def dumps(self) -> str:
        """Return it as text for `VARIABLE`."""
        return f"{self.late_s:.4f} {self.start_s:.4f}"

    def __str__(self) -> str:
        """Describe it in a line."""
        return (
            f"a thread wakes up to {self.late_s * 1000:.0f} ms late and a Python starts in {self.start_s:.2f} s: "
            f"waits x {self.factor:.1f}, limits + {self.slack_s:.2f} s, {cores()} workers start at a time"
        )


def _start_s(_: int) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-I", "-c", _START], check=True, timeout=60)
    return time.monotonic() - began


def cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def starting() -> Generator[None]:
    """Wait until fewer workers are starting on this machine than it has cores, then let one start in the block.

    The start of a worker takes about a second of processor time; a dozen at once would make every other promise late.
    """
    paths = [Path(tempfile.gettempdir(), f"taskbridge-starting-{os.getuid()}-{slot}") for slot in range(cores())]
    while True:
        for path in paths:
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield  # closing the file gives the slot back
                return
        time.sleep(_POLL_S)
