"""What the attempt marks of stores outside this process have in common.

A mark says which worker has started an attempt, or that it has ended. A worker counts as alive for a time after it has
said so, and a thread of it says so four times in that time. What a claim is answered is decided here; a store only
reads and writes marks, each in one step.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from math import inf
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.base import Claim
from taskbridge.stores.process import PerProcess
from taskbridge.stores.recording import process_name

_log = logging.getLogger("taskbridge.store")

ENDED: Final = "ended"
"""The owner of a mark whose attempt has ended."""

LOST: Final = "|lost"
"""What ends the owner of a mark that its worker has found lost, and is to decide about."""

STARTED_KEPT_S: Final = 7 * 86400
"""How long the mark of a run that never ended is kept; its message comes back much sooner."""

_AFTER_END_S: Final = 60
"""How long past the lease an ended attempt is remembered: for a delivery that was on its way."""

_LONGEST_LIFE_S: Final = 8.0
"""A worker on RabbitMQ counts as dead after this: rule A2 asks for 10 s there, whatever the lease."""

_CLOSING_S: Final = 1.0

Key = tuple[str, int]
"""A message's life, and the number of an attempt in it."""


class Worker:
    """This process, as a store knows it, from `start` to `stop`.

    Attributes:
        name: Its name, which no other worker has or had.
        life_s: For how long it is alive after it has said so.
        running: What it runs, and since when, monotonic.
        deciding: What a thread of it decides about.
    """

    def __init__(self, settings: Settings, say_alive: Callable[[Worker], None], tidy: Callable[[], None]) -> None:
        self.name: str = process_name()
        on_rabbitmq = settings.url.broker == "amqp"
        self.life_s: float = min(settings.lease_s, _LONGEST_LIFE_S) if on_rabbitmq else settings.lease_s
        self.running: dict[Key, float] = {}
        self.deciding: set[Key] = set()
        self._tell = say_alive
        self._tidy = tidy
        self._seen_at = monotonic()
        self._lapsed_at = -inf
        self._lock = locks.Lock()
        self._stop = locks.Event()
        self._thread = threading.Thread(target=self._stay_alive, name="taskbridge-marks", daemon=True)

    def start(self) -> None:
        """Say that the process is alive, now and from now on."""
        self._say_alive()
        self._thread.start()

    def decides(self, key: Key) -> bool:
        """Return whether the caller is to decide about an attempt: no other thread does.

        Who finds it lost decides until the attempt's end is marked.
        """
        with self._lock:
            if key in self.deciding:
                return False
            self.deciding.add(key)
            return True

    def lived_since(self, moment: float) -> bool:
        """Return whether the store has known this process for alive all the time since then."""
        return monotonic() - self._seen_at < self.life_s and self._lapsed_at < moment

    def stop(self) -> None:
        """Say no more that the process is alive."""
        self._stop.set()
        self._thread.join(_CLOSING_S)  # else it could give a connection back to a pool that is closed

    def _say_alive(self) -> bool:
        said_at = monotonic()
        try:
            self._tell(self)
        except BrokerUnavailable as exc:
            _log.info("the store does not answer: %s", exc.problem)
            return False
        if monotonic() - self._seen_at >= self.life_s:
            self._lapsed_at = said_at
        self._seen_at = said_at
        return True

    def _stay_alive(self) -> None:
        while not self._stop.wait(self.life_s / 4):
            if self._say_alive():
                self._tidy()
            else:
                _log.warning("the store does not answer; this worker may be taken for dead")


