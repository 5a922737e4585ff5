"""The pump of a worker process: a thread that promotes parked messages."""

from __future__ import annotations

import logging
import threading

from taskbridge import locks
from taskbridge.engines.base import Host

_log = logging.getLogger("taskbridge.pump")

_JOIN_S = 5.0


class Pump:
    """Runs the broker's pump in a thread, from `start` to `stop`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        if self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="taskbridge-pump", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._host.broker.pump(knows=self._host.knows, stop=self._stop)
            except Exception:
                _log.exception("the pump failed, starting it again")
                self._stop.wait(1.0)

    def stop(self, timeout_s: float = _JOIN_S) -> None:
        """Stop the thread and wait for it, for 5 s at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
