"""What workers and those who watch them call things."""

from __future__ import annotations

from typing import Final

FOLDER_VARIABLE: Final = "TASKBRIDGE_TEST_HOSTILE_FOLDER"
PROBE_FILE: Final = "probe.jsonl"
CANARY_FILE: Final = "executed"
APP: Final = "tests.hostile.app:bridge"

ACCEPT: Final = "hostile.accept"
FAILING: Final = "hostile.failing"

QUEUES: Final = ("first", "second")
