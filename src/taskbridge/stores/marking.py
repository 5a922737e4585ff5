"""What the attempt marks of stores outside this process have in common.

A mark says which worker has started an attempt, or that it has ended; and a worker is alive as long as it says so,
which a thread of it does four times in the time for which that holds. Where marks are written is the store's affair.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
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
        pid: The process.
        name: Its name, which no other worker has or had.
        life_s: For how long it is alive after it has said so.
        running: What it runs, and since when, monotonic.
        deciding: What a thread of it decides about.
    """

    def __init__(self, settings: Settings, say_alive: Callable[[Worker], None], tidy: Callable[[], None]) -> None:
        self.pid: int = os.getpid()
        self.name: str = f"{socket.gethostname()}:{self.pid}:{secrets.token_hex(4)}"
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
        self._joining = locks.Lock()
        self._me: Worker | None = None

    def prepare(self) -> None:
        """Connect and say that this process is alive."""
        self._worker()

    def started(self, message: Message) -> None:
        """Mark an attempt as started by this process."""
        worker = self._worker()
        worker.running[message.life, message.attempt] = monotonic()
        self._write_started(worker, message)

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended."""
        worker, key = self._worker(), (message.life, message.attempt)
        worker.running.pop(key, None)
        self._write_ended(message)
        worker.deciding.discard(key)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away; waits until it is gone."""
        worker, key = self._worker(), (message.life, message.attempt)
        self._remove([key], timeout_s)
        worker.running.pop(key, None)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away."""
        worker = self._worker()
        keys = list(worker.running)
        if keys:
            self._remove(keys, timeout_s)
        worker.running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Ask, in one step, what may be done with a message, and mark it as this process's."""
        worker, key = self._worker(), (message.life, message.attempt)
        if not worker.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        try:
            claim = self._claim(worker, message, timeout_s, is_running_here=key in worker.running)
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
        worker, key = self._worker(), (message.life, message.attempt)
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
        worker = self._me
        if worker is None or worker.pid != os.getpid():
            return False
        return not worker.lived_since(monotonic() - self._settings.lease_s)

    def close(self) -> None:
        """Stop saying that this process is alive."""
        with self._joining:
            worker, self._me = self._me, None
        if worker is None or worker.pid != os.getpid():
            return
        worker.stop()
        try:
            self._say_gone(worker)
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")
        self._disconnect()

    @property
    def _is_closed(self) -> bool:
        return self._me is None

    def _worker(self) -> Worker:
        worker = self._me
        if worker is not None and worker.pid == os.getpid():
            return worker
        with self._joining:
            if self._me is None or self._me.pid != os.getpid():
                made = Worker(self._settings, self._say_alive, self._tidy)
                made.start()
                self._me = made
            return self._me

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
    def _claim(self, worker: Worker, message: Message, timeout_s: float, *, is_running_here: bool) -> Claim:
        """Do what `claim` does, in one step in the store.

        A mark of this worker's that it knows nothing of is of a claim whose answer never came: it gets the same again.
        """

    @abstractmethod
    def _owner(self, message: Message, timeout_s: float) -> str | None:
        """Return a mark's owner; None if there is no mark."""

    @abstractmethod
    def _say_alive(self, worker: Worker) -> None:
        """Write that a worker is alive for `life_s` from now on; raises BrokerUnavailable."""

    @abstractmethod
    def _say_gone(self, worker: Worker) -> None:
        """Write that a worker is gone; raises BrokerUnavailable."""

    @abstractmethod
    def _tidy(self) -> None:
        """Remove what is old, where the store does not do so by itself; called as often as the worker says it lives."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connections that are the marks' own."""
