"""The threads of a worker process that serve the broker: one promotes parked messages, one says that it is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from taskbridge.background import Background
from taskbridge.brokers.base import SignBroker
from taskbridge.engines.base import Host
from taskbridge.engines.settle import record_buried
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.probe import BUSY_LIFE_S, busy_sign

_log = logger("taskbridge.pump")

_LOOK_S: Final = 1.0
_CALL_S: Final = 1.0


class Pump(Background):
    """Runs the broker's pump."""

    def __init__(self, host: Host) -> None:
        super().__init__("pump", join_s=0.5)  # it may wait for a broker that does not answer
        self._host = host

    def run(self, stop: threading.Event) -> None:
        """Promote parked messages until `stop` is set."""
        buried = partial(record_buried, self._host)
        while not stop.is_set():
            try:
                self._host.broker.pump(knows=self._host.knows, stop=stop, buried=buried)
            except Exception:
                _log.exception("the pump failed, starting it again")
                stop.wait(1.0)


class BusySigns(Background):
    """Says that this process is busy: a worker whose slots are all taken can answer no probe.

    `full_queues` returns the queues that this process consumes if it has no slot free, and none if it has one.
    """

    def __init__(self, host: Host, full_queues: Callable[[], Collection[str]]) -> None:
        super().__init__("busy", join_s=2.0)
        self._host = host
        self._full_queues = full_queues

    def run(self, stop: threading.Event) -> None:
        """Leave signs while no slot is free, until `stop` is set; nobody can see signs on other brokers."""
        broker, engine = self._host.broker, self._host.settings.url.engine
        while isinstance(broker, SignBroker) and not stop.wait(_LOOK_S):
            try:
                signs = [busy_sign(engine, queue) for queue in self._full_queues()]
                if signs:
                    broker.leave_signs(signs, life_s=BUSY_LIFE_S, timeout_s=_CALL_S)
            except BrokerUnavailable as exc:
                _log.debug("nobody is told that this worker is busy: %s", exc.problem)
            except Exception:
                _log.exception("nobody is told that this worker is busy")
