"""What the records of all stores have in common: `transitions` decides, and a store replaces what was decided about.

A store reads a record, asks for a decision and writes what was decided, provided that nobody has written meanwhile. If
somebody has, the decision is made again from what is there now.
"""

from __future__ import annotations

import os
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from taskbridge.locks import Lock
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.records import FINAL, Ending, Record, State
from taskbridge.stores.transitions import Kept, Run

_REMEMBERED: Final = 10_000
"""How many runs are remembered: one that was never settled here is forgotten after as many others."""

Decide = Callable[[Kept | None], Kept | None]
"""Given a record, or None if there is none, returns what is to replace it; None is to leave it as it is."""

Change = tuple[Kept | None, Kept | None]
"""The record that a decision was made about, and what has replaced it."""


def process_name() -> str:
    """Return a name for this process that no other process has or had."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Runs:
    """The runs that this process has started, so that the news of a run's end can tell of its start too.

    Attributes:
        writer: What this process is called where its writes are told from another's.
    """

    def __init__(self) -> None:
        self.writer: str = process_name()
        self._lock = Lock()
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


class StoredRecords(ABC):
    """Records whose changes are decided here."""

    def __init__(self, settings: Settings) -> None:
        self._ttl_s = settings.result_ttl_s

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and notify whoever waits for a final record."""
        runs = self._runs()
        run = runs.get(message)

        def decide(old: Kept | None) -> Kept | None:
            return transitions.ended(old, message, ending, run, writer=runs.writer)

        old, new = self._end(message, run, decide, timeout_s)
        runs.remove(message)
        self._tell(new)
        return transitions.left(old, new, message)

    def get(self, message_id: str, *, timeout_s: float) -> Record | None:
        """Return a record; None if there is none, or it is older than `result_ttl`."""
        kept = self._read(message_id, timeout_s)
        return None if kept is None else kept.record

    def cancel(self, message_id: str, *, at: float, timeout_s: float) -> Record | None:
        """Cancel a message unless it is final."""
        old, new = self._cancel(message_id, lambda old: transitions.cancelled(old, at=at), timeout_s)
        self._tell(new)
        left = old if new is None else new
        return None if left is None else left.record

    def _kept_s(self, kept: Kept, now: float) -> float | None:
        """Return for how many seconds from now a record is kept; None is for ever."""
        return transitions.kept_s(kept.record, result_ttl_s=self._ttl_s, now=now)

    def _cancellation_kept_s(self, kept: Kept, now: float) -> float | None:
        """Return for how many seconds from now the cancellation of a record is kept; None is for ever."""
        return transitions.cancellation_kept_s(kept.record, result_ttl_s=self._ttl_s, now=now)

    def _tell(self, new: Kept | None) -> None:
        if new is not None and new.record.state in FINAL:
            self._notify(new.record.id)

    # What each store does in its own way

    @abstractmethod
    def _runs(self) -> Runs:
        """Return the runs of this process."""

    @abstractmethod
    def _read(self, message_id: str, timeout_s: float) -> Kept | None:
        """Return a record; None if there is none."""

    @abstractmethod
    def _end(self, message: Message, run: Run | None, decide: Decide, timeout_s: float) -> Change:
        """Replace the record of a message whose run, or wait, has ended."""

    @abstractmethod
    def _cancel(self, message_id: str, decide: Decide, timeout_s: float) -> Change:
        """Replace a record, and if it was replaced, note its life for `cancelled_since` in the same step."""

    def _notify(self, message_id: str) -> None:
        """Notify who waits in this process for a record that has become final, where writing it doesn't do that."""
        return
