"""What broker and store tell at each scrape, of all workers together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from taskbridge.background import in_time
from taskbridge.exceptions import NotInstalledError, TaskBridgeError
from taskbridge.logs import OncePerMinute, logger
from taskbridge.metrics.names import ALL_QUEUES, FLOWS, MISSED, PAUSED, QUEUE_MESSAGES, QUEUE_OLDEST, READ

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from taskbridge.bridge import Bridge

_log = logger("taskbridge.metrics")

_READ_S: Final = 6.0  # Prometheus waits for 10 s, also for what workers have counted


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
        until = monotonic() + _READ_S
        for name, read in (("queues", _queues), ("schedules", _schedules), ("flows", _flows)):
            try:
                yield from in_time(name, partial(read, self._bridge), bool, left_s=lambda: until - monotonic())
            except (TaskBridgeError, TimeoutError) as exc:
                if self._left_out.due(name, is_new=True) is not None:
                    _log.warning("metrics of %s are left out of a scrape: %s", name, exc)


def text_of(bridge: Bridge) -> str:
    """Return all of it in Prometheus' text format.

    Raises:
        NotInstalledError: prometheus-client is not installed.
        BrokerUnavailable: Broker or store doesn't answer.
    """
    families: Any = SimpleNamespace(collect=lambda: [*_queues(bridge), *_schedules(bridge), *_flows(bridge)])
    try:
        from prometheus_client import generate_latest
    except ModuleNotFoundError as exc:
        raise NotInstalledError("prometheus-client", "metrics") from exc
    return generate_latest(families).decode().rstrip("\n")


def _queues(bridge: Bridge) -> list[Any]:
    messages, oldest, paused = _family(QUEUE_MESSAGES), _family(QUEUE_OLDEST), _family(PAUSED)
    counts = bridge.counts()
    for queue in bridge.operations.queues(counts):
        messages.add_metric((queue.name, "waiting"), queue.waiting)
        if queue.running is not None:
            messages.add_metric((queue.name, "running"), queue.running)
        if queue.oldest_s is not None:
            oldest.add_metric((queue.name,), queue.oldest_s)
        paused.add_metric((queue.name,), queue.paused is not None)
    messages.add_metric((ALL_QUEUES, "delayed"), counts.delayed)
    messages.add_metric((ALL_QUEUES, "dead"), counts.dead)
    return [messages, oldest, paused]


def _schedules(bridge: Bridge) -> list[Any]:
    missed = _family(MISSED)
    for each in () if bridge.store is None else bridge.schedules.list():
        missed.add_metric((each.name,), each.missed)
    return [missed]


def _flows(bridge: Bridge) -> list[Any]:
    flows = _family(FLOWS)
    if bridge.store is not None:
        counts = bridge.flows.counts()
        flows.add_metric(("running",), counts["running"])
        flows.add_metric(("stalled",), counts["stalled"])
    return [flows]


def _family(name: str) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # here, for it is an extra

    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(name, READ[name].help, labels=READ[name].labels)