class StoredMarks(ABC):
    """Attempt marks; a forked process is a worker of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended_kept_s = int(settings.lease_s) + _AFTER_END_S
        self._me = PerProcess(self._join)

    def prepare(self) -> None:
        """Connect and say that this process is alive."""
        self._me.get()

    def started(self, message: Message) -> None:
        """Mark an attempt as started by this process."""
        worker = self._me.get()
        worker.running[message.life, message.attempt] = monotonic()
        self._write_started(worker, message)

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended."""
        worker, key = self._me.get(), (message.life, message.attempt)
        worker.running.pop(key, None)
        self._write_ended(message)
        worker.deciding.discard(key)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away; waits until it is gone."""
        worker, key = self._me.get(), (message.life, message.attempt)
        self._remove([key], timeout_s)
        worker.running.pop(key, None)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away."""
        worker = self._me.get()
        keys = list(worker.running)
        if keys:
            self._remove(keys, timeout_s)
        worker.running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Decide what may be done with a message, and mark it as this process's."""
        worker, key = self._me.get(), (message.life, message.attempt)
        if not worker.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        try:
            claim = self._decide(worker, message, monotonic() + timeout_s, is_running_here=key in worker.running)
        except BaseException:
            worker.deciding.discard(key)
            raise
        if claim is Claim.RUN:
            worker.running[key] = monotonic()
        if claim is not Claim.LOST:
            worker.deciding.discard(key)
        return claim

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt's mark is this process's; asked if this process may have looked dead."""
        worker, key = self._me.get(), (message.life, message.attempt)
        started_at = worker.running.get(key)
        if started_at is None or worker.lived_since(started_at):
            return True
        owner = self._owner(message, timeout_s)
        if owner is None or owner.removesuffix(LOST) == worker.name:
            return True
        worker.running.pop(key, None)
        return False

    def stood_still(self) -> bool:
        """Return whether the store may have missed a sign of life of this process in the last lease's time."""
        worker = self._me.peek()
        return worker is not None and not worker.lived_since(monotonic() - self._settings.lease_s)

    def close(self) -> None:
        """Stop saying that this process is alive."""
        worker = self._me.take()
        if worker is None:
            return
        worker.stop()
        try:
            self._say_gone(worker)
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")

    def _join(self) -> Worker:
        worker = Worker(self._settings, self._say_alive, self._tidy)
        worker.start()
        return worker

    def _decide(self, worker: Worker, message: Message, deadline: float, *, is_running_here: bool) -> Claim:
        """Answer a claim.

        A mark of this worker's that it knows nothing of is of a claim whose answer never came: it gets the same again.
        """
        while True:
            mark = self._make(worker, message, deadline - monotonic())
            if mark is None:
                return Claim.RUN
            if mark == ENDED:
                return Claim.ENDED
            owner = mark.removesuffix(LOST)
            if owner == worker.name and is_running_here:
                return Claim.RUNNING
            if owner == worker.name:
                return Claim.RUN if owner == mark else Claim.LOST
            if self._is_alive(owner, deadline - monotonic()):
                return Claim.RUNNING
            if self._take_over(message, mark, worker.name + LOST, deadline - monotonic()):
                return Claim.LOST  # else another worker has been quicker

    # What each store does in its own way

    @abstractmethod
    def _write_started(self, worker: Worker, message: Message) -> None:
        """Write that an attempt is started; waits for little or nothing, and raises nothing."""

    @abstractmethod
    def _write_ended(self, message: Message) -> None:
        """Write that an attempt has ended, to be kept for `_ended_kept_s`; waits for little or nothing."""

    @abstractmethod
    def _remove(self, keys: Collection[Key], timeout_s: float) -> None:
        """Remove marks; returns when they are gone, and raises BrokerUnavailable."""

    @abstractmethod
    def _make(self, worker: Worker, message: Message, timeout_s: float) -> str | None:
        """Make a mark of a worker's for `STARTED_KEPT_S` unless there is one; return that one's owner, or None."""

    @abstractmethod
    def _take_over(self, message: Message, owner: str, new_owner: str, timeout_s: float) -> bool:
        """Give a mark another owner, if it still has the one given; return whether it had."""

    @abstractmethod
    def _is_alive(self, name: str, timeout_s: float) -> bool:
        """Return whether a worker has said lately that it is alive, and not that it is gone."""

    @abstractmethod
    def _owner(self, message: Message, timeout_s: float) -> str | None:
        """Return a mark's owner; None if there is no mark."""

    @abstractmethod
    def _say_alive(self, worker: Worker) -> None:
        """Write that a worker is alive for `life_s` from now on; raises BrokerUnavailable."""

    @abstractmethod
    def _say_gone(self, worker: Worker) -> None:
        """Write that a worker is gone; raises BrokerUnavailable."""

    def _tidy(self) -> None:
        """Remove what is old, where the store does not do so by itself; called as often as the worker says it lives."""
        return
