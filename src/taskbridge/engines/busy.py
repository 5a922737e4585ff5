"""A worker whose slots are all taken can answer no probe; so it says that it is busy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import Final

from taskbridge import locks
from taskbridge.brokers.base import SignBroker
from taskbridge.engines.base import Host
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.probe import BUSY_LIFE_S, busy_sign

_log = logging.getLogger("taskbridge.health")

_LOOK_S: Final = 1.0
_CALL_S: Final = 1.0
_JOIN_S: Final = 2.0


class BusySigns:
    """A thread of a worker process, from `start` to `stop`.

    Args:
        host: The bridge.
        full_queues: Returns the queues that this process consumes if it has no slot free, and none if it has one.
    """

    def __init__(self, host: Host, full_queues: Callable[[], Collection[str]]) -> None:
        self._host = host
        self._full_queues = full_queues
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if there is anybody to see the signs; starting twice does nothing."""
        if self._thread is not None or not isinstance(self._host.broker, SignBroker):
            return
        self._stop = locks.Event()
        args = (self._host.broker, self._stop)
        self._thread = threading.Thread(target=self._run, args=args, name="taskbridge-busy", daemon=True)
        self._thread.start()

    def _run(self, broker: SignBroker, stop: threading.Event) -> None:
        engine = self._host.settings.url.engine
        while not stop.wait(_LOOK_S):
            try:
                signs = [busy_sign(engine, queue) for queue in self._full_queues()]
                if signs:
                    broker.leave_signs(signs, life_s=BUSY_LIFE_S, timeout_s=_CALL_S)
            except BrokerUnavailable as exc:
                _log.debug("nobody is told that this worker is busy: %s", exc.problem)
            except Exception:
                _log.exception("nobody is told that this worker is busy")

    def stop(self) -> None:
        """Stop the thread and wait for it, for 2 s at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None
