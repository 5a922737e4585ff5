"""What broker and store tell at each scrape or export, of all workers together."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskbridge import locks
from taskbridge.background import in_time
from taskbridge.exceptions import TaskBridgeError, needs
from taskbridge.logs import OncePerMinute, logger
from taskbridge.metrics.names import (
    ALL_QUEUES,
    FLOWS,
    MISSED,
    PAUSED,
    QUEUE_MESSAGES,
    QUEUE_OLDEST,
    READ,
    in_opentelemetry,
)

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from prometheus_client.core import Metric as Family

    from taskbridge.bridge import Bridge

_log = logger("taskbridge.metrics")

_READ_S: Final = 6.0  # Prometheus and OpenTelemetry wait for 10 s, also for what workers have counted

_Rows: TypeAlias = dict[str, dict[tuple[str, ...], float]]
"""What was read: by metric and the values of its labels."""


class Gauges:
    """A collector for a registry of Prometheus' client: `registry.register(Gauges(bridge))`.

    Each scrape reads broker and store once, for 6 s at most. What can't be read by then is left out, and a line is
    logged once a minute.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._left_out = OncePerMinute()

    def describe(self) -> Iterable[Family]:
        """Return nothing, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield what can be read."""
        return _families(self._read())

    def register_with(self, meter_provider: Any) -> None:
        """Register observable instruments of the same metrics with a `MeterProvider`; each export reads once.

        They are told by the process that calls this, and not by those that it forks. `taskbridge worker` calls it by
        itself where the application has given `observe` its provider, so do it elsewhere only: in one web process, say.
        """
        from opentelemetry.metrics import Observation  # here, for it is an extra

        meter, reading = meter_provider.get_meter("taskbridge"), _Reading(self._read)

        def told(name: str, _: CallbackOptions) -> list[Observation]:
            return [
                Observation(value, dict(zip(READ[name].labels, labels, strict=True)))
                for labels, value in reading.rows(name).items()
            ]

        for name in READ:
            make = meter.create_observable_counter if name.endswith("_total") else meter.create_observable_gauge
            make(**in_opentelemetry(name), callbacks=[partial(told, name)])

    def _read(self) -> _Rows:
        """Return what can be read."""
        until = monotonic() + _READ_S
        rows: _Rows = {}
        for name, read in _PARTS.items():
            try:
                rows |= in_time(name, partial(read, self._bridge), bool, left_s=lambda: until - monotonic())
            except Exception as exc:  # an exporter is to have the others, and not to read again for each of them
                if self._left_out.due(name, is_new=True) is not None:
                    is_known = isinstance(exc, (TaskBridgeError, TimeoutError))
                    _log.warning("metrics of %s are left out of a scrape: %s", name, exc, exc_info=not is_known)
        return rows


class _Reading:
    """What was read for one export, in which OpenTelemetry asks for each metric by itself, and in the same order.

    One that is asked for again begins the next export.
    """

    def __init__(self, read: Callable[[], _Rows]) -> None:
        self._read = read
        self._lock = locks.Lock()
        self._unasked: _Rows = {}
        self._process = os.getpid()
        self._is_over = locks.Event()
        atexit.register(self._is_over.set)  # before the provider's last export, which may not start threads any more

    def rows(self, name: str) -> Mapping[tuple[str, ...], float]:
        """Return what a metric is now, by the values of its labels."""
        if self._is_over.is_set() or os.getpid() != self._process:
            return {}
        with self._lock:
            if name not in self._unasked:
                self._unasked = {**{each: {} for each in READ}, **self._read()}
            return self._unasked.pop(name)


def text_of(bridge: Bridge) -> str:
    """Return all of it in Prometheus' text format.

    Raises:
        NotInstalledError: prometheus-client is not installed.
        BrokerUnavailable: Broker or store doesn't answer.
    """
    rows = (item for read in _PARTS.values() for item in read(bridge).items())
    families: Any = SimpleNamespace(collect=lambda: _families(dict(rows)))
    with needs("prometheus-client", "metrics"):
        from prometheus_client import generate_latest
    return generate_latest(families).decode().rstrip("\n")


def _queues(bridge: Bridge) -> _Rows:
    counts = bridge.counts()
    messages: dict[tuple[str, ...], float] = {}
    oldest: dict[tuple[str, ...], float] = {}
    paused: dict[tuple[str, ...], float] = {}
    for queue in bridge.operations.queues(counts):
        messages[queue.name, "waiting"] = queue.waiting
        if queue.running is not None:
            messages[queue.name, "running"] = queue.running
        if queue.oldest_s is not None:
            oldest[(queue.name,)] = queue.oldest_s
        paused[(queue.name,)] = float(queue.paused is not None)
    messages[ALL_QUEUES, "delayed"] = counts.delayed
    messages[ALL_QUEUES, "dead"] = counts.dead
    return {QUEUE_MESSAGES: messages, QUEUE_OLDEST: oldest, PAUSED: paused}


def _schedules(bridge: Bridge) -> _Rows:
    listed = () if bridge.store is None else bridge.schedules.list()
    return {MISSED: {(each.name,): each.missed for each in listed}}


def _flows(bridge: Bridge) -> _Rows:
    if bridge.store is None:
        return {FLOWS: {}}
    counts = bridge.flows.counts()
    return {FLOWS: {(state,): counts[state] for state in ("running", "stalled")}}


_PARTS: Final[Mapping[str, Callable[[Bridge], _Rows]]] = {"queues": _queues, "schedules": _schedules, "flows": _flows}


def _families(rows: _Rows) -> Iterator[Family]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # here, for it is an extra

    for name, values in rows.items():
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name, READ[name].help, labels=READ[name].labels)
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family
