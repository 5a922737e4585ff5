"""Attempt marks of one process: whoever started an attempt is alive, or all is gone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from taskbridge import locks
from taskbridge.message import Message
from taskbridge.stores.base import Claim

_KEPT: Final = 10_000
"""How many ended attempts are remembered."""


class MemoryMarks:
    """Keeps marks in a table."""

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._running: set[tuple[str, int]] = set()
        self._ended: OrderedDict[tuple[str, int], None] = OrderedDict()

    def started(self, message: Message) -> None:
        """Mark an attempt as started."""
        with self._lock:
            self._running.add((message.life, message.attempt))

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended."""
        key = message.life, message.attempt
        with self._lock:
            self._running.discard(key)
            self._ended[key] = None
            if len(self._ended) > _KEPT:
                self._ended.popitem(last=False)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away."""
        with self._lock:
            self._running.discard((message.life, message.attempt))

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs away."""
        with self._lock:
            self._running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Say what may be done with a message that may have been delivered before."""
        key = message.life, message.attempt
        with self._lock:
            if key in self._ended:
                return Claim.ENDED
            if key in self._running:
                return Claim.RUNNING
            self._running.add(key)
            return Claim.RUN

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Say yes: nobody is taken for dead."""
        return True

    def prepare(self) -> None:
        """Do nothing: there is no connection."""

    def stood_still(self) -> bool:
        """Say no: nobody is taken for dead."""
        return False

    def close(self) -> None:
        """Do nothing: there is no connection."""
