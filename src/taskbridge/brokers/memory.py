"""The broker of one process: what waits for a worker is in the engine's hands, what is delayed or dead in these."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from taskbridge import locks
from taskbridge.brokers.base import Buried, Counts, Decide, MemoryWire, unpublished
from taskbridge.message import DeadLetter, Message, loads, loads_letter
from taskbridge.settings import Settings

_LOOK_S = 0.25  # how long a pump waits at most before it looks whether it is to stop


class MemoryBroker:
    """Keeps parked messages and dead letters as text, like a real broker, so that nothing is shared by accident."""

    def __init__(self, settings: Settings, wire: MemoryWire[Any], now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._wire = wire
        self._now = now
        self._changed = locks.Condition()
        self._parked: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._letters: list[tuple[float, str]] = []

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        for message in messages:
            self._wire.deliver(self._wire.encode(message))

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        now = self._now()
        with self._changed:
            for message, delay_s in messages:
                heapq.heappush(self._parked, (now + delay_s, next(self._numbers), message.dumps()))
            self._changed.notify_all()

    def bury(self, letter: DeadLetter, *, timeout_s: float) -> None:
        expires_at = self._now() + self._settings.dead_ttl_s
        with self._changed:
            self._letters.append((expires_at, letter.dumps()))

    def promote_due(self, buried: Buried | None = None) -> int:
        """Deliver what is due, the earliest first, and return how many messages those were."""
        promoted = 0
        with self._changed:  # held while delivering: else a message is for a moment neither parked nor waiting
            while self._parked and self._parked[0][0] <= self._now():
                text = heapq.heappop(self._parked)[2]
                try:
                    self.publish([loads(text)], timeout_s=0)
                    promoted += 1
                except Exception as exc:  # one message that can't be delivered must not be lost
                    self.bury(unpublished(text.encode(), exc, buried), timeout_s=0)
        return promoted

    def next_due(self) -> float | None:
        """Return when the earliest parked message is due, in seconds since the epoch; None if none is parked."""
        with self._changed:
            return self._parked[0][0] if self._parked else None

    def pump(self, *, knows: Callable[[str], bool], stop: threading.Event, buried: Buried | None = None) -> None:
        while not stop.is_set():
            self.promote_due(buried)
            with self._changed:
                due = self.next_due()
                wait_s = _LOOK_S if due is None else min(_LOOK_S, due - self._now())
                if wait_s > 0:
                    self._changed.wait(wait_s)

    def counts(self, queues: Sequence[str]) -> Counts:
        waiting = {queue: self._wire.waiting(queue) for queue in queues}
        with self._changed:
            return Counts(waiting=waiting, delayed=len(self._parked), dead=len(self._live_letters()))

    def dead_letters(self, ids: Collection[str] | None = None) -> list[DeadLetter]:
        with self._changed:
            letters = [loads_letter(text) for text in self._live_letters()]
        return [letter for letter in letters if ids is None or letter.id in ids]

    def take_dead(self, decide: Decide, *, ids: Collection[str] | None = None, timeout_s: float) -> list[str]:
        with self._changed:  # held while delivering, as in `promote_due`
            letters = {letter.id: letter for letter in self.dead_letters(ids)}
            fates = {letter_id: taken for letter_id, letter in letters.items() if (taken := decide(letter))}
            kept = [entry for entry in self._letters if loads_letter(entry[1]).id not in fates]
            again = [taken for taken in fates.values() if taken.message]
            self.publish([each.message for each in again if each.message and not each.delay_s], timeout_s=timeout_s)
            self.park([(each.message, each.delay_s) for each in again if each.message and each.delay_s], timeout_s=0)
            self._letters = kept
        return list(fates)

    def _live_letters(self) -> list[str]:
        now = self._now()
        self._letters = [(expires_at, text) for expires_at, text in self._letters if expires_at > now]
        return [text for _, text in self._letters]

    def ping(self, *, timeout_s: float) -> None:
        """Return at once: this process is the broker."""

    def close(self) -> None:
        """Do nothing: there is no connection."""


def connect(settings: Settings, wire: MemoryWire[Any]) -> MemoryBroker:
    """Return a memory broker of its own."""
    return MemoryBroker(settings, wire)
