"""Writes that nobody waits for: a thread does them, those that have come meanwhile together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.stores.transitions import Run

_log = logging.getLogger("taskbridge.store")

_TOGETHER: Final = 100
_MOST: Final = 10_000
"""How many writes wait at most; more are dropped, for the news of a run's end tells of its start too."""
_GATHERING_S: Final = 0.01
"""How long the first of them waits for others; the start of a run that has ended by then is told by its end."""
_PAUSE_S: Final = 1.0
"""How long nothing is written after a failure; what comes meanwhile is dropped."""
_CLOSING_S: Final = 2.0

Start = tuple[Message, Run]


class Writer:
    """Writes the starts of runs."""

    def __init__(self, write: Callable[[Sequence[Start]], None]) -> None:
        self._write = write
        self._waiting: queue.Queue[Start | None] = queue.Queue(_MOST)
        self._lock = locks.Lock()
        self._thread: threading.Thread | None = None
        self._silent_until = 0.0

    def put(self, start: Start) -> None:
        """Have a start written soon."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskbridge-starts", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(start)
        except queue.Full:
            _log.warning("task %s, id %s: its start is not recorded, the store is behind", start[0].task, start[0].id)

    def close(self) -> None:
        """Write what waits, for 2 s at most, and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(_CLOSING_S)

    def _run(self) -> None:
        is_open = True
        while is_open:
            starts = [self._waiting.get()]
            if starts[0] is not None:
                time.sleep(_GATHERING_S)
            while len(starts) < _TOGETHER and not self._waiting.empty():
                starts.append(self._waiting.get())
            is_open = None not in starts
            self._do([start for start in starts if start is not None])

    def _do(self, starts: Sequence[Start]) -> None:
        if not starts or time.monotonic() < self._silent_until:
            return
        try:
            self._write(starts)
        except BrokerUnavailable as exc:
            _log.warning("the start of %d runs is not recorded: %s", len(starts), exc.problem)
            self._silent_until = time.monotonic() + _PAUSE_S
