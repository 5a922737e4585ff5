"""`import taskbridge` is no burden to a producer."""

from __future__ import annotations

import subprocess
import sys

TRIES = 5
LONGEST_MS = 30.0
"""How much more than `import typing` it may take."""


def import_ms() -> float:
    """Return what `import taskbridge` takes in a Python of its own that has imported typing, in milliseconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import typing; import taskbridge"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    [cumulative_us] = [int(row[1]) for row in rows if row[2].strip() == "taskbridge"]
    return cumulative_us / 1000


def test_importing_taskbridge_takes_less_than_thirty_milliseconds() -> None:
    times = [import_ms() for _ in range(TRIES)]  # the best of them: others are kept waiting by the machine
    assert min(times) < LONGEST_MS, f"milliseconds: {times}"
