"""What the tasks do: run by run, as they are told by the message."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.guarantees.applications.setup import PROBE_FILE, Setup
from taskbridge.contract.probe import END, START, Probe, Records

READY: Final = "ready"
EXPIRED: Final = "expired"
FAILED: Final = "failed"
FOLLOWED: Final = "followed"
TOLD: Final = "told"

_SLICE_S: Final = 0.05


class Failure(Exception):
    """What a failing run raises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one run does.

    Attributes:
        sleep_s: How long it takes.
        ending: `returns`, `fails`, `kills process` (its own, as a crash does), `kills worker` (the whole worker, as
            the end of a container that has no memory left does) or `ends unacknowledged`: it returns, and its worker is
            killed when its end is recorded, before the broker is told of it.
    """

    sleep_s: float = 0.0
    ending: Literal["returns", "fails", "kills process", "kills worker", "ends unacknowledged"] = "returns"

    def plain(self) -> dict[str, Any]:
        """Return the step as it travels in a message."""
        return asdict(self)


class Work:
    """Performs steps, and writes down when runs start and how they end."""

    def __init__(self, setup: Setup) -> None:
        self.probe: Probe = setup.probe(time.time)
        self._records = Records(Path(setup.folder) / PROBE_FILE)
        self._is_last = False

    def perform(self, key: str, steps: Sequence[Mapping[str, Any]]) -> None:
        """Run the step whose turn it is; the last one is repeated."""
        self.probe.write(START, id=key)
        run = sum(record.kind == START for record in self._records.of(key))
        step = Step(**steps[min(run, len(steps)) - 1])
        deadline = time.monotonic() + step.sleep_s
        while (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(_SLICE_S, left_s))
        self._end(key, step)

    def _end(self, key: str, step: Step) -> None:
        if step.ending == "kills process":
            os.kill(os.getpid(), signal.SIGKILL)
        if step.ending == "kills worker":
            os.killpg(0, signal.SIGKILL)
        if step.ending == "fails":
            self.probe.write(FAILED, id=key)
            raise Failure("as the message says")
        self._is_last = step.ending == "ends unacknowledged"
        self.probe.write(END, id=key)

    def settled(self) -> None:
        """Hear from the engine that it is done with a run, but for telling the broker."""
        if self._is_last:
            os.killpg(0, signal.SIGKILL)

    def follow(self, key: str, kind: str) -> None:
        """Write down that what follows a group runs: `followed` if it ended well, `told` if it did not."""
        self.probe.write(kind, id=key)
