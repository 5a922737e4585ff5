"""Which messages were cancelled, as far as this process knows: asked before each start (rules CA).

A thread asks the store what is new, a few times in `CANCEL_KNOWN_S`. So a start costs a look at a set, and one only
waits for the store if what is known has grown old: as the process begins, after it stood still, or while the store is
away. Of a cancelled message that runs here, it reads the record, which tells whether the run is to be interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.runner import Runs
from taskbridge.settings import Settings
from taskbridge.stores.records import CANCEL_KNOWN_S, Records

_log = logger("taskbridge.worker")

PERIOD_S: Final = CANCEL_KNOWN_S / 4  # how often the store is asked
_OLD_S: Final = CANCEL_KNOWN_S * 0.8  # from when on a start does not rest on what is known

_MOST_FORGOTTEN: Final = 10_000
"""How many lives more are known than the store knows, at most, beside as many as it knows."""


class Cancellations(Background):
    """The lives of messages (`Message.life`) that were cancelled, and the thread that asks for them. Threads share it.

    `records` returns the records that tell of cancellations, or None if there are none.
    """

    def __init__(self, records: Callable[[], Records | None], *, settings: Settings) -> None:
        super().__init__("cancelled", join_s=0.0)
        self._records = records
        self._timeout_s = settings.send_timeout_s
        self._is_shared = _is_shared(settings)
        self._asking = locks.Lock()
        self._lives: set[str] = set()
        self._enough = _MOST_FORGOTTEN
        self._cursor = ""
        self._known_at = -inf
        self.runs: Runs | None = None  # what runs in this process; None if nothing does

    def add(self, life: str, *, interrupt: bool = False) -> None:
        """Learn of a cancellation that was asked for in this process, and is stored."""
        if self._is_shared:
            if self._thread is not None:  # else nothing has started here, and whatever does asks the store first
                self._lives.add(life)
            return
        self._lives.add(life)
        if interrupt:
            self.start()
        if len(self._lives) > self._enough:
            with self._asking:
                self._forget(self._timeout_s)

    def has(self, message: Message, *, timeout_s: float | None = None) -> bool:
        """Return whether a message that is about to start was cancelled at least `CANCEL_KNOWN_S` ago.

        The store may take `timeout_s` to answer, `send_timeout` if None. Raises `BrokerUnavailable` if what is known is
        too old, and the store doesn't answer.
        """
        if self._is_shared:
            self.start()
            if monotonic() - self._known_at > _OLD_S:
                self._ask(self._timeout_s if timeout_s is None else timeout_s)
        return self._is_over(message)

    def _is_over(self, message: Message) -> bool:
        """Return whether a message was cancelled, or the flow of which it is a step is over."""
        lives = self._lives
        if not lives:  # as most of the time
            return False
        return message.life in lives or (message.flow != "" and any(each in lives for each in _of_its_flows(message)))

    def knows(self, message: Message) -> bool:
        """Return whether a message that runs was cancelled, as far as is known; waits for nothing."""
        if self._is_shared:
            self.start()
        return self._is_over(message)

    def close(self) -> None:
        self.stop()

    def run(self, stop: threading.Event) -> None:
        """Keep what is known new."""
        is_away = False
        while not stop.wait(PERIOD_S):
            try:
                if self._is_shared:
                    self._ask(self._timeout_s, unless_newer_than_s=PERIOD_S / 2)
                self._interrupt()
                is_away = False
            except BrokerUnavailable as exc:
                if not is_away:
                    _log.warning("nothing starts until the store tells again what is cancelled: %s", exc.problem)
                is_away = True

    def _interrupt(self) -> None:
        """Interrupt what runs here of messages that were cancelled so, however late it began after that."""
        records, runs = self._records(), self.runs
        if records is None or runs is None:
            return
        for run in [each for each in runs.all() if each.message.life in self._lives]:
            record = records.get(run.message.id, timeout_s=self._timeout_s)
            if record is not None and record.interrupt_asked and record.replays == run.message.replays:
                runs.cancel(run)

    def _ask(self, timeout_s: float, *, unless_newer_than_s: float = _OLD_S) -> None:
        """Learn what was cancelled since the last time; of several threads that need it, one asks."""
        with self._asking:
            asked_at = monotonic()
            if asked_at - self._known_at > unless_newer_than_s and self._learn(self._lives, timeout_s):
                self._known_at = asked_at
                if len(self._lives) > self._enough:
                    self._forget(timeout_s)

    def _learn(self, lives: set[str], timeout_s: float) -> bool:
        """Add the lives that the store tells of from the cursor on; return False if there is no store."""
        records, deadline = self._records(), monotonic() + timeout_s
        while records is not None:
            cursor, found = records.cancelled_since(self._cursor, timeout_s=deadline - monotonic())
            lives.update(found)
            self._cursor = cursor  # after that, for a child that is forked in between
            if not found:
                return True
        return False

    def _forget(self, timeout_s: float) -> None:
        """Forget the lives that the store has forgotten, which knows how long a message can be about.

        All that it still knows is read, so this is done when there are twice as many as the last time.
        """
        before, kept, self._cursor = set(self._lives), set[str](), ""
        if self._learn(kept, timeout_s):
            self._lives -= before - kept  # in place: others may add some meanwhile
            self._enough = _MOST_FORGOTTEN + 2 * len(kept)


def _of_its_flows(message: Message) -> list[str]:
    from taskbridge.stores.steps import step_lives  # here, for few messages are in a flow

    return step_lives(message.flow)


def _is_shared(settings: Settings) -> bool:
    """Return whether others than this process can cancel what the store keeps."""
    if settings.store is None:
        return settings.url.broker != "memory"
    return not settings.store.startswith("memory:")
