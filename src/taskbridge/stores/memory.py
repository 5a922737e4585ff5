"""The store in this process's memory: it ends with the process, as its messages do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import nlargest, nsmallest
from math import inf
from typing import Any, Final

from taskbridge.locks import Lock
from taskbridge.settings import Settings
from taskbridge.stores.backend import (
    ABSENT,
    COUNTED,
    LISTED,
    Backend,
    Commit,
    Counted,
    Counts,
    Entry,
    Listed,
    ListKind,
    Page,
    Rank,
    Tally,
    Write,
    head_of,
)
from taskbridge.stores.base import Store
from taskbridge.stores.notifications import Watches

_MOST_OLD: Final = 1000  # how many texts whose time is over stay, beside as many as there are others
_NOTHING: Final = (None, inf)
_LATE: Final = (inf, "")


@dataclass(slots=True)
class _Group:
    """What is known of a group: how members ended, by their index, and what is kept of that."""

    ended: dict[int, tuple[Counted, str | None]] = field(default_factory=dict[int, tuple[Counted, "str | None"]])
    counts: Counter[str] = field(default_factory=Counter[str])
    sent: int = 0

    def told(self) -> Counts:
        done, dead, discarded, cancelled = (self.counts[each] for each in COUNTED)
        return Counts(done, dead, discarded, cancelled, self.sent)


class MemoryBackend(Backend):
    """Keeps texts in a table."""

    is_shared = False

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = Lock()
        self._kept: dict[str, tuple[Any, float]] = {}  # texts, and groups by a line break and their key
        self._most = _MOST_OLD
        self._cancelled: list[tuple[str, float]] = []
        self._cancelled_before = 0
        self._outbox: dict[str, tuple[float, str]] = {}
        self._watches = Watches()
        self._listed: dict[str, Listed] = {}

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        with self._lock:
            return [self._find(key) for key in keys]

    def create(self, entries: Sequence[tuple[str, str, float | None]], *, timeout_s: float) -> None:
        with self._lock:
            for key, text, kept_s in entries:
                if self._find(key) is None:
                    self._put(key, text, kept_s)

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        with self._lock:
            done = [self._write(each) for each in writes]
        for write, is_done in zip(writes, done, strict=True):
            if is_done and write.tells:
                self._watches.wake(write.key)
        return done

    def commit(self, commits: Sequence[Commit], *, timeout_s: float) -> list[bool]:
        done: list[bool] = []
        with self._lock:
            for commit in commits:
                done.append(all(self._fits(each) for each in commit.writes))
                if done[-1]:
                    for write in commit.writes:
                        self._write(write)
                    for key, index in commit.uncounts:
                        group = self._group(key)
                        if index in group.ended:
                            group.counts[group.ended.pop(index)[0]] -= 1
                    for entry in commit.entries:
                        self._post(entry)
        for commit, is_done in zip(commits, done, strict=True):
            for write in commit.writes if is_done else ():
                if write.tells:
                    self._watches.wake(write.key)
        return done

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        with self._lock:
            now = self._now()
            found = [(key, text) for key, (due_at, text) in self._outbox.items() if due_at <= now][:most]
            self._outbox.update({key: (now + lease_s, text) for key, text in found})
            return found

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        with self._lock:
            for key in ids:
                self._outbox.pop(key, None)

    def _post(self, entry: Entry) -> None:
        text = entry.text or self._outbox.get(entry.id, (0.0, ""))[1]
        if text:
            self._outbox[entry.id] = self._now() + entry.in_s, text

    def _fits(self, write: Write) -> bool:
        found = self._find(write.key)
        return found is None if write.seen == ABSENT else write.seen == head_of(found)

    def _write(self, write: Write) -> bool:
        if not self._fits(write):
            return False
        if write.text is None:
            self._kept.pop(write.key, None)
        else:
            self._put(write.key, write.text, write.kept_s)
        if write.cancels:
            self._cancelled.append((write.cancels, self._until(write.cancellation_kept_s)))
            while self._cancelled and self._cancelled[0][1] <= self._now():
                del self._cancelled[0]
                self._cancelled_before += 1
        return True

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        self.put_soon(key, text, kept_s=kept_s)

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        with self._lock:
            self._put(key, text, kept_s)

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        with self._lock:
            for key in keys:
                self._kept.pop(key, None)

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        with self._lock:
            skipped = max(0, int(cursor or "0") - self._cancelled_before)
            lives = [life for life, _ in self._cancelled[skipped : skipped + most]]
            return str(self._cancelled_before + skipped + len(lives)), lives

    def watch(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        stop, heard = self._watches.add(key, wake)
        heard.set()
        return stop

    def list_soon(self, entries: Sequence[Listed]) -> None:
        with self._lock:
            for each in entries:
                old = self._listed.get(each.id)
                if each.state is not None or (old is not None and old.state in each.formers):
                    self._listed.pop(each.id, None)
                if each.state is not None:
                    self._listed[each.id] = each
            while len(self._listed) > LISTED:
                del self._listed[next(iter(self._listed))]

    def listed(self, kind: ListKind, names: Sequence[str], *, before: Rank, most: int, timeout_s: float) -> list[Page]:
        with self._lock:
            known = [(getattr(each, kind), each.at, each.id) for each in self._listed.values()]
        choose = partial(nlargest if kind == "state" else nsmallest, most)
        found = [choose((at, key) for of, at, key in known if of == name and (at, key) < before) for name in names]
        return [[(key, at) for at, key in each] for each in found]

    def tally(self, write: Write, tally: Tally, *, timeout_s: float) -> bool | None:
        with self._lock:
            if not self._write(write):
                return None
            group, entry = self._made(tally.key), tally.entry
            if tally.index not in group.ended:
                group.ended[tally.index] = tally.ended, tally.text
                group.counts[tally.ended] += 1
            is_posted = tally.is_posted(all_ended=len(group.ended) >= tally.total)
            if is_posted and self._outbox.get(entry.id, _LATE)[0] > self._now() + entry.in_s:
                self._post(entry)
        if write.tells:
            self._watches.wake(write.key)
        return is_posted

    def counts_of(self, keys: Sequence[str], *, timeout_s: float) -> list[Counts]:
        with self._lock:
            return [self._group(key).told() for key in keys]

    def members(self, key: str, first: int, count: int, *, timeout_s: float) -> list[tuple[Counted, str | None] | None]:
        with self._lock:
            ended = self._group(key).ended
            return [ended.get(index) for index in range(first, first + count)]

    def first_open(self, key: str, total: int, *, timeout_s: float) -> int | None:
        with self._lock:
            ended = self._group(key).ended
            return next((index for index in range(total) if index not in ended), None)

    def note_sent(self, key: str, sent: int, *, timeout_s: float) -> None:
        with self._lock:
            group = self._made(key)
            group.sent = max(group.sent, sent)

    def end_groups(self, keys: Sequence[str], *, kept_s: float | None, timeout_s: float) -> None:
        with self._lock:
            for key in keys:
                if kept_s is not None or self._find(f"\n{key}") is not None:
                    self._put(f"\n{key}", self._group(key), kept_s)

    def count_listed(self, names: Sequence[str], *, timeout_s: float) -> list[int]:
        with self._lock:
            counts = Counter(each.state for each in self._listed.values())
        return [counts[name] for name in names]

    def ping(self, *, timeout_s: float) -> None:
        """Return: it answers."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _until(self, kept_s: float | None) -> float:
        return inf if kept_s is None else self._now() + kept_s

    def _group(self, key: str) -> _Group:
        return self._find(f"\n{key}") or _Group()

    def _made(self, key: str) -> _Group:
        group: _Group | None = self._find(f"\n{key}")
        if group is None:
            self._put(f"\n{key}", group := _Group(), None)
        return group

    def _find(self, key: str) -> Any:
        text, until = self._kept.get(key, _NOTHING)
        return text if until > self._now() else None

    def _put(self, key: str, text: str | _Group, kept_s: float | None) -> None:
        self._kept[key] = text, self._until(kept_s)
        if len(self._kept) > self._most:  # by then as many were added as are looked at
            now = self._now()
            self._kept = {key: kept for key, kept in self._kept.items() if kept[1] > now}
            self._most = 2 * len(self._kept) + _MOST_OLD


def open_store(settings: Settings, url: str, *, now: Callable[[], float] = time.time) -> Store:
    """Return a new store, for two bridges share none; texts grow old by the clock, which is virtual on `inline://`."""
    return Store(settings, MemoryBackend(now))
