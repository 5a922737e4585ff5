"""A thread for what has to wait for the broker, so that Celery's main loop does not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("taskbridge.celery")

_Work = Callable[[], None]


class BackgroundQueue:
    """Does in one thread, one after the other, what was submitted."""

    def __init__(self) -> None:
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskbridge-background", daemon=True)
            self._thread.start()

    def submit(self, work: _Work) -> None:
        """Have something done, after what was submitted before."""
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                _log.exception("a message that can't run could not be dealt with")

    def stop(self, timeout_s: float) -> None:
        """Finish what was submitted, within this time."""
        self._work.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
