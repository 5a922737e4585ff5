"""What workers and those who watch them call things."""

from __future__ import annotations

import random
from typing import Final

SEED_VARIABLE: Final = "TASKBRIDGE_TEST_HOSTILE_SEED"
FOLDER_VARIABLE: Final = "TASKBRIDGE_TEST_HOSTILE_FOLDER"
PROBE_FILE: Final = "probe.jsonl"
CANARY_FILE: Final = "imported"
APP: Final = "tests.hostile.app:bridge"

ACCEPT: Final = "hostile.accept"
FAILING: Final = "hostile.failing"

QUEUES: Final = ("first", "second")


def new_seed() -> int:
    """Return a seed that nobody has chosen, short enough to be typed."""
    return random.SystemRandom().randrange(1_000_000)
