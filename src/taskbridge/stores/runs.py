"""Which runs this process has started, so that the news of a run's end can tell of its start too."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Final

from taskbridge import locks
from taskbridge.message import Message
from taskbridge.stores.transitions import Run

_REMEMBERED: Final = 10_000
"""How many runs are remembered: one that was never settled here is forgotten after as many others."""


class Runs:
    """The runs of this process.

    Attributes:
        writer: What this process is called where its writes are told from another's.
    """

    def __init__(self) -> None:
        self.writer: str = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.pid: int = os.getpid()
        self._lock = locks.Lock()
        self._runs: dict[tuple[str, int], Run] = {}

    def add(self, message: Message, run: Run) -> None:
        """Remember a run."""
        with self._lock:
            self._runs[message.life, message.attempt] = run
            if len(self._runs) > _REMEMBERED:
                del self._runs[next(iter(self._runs))]

    def get(self, message: Message) -> Run | None:
        """Return a run, if it was started here."""
        return self._runs.get((message.life, message.attempt))

    def remove(self, message: Message) -> None:
        """Forget a run."""
        with self._lock:
            self._runs.pop((message.life, message.attempt), None)
