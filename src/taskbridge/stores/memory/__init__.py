"""The store in this process's memory: it ends with the process, as its messages do."""

from __future__ import annotations

import time
from collections.abc import Callable

from taskbridge.settings import Settings
from taskbridge.stores.memory.marks import MemoryMarks
from taskbridge.stores.memory.records import MemoryRecords
from taskbridge.stores.memory.ticks import MemoryTicks


class MemoryStore:
    """A store in memory.

    Attributes:
        marks: The attempt marks.
        records: The records.
        ticks: The ticks of schedules.
    """

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self.marks: MemoryMarks = MemoryMarks()
        self.records: MemoryRecords = MemoryRecords(settings, now)
        self.ticks: MemoryTicks = MemoryTicks()

    def ping(self, *, timeout_s: float) -> None:
        """Return: it answers."""

    def close(self) -> None:
        """Do nothing: there is no connection."""


def open_store(settings: Settings, url: str, *, now: Callable[[], float] = time.time) -> MemoryStore:
    """Return a new store; two bridges share none.

    Args:
        settings: The bridge's.
        url: `memory://`.
        now: The clock by which records grow old; virtual on `inline://`.
    """
    return MemoryStore(settings, now)
