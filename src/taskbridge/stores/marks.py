"""Attempt marks: which attempts were started, and by whom (rules A5, A7 and R9).

A worker marks an attempt as its run starts and as its verdict has been carried out. Nobody waits for these writes.
Only where a message may have been delivered before is the mark read.

A mark names the worker that has started an attempt, or says that it has ended. A worker counts as alive for a time
after it has said so, and a thread of it says so four times in that time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum
from math import inf
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.backend import Backend, Write
from taskbridge.stores.process import PerProcess, process_name

_log = logging.getLogger("taskbridge.store")

ENDED: Final = "ended"
"""The owner of a mark whose attempt has ended."""

LOST: Final = "|lost"
"""What ends the owner of a mark that its worker has found lost, and is to decide about."""

STARTED_KEPT_S: Final = 7 * 86400.0
"""How long the mark of a run that never ended is kept; its message comes back much sooner."""

_AFTER_END_S: Final = 60
"""How long past the lease an ended attempt is remembered: for a delivery that was on its way."""

_LONGEST_LIFE_S: Final = 8.0
"""A worker on RabbitMQ counts as dead after this: rule A2 asks for 10 s there, whatever the lease."""

_SAID_IN_A_LIFE: Final = 4
"""How often a worker says that it is alive in the time for which it then is."""

_CLOSING_S: Final = 1.0


class Claim(Enum):
    """What may be done with a message that may have been delivered before."""

    RUN = "run"
    """The attempt was never started: run it."""

    ENDED = "ended"
    """Its verdict has been carried out: drop this delivery."""

    RUNNING = "running"
    """A live worker runs it: look again later."""

    LOST = "lost"
    """Its worker is gone: the attempt failed, with `WorkerLost`."""


class Worker:
    """This process, as a store knows it, from `start` to `stop`.

    Attributes:
        name: Its name, which no other worker has or had.
        life_s: For how long it is alive after it has said so; for ever where no other process could take its runs.
        running: What it runs, by the mark's key, and since when, monotonic.
        deciding: What a thread of it decides about.
    """

    def __init__(self, life_s: float, say_alive: Callable[[Worker], None], tidy: Callable[[], None]) -> None:
        self.name: str = process_name()
        self.life_s: float = life_s
        self.running: dict[str, float] = {}
        self.deciding: set[str] = set()
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

    def decides(self, key: str) -> bool:
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
        if self._thread.ident is not None:
            self._thread.join(_CLOSING_S)  # else it could give a connection back to a pool that is closed

    def _say_alive(self) -> bool:
        said_at = monotonic()
        try:
            self._tell(self)
        except BrokerUnavailable as exc:
            _log.info("the store does not answer: %s", exc.problem)
            return False
        except Exception:  # the thread has to go on, or this process would be taken for dead
            _log.exception("the store gave an odd answer")
            return False
        if monotonic() - self._seen_at >= self.life_s:
            self._lapsed_at = said_at
        self._seen_at = said_at
        return True

    def _stay_alive(self) -> None:
        said = 0
        while not self._stop.wait(self.life_s / _SAID_IN_A_LIFE):
            if not self._say_alive():
                _log.warning("the store does not answer; this worker may be taken for dead")
            elif (said := said + 1) % _SAID_IN_A_LIFE == 0:
                self._tidy()


class Marks:
    """The attempt marks of a bridge, for this process. Threads share it; a forked process is another worker."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._ended_kept_s = settings.lease_s + _AFTER_END_S
        self._me = PerProcess(self._join)

    def prepare(self) -> None:
        """Connect and say that this process is alive, before it takes messages; raises nothing.

        Else its first mark would take longer than others, and another delivery of that attempt could be quicker.
        """
        self._me.get()

    def started(self, message: Message) -> None:
        """Mark an attempt as started here. Waits for nothing and raises nothing: without marks it just runs."""
        worker, key = self._me.made or self._me.get(), _key(message)
        worker.running[key] = monotonic()
        self._backend.put_soon(key, worker.name, kept_s=STARTED_KEPT_S)

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended: its verdict has been carried out. Waits for nothing and raises nothing."""
        worker, key = self._me.made or self._me.get(), _key(message)
        worker.running.pop(key, None)
        self._backend.put_soon(key, ENDED, kept_s=self._ended_kept_s)
        worker.deciding.discard(key)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away, so that the same attempt may start elsewhere (rule R8).

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        worker, key = self._me.made or self._me.get(), _key(message)
        self._backend.remove([key], timeout_s=timeout_s)
        worker.running.pop(key, None)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away: it ends now, and their messages are given back (rule R8).

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        worker = self._me.get()
        keys = list(worker.running)
        if keys:
            self._backend.remove(keys, timeout_s=timeout_s)
        worker.running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Say what may be done with a message that may have been delivered before, and mark it as this worker's.

        Of several workers that ask at once, one is told `RUN` or `LOST`.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        worker, key = self._me.made or self._me.get(), _key(message)
        if not worker.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        try:
            claim = self._decide(worker, key, monotonic() + timeout_s)
        except BaseException:
            worker.deciding.discard(key)
            raise
        if claim is Claim.RUN:
            worker.running[key] = monotonic()
        if claim is not Claim.LOST:
            worker.deciding.discard(key)
        return claim

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt that was started here is still this worker's.

        It isn't if this process stood still for so long that it was taken for dead, and another worker has decided
        about the attempt. The store is asked only then.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        worker, key = self._me.made or self._me.get(), _key(message)
        started_at = worker.running.get(key)
        if started_at is None or worker.lived_since(started_at):
            return True
        [owner] = self._backend.get([key], timeout_s=timeout_s)
        if owner is None or owner.removesuffix(LOST) == worker.name:
            return True
        worker.running.pop(key, None)
        return False

    def stood_still(self) -> bool:
        """Return whether this process may have been taken for dead lately, for the time of a lease.

        What it took before may have been given to another worker then. Nothing is asked of the store.
        """
        worker = self._me.made
        return worker is not None and not worker.lived_since(monotonic() - self._settings.lease_s)

    def close(self) -> None:
        """Stop saying that this process is alive."""
        worker = self._me.take()
        if worker is None:
            return
        worker.stop()
        try:
            self._backend.remove([_alive(worker.name)], timeout_s=self._settings.send_timeout_s)
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")

    def _join(self) -> Worker:
        if not self._backend.is_shared:
            return Worker(inf, self._say_alive, self._tidy)
        on_rabbitmq, lease_s = self._settings.url.broker == "amqp", self._settings.lease_s
        worker = Worker(min(lease_s, _LONGEST_LIFE_S) if on_rabbitmq else lease_s, self._say_alive, self._tidy)
        worker.start()
        return worker

    def _decide(self, worker: Worker, key: str, deadline: float) -> Claim:
        """Answer a claim.

        A mark of this worker's that it knows nothing of is of a claim whose answer never came: it gets the same again.
        """
        is_running_here = key in worker.running
        while True:
            mark = self._backend.add(key, worker.name, kept_s=STARTED_KEPT_S, timeout_s=deadline - monotonic())
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
            mine = Write(key, mark, worker.name + LOST, STARTED_KEPT_S)
            if self._backend.write([mine], timeout_s=deadline - monotonic())[0]:
                return Claim.LOST  # else another worker has been quicker

    def _is_alive(self, name: str, timeout_s: float) -> bool:
        """Return whether a worker has said lately that it is alive, and not that it is gone."""
        return not self._backend.is_shared or self._backend.get([_alive(name)], timeout_s=timeout_s) != [None]

    def _say_alive(self, worker: Worker) -> None:
        timeout_s = min(self._settings.send_timeout_s, worker.life_s)
        self._backend.put(_alive(worker.name), "1", kept_s=worker.life_s, timeout_s=timeout_s)

    def _tidy(self) -> None:
        try:
            while self._me.made is not None and self._backend.purge(timeout_s=self._settings.send_timeout_s):
                continue
        except BrokerUnavailable as exc:
            _log.info("old marks are not removed now: %s", exc.problem)


def _key(message: Message) -> str:
    return f"mark:{message.life}:{message.attempt}"


def _alive(worker: str) -> str:
    return f"alive:{worker}"
