"""Attempt marks: which attempts were started, and by whom (rules A5, A7 and R9).

A worker marks an attempt as its run starts and as its verdict has been carried out. Nobody waits for these writes.
Only where a message may have been delivered before is the mark read. A mark is one of

- `{worker} {when}`: the worker has started the attempt; when, in seconds since the epoch;
- `{worker}|lost {first worker} {when}`: the worker has found that the first one is gone, and is to decide about that;
- `ended`.

Beside it is counted how often the message came back and was taken before its attempt was started.

A worker counts as alive for a time after it has said so, and a thread of it says so four times in that time.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from math import inf
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.locks import PerProcess
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.backend import Backend, Write, head_of, next_of
from taskbridge.stores.starts import process_name
from taskbridge.stores.transitions import Run

_log = logger("taskbridge.store")

ENDED: Final = "ended"
_LOST: Final = "|lost"
_TAKEN: Final = ":taken"  # what the key of a count ends with, after its mark's
_OF_RUN: Final = re.compile(r"[^ |\n]+(\|lost [^ |\n]+)? [0-9]{1,11}\.[0-9]{3}( [^\n]*)?")
"""What the marks of runs that have not ended look like; what comes after that is a newer release's."""

STARTED_KEPT_S: Final = 7 * 86400.0
"""How long the mark of a run that never ended is kept; its message comes back much sooner."""

_AFTER_END_S: Final = 60  # how long past the lease an ended attempt is remembered: for a delivery that was on its way
_COUNTING_S: Final = 1.0
_SILENT_S: Final = 10.0
"""How long counting a message may take (Celery's main loop waits), and how long none is counted if it took longer."""

_LONGEST_LIFE_S: Final = 8.0
"""A worker on RabbitMQ counts as dead after this: rule A2 asks for 10 s there, whatever the lease."""

_ENDED_HERE: Final = 1000
"""How many of the attempts that ended in this process it remembers itself: a store may be away as one ends."""

_SAID_IN_A_LIFE: Final = 4  # how often a worker says that it is alive in the time for which it then is


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


class Worker(Background):
    """This process, as a store knows it.

    Attributes:
        name: Its name, which no other worker has or had.
        running: What it runs, by the mark's key, and since when, monotonic.
        ended: The keys of the attempts that ended here last, and until when that counts, monotonic.
        deciding: What a thread of it decides about.
    """

    def __init__(self, settings: Settings, backend: Backend) -> None:
        super().__init__("marks", join_s=1.0)
        self.name: str = process_name()
        self.running: dict[str, float] = {}
        self.ended: deque[tuple[str, float]] = deque(maxlen=_ENDED_HERE)
        self.deciding: set[str] = set()
        self._backend = backend
        is_short = settings.url.broker == "amqp"
        self._life_s = min(settings.lease_s, _LONGEST_LIFE_S) if is_short else settings.lease_s
        self._timeout_s = settings.send_timeout_s
        self._seen_at = monotonic()
        self._lapsed_at = -inf
        self._lock = locks.Lock()
        if backend.is_shared:  # else it lives as long as what it says
            self._tried(self._say_alive)
            self.start()

    def decides(self, key: str) -> bool:
        """Return whether the caller is to decide about an attempt: no other thread does.

        Who finds it lost decides until the attempt's end is marked.
        """
        with self._lock:
            is_first = key not in self.deciding
            self.deciding.add(key)
            return is_first

    def has_ended(self, key: str) -> bool:
        """Return whether an attempt has ended here, as long as its mark would say so: ids may be used again."""
        now = monotonic()
        return any(each == key and until > now for each, until in list(self.ended))

    def lived_since(self, moment: float) -> bool:
        """Return whether the store has known this process for alive all the time since then."""
        if not self._backend.is_shared:
            return True
        return monotonic() - self._seen_at < self._life_s and self._lapsed_at < moment

    def run(self, stop: threading.Event) -> None:
        """Say again and again that the process is alive, and remove what is old in between."""
        said, is_left = 0, False
        while not stop.wait(self._life_s / _SAID_IN_A_LIFE):
            if self._tried(self._say_alive) and (is_left or (said := said + 1) % _SAID_IN_A_LIFE == 0):
                is_left = self._tried(partial(self._purge, stop))

    def leave(self) -> None:
        """Say no more that the process is alive."""
        self.stop()
        try:
            self._backend.remove([_alive(self.name)], timeout_s=self._timeout_s)
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")

    def _tried(self, ask: Callable[[], bool]) -> bool:
        """Return what was asked; False if that failed: the thread has to go on, or this process would count as dead."""
        try:
            return ask()
        except BrokerUnavailable as exc:
            _log.warning("the store does not answer, this worker may be taken for dead: %s", exc.problem)
        except Exception:
            _log.exception("the store gave an odd answer")
        return False

    def _say_alive(self) -> bool:
        said_at, timeout_s = monotonic(), min(self._timeout_s, self._life_s)
        self._backend.put(_alive(self.name), "1", kept_s=self._life_s, timeout_s=timeout_s)
        if monotonic() - self._seen_at >= self._life_s:
            self._lapsed_at = said_at
        self._seen_at = said_at
        return True

    def _purge(self, stop: threading.Event) -> bool:
        """Remove what is old, in half of the time until the next sign of life; return whether something is left."""
        until = monotonic() + self._life_s / _SAID_IN_A_LIFE / 2
        with suppress(BrokerUnavailable):  # too little time was left, or it is away: the sign of life tells of that
            while not stop.is_set() and (left_s := until - monotonic()) > 0:
                if not self._backend.purge(timeout_s=min(self._timeout_s, left_s)):
                    return False
        return True


