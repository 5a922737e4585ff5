"""The store in this process's memory: it ends with the process, as its messages do."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from heapq import nlargest, nsmallest
from math import inf
from typing import Final, Literal

from taskbridge.locks import Lock
from taskbridge.settings import Settings
from taskbridge.stores.backend import ABSENT, LISTED, Backend, Commit, Listed, Write, head_of
from taskbridge.stores.base import Store
from taskbridge.stores.notifications import Watches

_MOST_OLD: Final = 1000  # how many texts whose time is over stay, beside as many as there are others
_NOTHING: Final = (None, inf)


class MemoryBackend(Backend):
    """Keeps texts in a table."""

    is_shared = False

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = Lock()
        self._kept: dict[str, tuple[str | None, float]] = {}
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
                    for entry in commit.entries:
                        text = entry.text or self._outbox.get(entry.id, (0.0, ""))[1]
                        if text:
                            self._outbox[entry.id] = self._now() + entry.in_s, text
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

    def listed(
        self,
        kind: Literal["state", "queue"],
        names: Sequence[str],
        *,
        before: tuple[float, str],
        most: int,
        timeout_s: float,
    ) -> list[list[tuple[str, float]]]:
        with self._lock:
            known = [(getattr(each, kind), each.at, each.id) for each in self._listed.values()]
        choose = partial(nlargest if kind == "state" else nsmallest, most)
        found = [choose((at, key) for of, at, key in known if of == name and (at, key) < before) for name in names]
        return [[(key, at) for at, key in each] for each in found]

    def ping(self, *, timeout_s: float) -> None:
        """Return: it answers."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _until(self, kept_s: float | None) -> float:
        return inf if kept_s is None else self._now() + kept_s

    def _find(self, key: str) -> str | None:
        text, until = self._kept.get(key, _NOTHING)
        return text if until > self._now() else None

    def _put(self, key: str, text: str, kept_s: float | None) -> None:
        self._kept[key] = text, self._until(kept_s)
        if len(self._kept) > self._most:  # by then as many were added as are looked at
            now = self._now()
            self._kept = {key: kept for key, kept in self._kept.items() if kept[1] > now}
            self._most = 2 * len(self._kept) + _MOST_OLD


def open_store(settings: Settings, url: str, *, now: Callable[[], float] = time.time) -> Store:
    """Return a new store, for two bridges share none; texts grow old by the clock, which is virtual on `inline://`."""
    return Store(settings, MemoryBackend(now))
