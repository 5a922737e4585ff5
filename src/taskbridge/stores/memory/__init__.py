"""The store in this process's memory: it ends with the process, as its messages do."""

from __future__ import annotations

from taskbridge.settings import Settings
from taskbridge.stores.memory.marks import MemoryMarks


class MemoryStore:
    """A store in memory.

    Attributes:
        marks: The attempt marks.
    """

    def __init__(self) -> None:
        self.marks: MemoryMarks = MemoryMarks()

    def close(self) -> None:
        """Do nothing: there is no connection."""


def open_store(settings: Settings, url: str) -> MemoryStore:
    """Return a new store; two bridges share none."""
    return MemoryStore()
