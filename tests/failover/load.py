"""What is sent in a failover run: an even stream of messages, each with what its sender was told and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

from taskbridge import Bridge, BrokerUnavailable
from tests.chaos.happenings import Fate
from tests.chaos.tasks import QUEUES, Tasks

_THREADS: Final = 4
_JOIN_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """A message that was sent, or was to be; times are seconds since the epoch.

    Attributes:
        key: What tells it from all others.
        at: When `send` was called.
        until: When it returned or raised.
        due: When the message may start.
        fate: What its sender was told.
    """

    key: str
    at: float
    until: float
    due: float
    fate: Fate


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sending:
    kind: str
    number: float = 0.0
    delay_s: float = 0.0


def _plan() -> Iterator[_Sending]:
    """Yield what is sent, without end: of ten, six plain, two delayed by 2 to 8 s, one that fails once, one slow."""
    for number in count():
        kinds = ("plain", "plain", "delayed", "plain", "flaky", "plain", "plain", "delayed", "slow", "plain")
        kind = kinds[number % len(kinds)]
        numbers = {"flaky": 1.0, "slow": 0.3}
        delay_s = 2.0 + number % 7 if kind == "delayed" else 0.0
        yield _Sending(kind=kind, number=numbers.get(kind, 0.0), delay_s=delay_s)


class Load:
    """Sends from some threads until it is stopped; one that is not answered keeps the others from nothing.

    Args:
        bridge: Its own.
        tasks: Declared on it.
        rate: How many messages a second.
    """

    def __init__(self, bridge: Bridge, tasks: Tasks, rate: float) -> None:
        self._bridge = bridge
        self._tasks = tasks
        self._pause_s = _THREADS / rate
        self._plan = enumerate(_plan())
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sends: list[Sent] = []
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, name="failover-load", daemon=True) for _ in range(_THREADS)]

    @property
    def sends(self) -> list[Sent]:
        """What was sent so far."""
        with self._lock:
            return list(self._sends)

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                self.faults.append("a send hangs (rule S2)")

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._pause_s, time.monotonic())
                with self._lock:
                    number, sending = next(self._plan)
                self._send(f"m{number:06}", sending, QUEUES[number % len(QUEUES)])
        except Exception as exc:
            self.faults.append(f"a sender failed: {exc!r}")

    def _send(self, key: str, sending: _Sending, queue: str) -> None:
        task = self._tasks.by_kind[sending.kind].using(queue=queue)
        at = time.time()
        fate: Fate = "sent"
        try:
            if sending.delay_s:
                task.schedule(sending.delay_s, key, sending.number)
            else:
                task.send(key, sending.number)
        except BrokerUnavailable as exc:
            fate = "unsure" if exc.maybe_taken else "refused"
        sent = Sent(key=key, at=at, until=time.time(), due=at + sending.delay_s, fate=fate)
        with self._lock:
            self._sends.append(sent)
