"""What this worker has done lately, so that it does not do it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from taskbridge.message import Message

_REMEMBERED: Final = 10_000

RUNNING: Final = "running"
ENDED: Final = "ended"


class Attempts:
    """The attempts that this worker runs, and those that it ended lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[tuple[str, int]] = set()
        self._ended: OrderedDict[tuple[str, int], None] = OrderedDict()

    def begin(self, message: Message) -> None:
        """Note that an attempt is handed to the pool."""
        with self._lock:
            self._running.add((message.id, message.attempt))
            self._ended.pop((message.id, message.attempt), None)  # a dead letter that was replayed

    def end(self, message: Message) -> None:
        """Note that an attempt's verdict has been carried out."""
        with self._lock:
            self._running.discard((message.id, message.attempt))
            self._ended[message.id, message.attempt] = None
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def forget(self, message: Message) -> None:
        """Note that an attempt was given back."""
        with self._lock:
            self._running.discard((message.id, message.attempt))

    def state_of(self, message: Message) -> str | None:
        """Return what is known of an attempt: `running`, `ended`, or None for nothing."""
        key = message.id, message.attempt
        with self._lock:
            return RUNNING if key in self._running else ENDED if key in self._ended else None
