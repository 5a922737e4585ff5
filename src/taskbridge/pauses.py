"""Pauses: queues and tasks of which nothing starts until they are resumed (rules Z).

They are one text in the store, so they outlive workers and brokers. Each worker process reads it twice a second, and
keeps to what it read last while the store is away.

| what is paused | its messages | where |
|---|---|---|
| a queue | stay in it: no worker takes any | the engine's consumers |
| a task | are parked as they are taken, before their start, and come back soon | `engines.settle` |

What a worker has in hand of a queue as it learns of the pause goes back, or is parked, too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from math import inf
from time import monotonic, sleep
from types import NoneType
from typing import Any, Final

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.durations import moment, timestamp
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.probe import PROBE
from taskbridge.stores.backend import Backend, Write, head_of, next_of

_log = logger("taskbridge.worker")

KEY: Final = "pauses"
PERIOD_S: Final = 0.5  # how often a worker process reads it
_OLD_S: Final = 0.9  # from when on a start does not rest on what was read: rule Z1 gives a second
_ANSWER_S: Final = 1.0  # how long a reading may take, and hold up a start

PUT_OFF_S: Final = 3.0
"""How long a message of a paused task waits at least before it is looked at again."""

MOST_PUT_OFF_S: Final = 600.0
MOST_BACK_A_SECOND: Final = 100
"""How many messages a second come back to a process that has put them off: more of them wait longer."""

_PAUSE_S: Final = 0.01  # before a change is tried again, because somebody else was quicker
_UNREADABLE: Final = (ValueError, TypeError, OverflowError, RecursionError, OSError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """What is paused: a queue, or the tasks whose names match a glob; the other one is None.

    Attributes:
        queue: The queue.
        task: The glob, such as `shop.*`.
        since: When it was paused, in UTC.
        until: When it goes on by itself, in UTC; None if it waits for `resume`.
    """

    queue: str | None
    task: str | None
    since: datetime
    until: datetime | None


class Pauses(Background):
    """What is paused, as far as this process knows. Threads share it.

    `now` tells the time by the store's clock.

    Attributes:
        active: Whether anything is paused.
        queues: The queues that are paused.
        ends_at: When the next of it ends by itself, in seconds since the epoch; infinite if nothing does.
        old_at: From when on, by the monotonic clock, a start asks the store.
        on_change: Called after any of this has changed, in whichever thread, for a worker to keep to it.
    """

    def __init__(self, backend: Backend, now: Callable[[], float], *, timeout_s: float) -> None:
        super().__init__("pauses", join_s=0.0)
        self._backend = backend
        self._now = now
        self._timeout_s = timeout_s
        self._asking = locks.Lock()
        self._pacing = locks.Lock()
        self._text: str | None = None
        self._found: tuple[Pause, ...] = ()
        self._globs: tuple[str, ...] = ()
        self._back_at = 0.0
        self._is_known = False
        self._is_away = False
        self.active: bool = False
        self.queues: frozenset[str] = frozenset()
        self.ends_at: float = inf
        self.old_at: float = -inf
        self.on_change: Callable[[], object] = bool

    # For operators

    def all(self, *, timeout_s: float = inf) -> tuple[Pause, ...]:
        """Return what is paused, the earliest first; raises `StoreUnavailable`, at the latest after `send_timeout`."""
        return self._in_force(_readable(self._get(min(timeout_s, self._timeout_s))))

    def pause(self, queue: str | None, task: str | None, until: datetime | None) -> None:
        """Pause a queue or a glob's tasks; for one that is paused, set when it ends."""
        now = self._now()
        if until is not None and timestamp(until, name="until") <= now:
            raise ValueError(f"until must be in the future, not {until.isoformat()}")
        self._change((queue, task), Pause(queue=queue, task=task, since=moment(now), until=until))

    def resume(self, queue: str | None, task: str | None) -> bool:
        """Resume a queue, or the tasks of a glob; return whether it was paused."""
        return self._change((queue, task), None)

    def _change(self, what: tuple[str | None, str | None], pause: Pause | None) -> bool:
        """Put a pause in the place of what is in force, or end that if it is None; return whether there was one."""
        deadline = monotonic() + self._timeout_s
        while (left_s := deadline - monotonic()) > 0:
            text = self._get(left_s)
            found = {(each.queue, each.task): each for each in self._in_force(_readable(text))}
            former = found.get(what)
            if pause is None:
                found.pop(what, None)
            else:
                found[what] = pause if former is None else replace(former, until=pause.until)
            rows = [
                [each.queue, each.task, each.since.timestamp(), each.until and each.until.timestamp()]
                for each in found.values()
            ]
            head = head_of(text)
            write = Write(KEY, head, f"{next_of(head)}\n{json.dumps(rows)}")
            if self._backend.write([write], timeout_s=max(0.0, deadline - monotonic()))[0]:
                if self._thread is not None or not self._backend.is_shared:
                    with suppress(BrokerUnavailable):  # the thread looks again
                        self.look()
                return former is not None
            sleep(_PAUSE_S)
        raise StoreUnavailable("others pause and resume at the same time")

    def _get(self, timeout_s: float) -> str | None:
        return self._backend.get([KEY], timeout_s=timeout_s)[0]

    def _in_force(self, found: Iterable[Pause]) -> tuple[Pause, ...]:
        now = self._now()
        return tuple(each for each in found if each.until is None or each.until.timestamp() > now)

    # For workers

    def begin(self) -> None:
        """Learn what is paused before the first message is taken, and keep that new."""
        with suppress(BrokerUnavailable):  # else the first start asks
            self._renew()

    def covers(self, message: Message, *, timeout_s: float = inf) -> bool:
        """Return whether a message that is about to start is not to; raises `StoreUnavailable` if nothing is known."""
        if monotonic() >= self.old_at or self.ends_at <= self._now():
            self._renew(timeout_s)
        return self.holds(message)

    def holds(self, message: Message) -> bool:
        """Return whether a message is not to start, as far as is known; waits for nothing."""
        if not self.active or message.task == PROBE:
            return False
        return message.queue in self.queues or any(fnmatchcase(message.task, glob) for glob in self._globs)

    def wait_s(self) -> float:
        """Return how long a message is to wait that is put off now, in seconds."""
        with self._pacing:
            now = monotonic()
            earliest = max(now + PUT_OFF_S, self._back_at + 1 / MOST_BACK_A_SECOND)
            self._back_at = min(earliest, now + MOST_PUT_OFF_S)
            return self._back_at - now

    def close(self) -> None:
        """End the thread."""
        self.stop()

    def run(self, stop: threading.Event) -> None:
        """Keep what is known new."""
        while not stop.wait(PERIOD_S):
            try:
                with suppress(BrokerUnavailable):  # which is told
                    self.look()
            except Exception:
                _log.exception("looking for what is paused failed, trying again")

    def _renew(self, timeout_s: float = inf) -> None:
        if self._backend.is_shared:
            self.start()
        if self._is_away and self._is_known:  # the last that is known holds, and the thread goes on asking
            return
        try:
            self.look(asked_at=monotonic(), timeout_s=timeout_s)
        except BrokerUnavailable:
            if not self._is_known:
                raise

    def look(self, *, asked_at: float = inf, timeout_s: float = inf) -> None:
        """Learn what is paused now, unless another thread has done so since `asked_at`; raises `StoreUnavailable`."""
        with self._asking:
            if asked_at + _OLD_S < self.old_at < inf:
                return
            began, error = monotonic(), None
            try:
                text = self._get(min(_ANSWER_S, timeout_s, self._timeout_s))
            except BrokerUnavailable as exc:
                if not self._is_away:
                    held = "what is known holds" if self._is_known else "nothing starts until it is"
                    _log.warning("it is not known what is paused, %s: %s", held, exc.problem)
                self._is_away, error = True, exc
            else:
                self._learn(text)
                self.old_at = began + _OLD_S if self._backend.is_shared else inf
            has_changed = self._note(self._in_force(self._found))  # one may have ended meanwhile
        if has_changed:  # not under the lock, for what is told may take locks that those who ask hold
            self.on_change()
        if error is not None:
            raise error

    def _learn(self, text: str | None) -> None:
        self._is_away, self._is_known = False, True
        if text != self._text:
            self._text = text
            try:
                self._found = _loads(text)
            except _UNREADABLE as exc:
                _log.error("what is paused, under %r, can't be read and is left as it was: %s", KEY, type(exc).__name__)

    def _note(self, found: Sequence[Pause]) -> bool:
        """Note what is in force; return whether it is something else than before."""
        queues = frozenset([each.queue for each in found if each.queue is not None])
        globs = tuple([each.task for each in found if each.task is not None])
        ends = [each.until.timestamp() for each in found if each.until is not None]
        self.ends_at = min(ends, default=inf)
        if ends and not self._backend.is_shared:
            self.start()  # which sees the end
        if (queues, globs) == (self.queues, self._globs):
            return False
        self.queues, self._globs, self.active = queues, globs, bool(queues or globs)
        self._back_at = self._back_at if globs else 0.0
        shown = ", ".join([*sorted(queues), *(f"tasks {glob}" for glob in globs)])
        _log.info("paused: %s", shown or "nothing any more")
        return True


def _loads(text: str | None) -> tuple[Pause, ...]:
    """Return the pauses in a text; raises `_UNREADABLE`."""
    rows: list[Any] = [] if text is None else json.loads(text.partition("\n")[2])
    for queue, task, *_ in rows:
        if (type(queue), type(task)) not in ((str, NoneType), (NoneType, str)):
            raise TypeError("neither a queue nor a task")
    return tuple(
        Pause(queue=queue, task=task, since=moment(float(since)), until=moment(until))
        for queue, task, since, until, *_ in rows
    )


def _readable(text: str | None) -> tuple[Pause, ...]:
    try:
        return _loads(text)
    except _UNREADABLE as exc:
        raise StoreUnavailable(f"what is paused, under {KEY!r}, can't be read: remove that key") from exc