class Marks:
    """The attempt marks of a bridge, for this process. Threads share it; a forked process is another worker.

    A call raises `StoreUnavailable` if the store does not answer in time, unless it says otherwise.

    Args:
        settings: The bridge's.
        backend: What keeps them.
        lost: Is told of a run that is found lost, with its message, before whoever claims is told.
    """

    def __init__(self, settings: Settings, backend: Backend, lost: Callable[[Message, Run], object]) -> None:
        self._settings = settings
        self._backend = backend
        self._lost = lost
        self._ended_kept_s = settings.lease_s + _AFTER_END_S
        self._me = PerProcess(lambda: Worker(settings, backend))
        self._silent_until = 0.0

    def prepare(self) -> None:
        """Connect and say that this process is alive, before it takes messages; raises nothing.

        Else its first mark would take longer than others, and another delivery of that attempt could be quicker.
        """
        self._me.get()

    def started(self, message: Message) -> None:
        """Mark an attempt as started here. Waits for nothing and raises nothing: without marks it just runs."""
        worker, key = self._me.made or self._me.get(), _key(message)
        worker.running[key] = monotonic()
        self._backend.put_soon(key, _started(worker), kept_s=STARTED_KEPT_S)

    def ended(self, message: Message, *, is_recorded: bool = True) -> None:
        """Mark an attempt as ended: its verdict has been carried out. Waits for nothing and raises nothing.

        Another copy of a relayed message may come much later. If it has no record, the mark has to tell.
        """
        worker, key = self._me.made or self._me.get(), _key(message)
        worker.running.pop(key, None)
        kept_s = STARTED_KEPT_S if message.relayed and not is_recorded else self._ended_kept_s
        worker.ended.append((key, monotonic() + kept_s))
        self._backend.put_soon(key, ENDED, kept_s=kept_s)
        worker.deciding.discard(key)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away, so that the same attempt may start elsewhere (rule R8)."""
        worker, key = self._me.get(), _key(message)
        worker.running.pop(key, None)  # first: if the mark stays, whoever claims it here next is told to run it
        self._backend.remove([key, key + _TAKEN], timeout_s=timeout_s)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away: it ends now, and their messages are given back (rule R8)."""
        worker = self._me.get()
        keys = list(worker.running)
        if keys:
            self._backend.remove([*keys, *(key + _TAKEN for key in keys)], timeout_s=timeout_s)
        worker.running.clear()

    def taken(self, message: Message) -> int:
        """Count that a message was taken that had come back, and return how often it was; 0 if its attempt was started.

        Its start, or that it is given back, ends the count. A store that doesn't answer is not waited for, and 0.
        """
        key, deadline = _key(message), monotonic() + _COUNTING_S
        if self._silent_until > monotonic():
            return 0
        try:
            mark, seen = self._backend.get([key, key + _TAKEN], timeout_s=_COUNTING_S)
            if mark is not None:
                return 0
            head = head_of(seen)
            write = Write(key + _TAKEN, head, str(count := next_of(head)), STARTED_KEPT_S)
            return count if self._backend.write([write], timeout_s=deadline - monotonic())[0] else 0
        except BrokerUnavailable:
            self._silent_until = monotonic() + _SILENT_S
            return 0

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Say what may be done with a message that may have been delivered before, and mark it as this worker's.

        Of several workers that ask at once, one is told `RUN` or `LOST`.
        """
        worker, key = self._me.get(), _key(message)
        if not worker.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        lost: Run | None = None
        try:
            claim, lost = self._decide(worker, key, monotonic() + timeout_s)
        finally:
            if lost is None:
                worker.deciding.discard(key)
        if lost is not None:
            self._lost(message, lost)
        elif claim is Claim.RUN:
            worker.running[key] = monotonic()
        return claim

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt that was started here is still this worker's.

        It isn't if this process stood still for so long that it was taken for dead, and another worker has decided
        about the attempt. The store is asked only then.
        """
        worker, key = self._me.made or self._me.get(), _key(message)
        started_at = worker.running.get(key)
        if started_at is None or worker.lived_since(started_at):
            return True
        [mark] = self._backend.get([key], timeout_s=timeout_s)
        if mark is None or _owner(mark) == worker.name:
            return True
        worker.running.pop(key, None)
        return False

    def stood_still(self) -> bool:
        """Return whether this process may have been taken for dead lately, for the time of a lease.

        What it took before may have been given to another worker then. Nothing is asked of the store.
        """
        worker = self._me.made
        return worker is not None and not worker.lived_since(monotonic() - self._settings.lease_s)

    def gone(self, message: Message, pid: int, *, timeout_s: float) -> None:
        """Take a process of this machine for dead that has started an attempt: whoever asks has seen its end."""
        [mark] = self._backend.get([_key(message)], timeout_s=timeout_s)
        if mark is not None and (owner := _owner(mark)).startswith(f"{socket.gethostname()}:{pid}:"):
            self._backend.remove([_alive(owner)], timeout_s=timeout_s)

    def close(self) -> None:
        """Stop saying that this process is alive."""
        worker = self._me.take()
        if worker is not None and self._backend.is_shared:
            worker.leave()

    def _decide(self, worker: Worker, key: str, deadline: float) -> tuple[Claim, Run | None]:
        """Answer a claim, and return the run that is lost.

        A mark of this worker's that it knows nothing of is of a claim whose answer never came: it gets the same again.
        What this process knows itself counts where the store was never told.
        """
        is_running_here, mine = key in worker.running, _started(worker)
        while True:
            [mark] = self._backend.get([key], timeout_s=deadline - monotonic())
            if worker.has_ended(key) or (mark is not None and mark.partition(" ")[0] == ENDED):
                return Claim.ENDED, None
            if mark is None and is_running_here:
                return Claim.RUNNING, None
            if mark is None or not _OF_RUN.fullmatch(mark):  # anybody has written this
                started = Write(key, head_of(mark), mine, STARTED_KEPT_S)
                if self._backend.write([started], timeout_s=deadline - monotonic())[0]:
                    return Claim.RUN, None
                continue
            owner, lost = _owner(mark), mark.partition(f"{_LOST} ")[2]
            if owner == worker.name and not is_running_here:
                return (Claim.LOST, _run(lost)) if lost else (Claim.RUN, None)
            if owner == worker.name or self._is_alive(owner, deadline - monotonic()):
                return Claim.RUNNING, None
            lost = lost or mark
            taken = Write(key, mark, f"{worker.name}{_LOST} {lost}", STARTED_KEPT_S)
            if self._backend.write([taken], timeout_s=deadline - monotonic())[0]:
                return Claim.LOST, _run(lost)  # else another worker has been quicker

    def _is_alive(self, name: str, timeout_s: float) -> bool:
        """Return whether a worker has said lately that it is alive, and not that it is gone."""
        return not self._backend.is_shared or self._backend.get([_alive(name)], timeout_s=timeout_s) != [None]


def _key(message: Message) -> str:
    return f"mark:{message.attempt_key}"


def _alive(worker: str) -> str:
    return f"alive:{worker}"


def _started(worker: Worker) -> str:
    return f"{worker.name} {time.time():.3f}"


def _owner(mark: str) -> str:
    return mark.partition(" ")[0].removesuffix(_LOST)


def _run(words: str) -> Run:
    name, at = words.split(" ")[:2]
    return Run(name.rpartition(":")[0], float(at))  # as the worker has called itself in the record
