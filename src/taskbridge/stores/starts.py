"""The runs that a process has started, and the thread that writes the starts of those that last, and their progress."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.stores import transitions
from taskbridge.stores.states import Row
from taskbridge.stores.transitions import Run

_log = logger("taskbridge.store")

_REMEMBERED: Final = 10_000
"""How many runs are remembered: one that was never settled here is forgotten after as many others."""

_TOGETHER: Final = 100
_SHORT_S: Final = 0.02
"""A run that takes less is recorded once, as it ends; of one that lasts twice as long, the start is recorded too."""
_PROGRESS_S: Final = 1.0  # how often progress is written at most, of all runs together
_PAUSE_S: Final = 1.0  # how long nothing is written after a failure; what comes meanwhile is dropped


@dataclass(eq=False, slots=True)
class Started:
    """A run that has started."""

    message: Message
    run: Run  # who runs it, and since when
    writer: str  # the process that writes about it
    row: Row | None = None  # the record as the start has left it; None if that isn't known

    def decide(self, old: Row | None) -> Row | None:
        """Return what the start makes of a record."""
        return transitions.started(old, self.message, self.run, writer=self.writer)


def process_name() -> str:
    """Return a name for this process that no other process has or had."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Starts(Background):
    """The runs that this process has started and not ended, as far as is known, and those that it has found lost.

    Attributes:
        writer: What this process is called where its writes are told from another's.
    """

    def __init__(self, write: Callable[[Sequence[Started]], None]) -> None:
        super().__init__("starts", join_s=2.0)
        self.writer: str = process_name()
        self._write = write
        self._lock = locks.Lock()
        self._runs: dict[str, Started] = {}
        self._unwritten: deque[Started] = deque(maxlen=_REMEMBERED)
        self._reported: dict[str, Started] = {}
        self._reports_at = 0.0
        self._come = locks.Event()
        self._silent_until = 0.0

    def add(self, message: Message, run: Run) -> Started:
        """Remember a run."""
        start = Started(message, run, self.writer)
        with self._lock:
            self._runs[message.attempt_key] = start
            if len(self._runs) > _REMEMBERED:
                del self._runs[next(iter(self._runs))]
        return start

    def write_soon(self, start: Started) -> None:
        """Have a start written, unless the run has ended by then."""
        self._unwritten.append(start)
        if not self._come.is_set():
            self.start()
            self._come.set()

    def report(self, start: Started) -> None:
        """Have written how far a run has come: at once, or 1 s after this was last done for any run."""
        with self._lock:
            is_first = not self._reported
            self._reported[start.message.attempt_key] = start
        if is_first:
            self.start()
            self._come.set()

    def get(self, message: Message) -> Started | None:
        """Return a run, if it was started here, or found lost."""
        return self._runs.get(message.attempt_key)

    def remove(self, message: Message) -> None:
        """Forget a run that has ended."""
        with self._lock:
            self._runs.pop(message.attempt_key, None)

    def close(self) -> None:
        """Write what waits, for 2 s at most, and end the thread."""
        self._stop.set()
        self._come.set()
        self.stop()

    def run(self, stop: threading.Event) -> None:
        """Write the starts of runs that last until `stop` is set, and then all that wait."""
        is_open = True
        while is_open:
            self._come.wait(max(0.0, self._reports_at - monotonic()) if self._reported else None)
            self._come.clear()
            lasting = len(self._unwritten)
            is_open = not stop.wait(_SHORT_S)
            starts = [self._unwritten.popleft() for _ in range(lasting if is_open else len(self._unwritten))]
            if self._reported and (monotonic() >= self._reports_at or not is_open):
                with self._lock:
                    reported, self._reported = self._reported, {}
                starts = list(dict.fromkeys([*starts, *reported.values()]))
                self._reports_at = monotonic() + _PROGRESS_S
            for first in range(0, len(starts), _TOGETHER):
                self._write_some(starts[first : first + _TOGETHER])
            if self._unwritten:
                self._come.set()

    def _write_some(self, starts: Sequence[Started]) -> None:
        left = [each for each in starts if self.get(each.message) is each]
        left.sort(key=lambda start: start.message.id)  # in order, so that no two processes lock each other
        if not left or monotonic() < self._silent_until:
            return
        try:
            self._write(left)
        except BrokerUnavailable as exc:
            _log.warning("the start of %d runs is not recorded: %s", len(left), exc.problem)
            self._silent_until = monotonic() + _PAUSE_S
        except Exception:  # of a record that can't be read, say: the thread goes on with the next
            _log.exception("the start of %d runs is not recorded", len(left))
