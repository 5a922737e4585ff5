"""Records of one process."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Final

from taskbridge.brokers.base import RedisCommand
from taskbridge.locks import Lock
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.notifications import Watches
from taskbridge.stores.recording import Change, Decide, Runs, StoredRecords
from taskbridge.stores.records import CANCELLATIONS_AT_ONCE, FINAL
from taskbridge.stores.transitions import Kept, Run

_FORGOTTEN_AT_ONCE: Final = 20
"""How many records that are too old a call removes at most."""

_MOST_STALE: Final = 1000
"""How many entries too many the queue of ends has at most, beside twice as many as there are records."""


class MemoryRecords(StoredRecords):
    """Keeps records in a table."""

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        super().__init__(settings)
        self._now = now
        self._lock = Lock()
        self._started = Runs()
        self._kept: dict[str, Kept] = {}
        self._until: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []
        self._cancelled: list[tuple[str, float | None]] = []
        self._cancelled_before = 0
        self._watches = Watches()

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages."""
        with self._lock:
            for message, delay_s in messages:
                self._put(transitions.created(self._find(message.id), message, delay_s))

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return None: this is no Redis."""
        return None

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records that nobody has changed."""
        with self._lock:
            for message_id in ids:
                kept = self._kept.get(message_id)
                if kept is not None and transitions.is_untouched(kept):
                    self._remove(message_id)

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts."""
        run = Run(worker=worker, at=at)
        self._started.add(message, run)
        with self._lock:
            self._put(transitions.started(self._find(message.id), message, run, writer=self._started.writer))

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when a message's record becomes final, until it is told to stop."""
        return self._watches.add(message_id, wake)

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor."""
        with self._lock:
            skipped = max(0, int(cursor or "0") - self._cancelled_before)
            lives = [life for life, _ in self._cancelled[skipped : skipped + CANCELLATIONS_AT_ONCE]]
            return str(self._cancelled_before + skipped + len(lives)), lives

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _runs(self) -> Runs:
        return self._started

    def _read(self, message_id: str, timeout_s: float) -> Kept | None:
        with self._lock:
            return self._find(message_id)

    def _end(self, message: Message, run: Run | None, decide: Decide, timeout_s: float) -> Change:
        with self._lock:
            return self._changed(message.id, decide)

    def _cancel(self, message_id: str, decide: Decide, timeout_s: float) -> Change:
        with self._lock:
            old, new = self._changed(message_id, decide)
            if old is not None and new is not None:
                now = self._now()
                kept_s = self._cancellation_kept_s(old, now)
                self._cancelled.append((transitions.life_of(old.record), None if kept_s is None else now + kept_s))
                self._forget_cancellations(now)
            return old, new

    def _notify(self, message_id: str) -> None:
        self._watches.wake(message_id)

    def _changed(self, message_id: str, decide: Decide) -> Change:
        old = self._find(message_id)
        new = decide(old)
        self._put(new)
        return old, new

    def _find(self, message_id: str) -> Kept | None:
        now = self._now()
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not self._ends or self._ends[0][0] > now:
                break
            _, found = heapq.heappop(self._ends)
            until = self._until.get(found)
            if until is not None and until > now:
                heapq.heappush(self._ends, (until, found))
            else:
                self._remove(found)
        if self._until.get(message_id, now + 1) <= now:
            self._remove(message_id)
        return self._kept.get(message_id)

    def _put(self, kept: Kept | None) -> None:
        if kept is None:
            return
        now, message_id = self._now(), kept.record.id
        self._kept[message_id] = kept
        kept_s = self._kept_s(kept, now)
        if kept_s is None:
            self._until.pop(message_id, None)
            return
        is_new = message_id not in self._until
        self._until[message_id] = now + kept_s
        if is_new or kept.record.state in FINAL:  # else the queue grows by each write
            heapq.heappush(self._ends, (now + kept_s, message_id))
        if len(self._ends) > 2 * len(self._until) + _MOST_STALE:  # of records that are gone, or end sooner
            self._ends = [(until, name) for name, until in self._until.items()]
            heapq.heapify(self._ends)

    def _remove(self, message_id: str) -> None:
        self._kept.pop(message_id, None)
        self._until.pop(message_id, None)

    def _forget_cancellations(self, now: float) -> None:
        while self._cancelled:
            until = self._cancelled[0][1]
            if until is None or until > now:
                return
            del self._cancelled[0]
            self._cancelled_before += 1
