"""What broker and store tell at each scrape, of all workers together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from taskbridge.exceptions import NotInstalledError, TaskBridgeError
from taskbridge.logs import logger
from taskbridge.metrics.names import ALL_QUEUES, MISSED, PAUSED, QUEUE_MESSAGES, QUEUE_OLDEST, READ

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from taskbridge.bridge import Bridge

_log = logger("taskbridge.metrics")


class Gauges:
    """A collector for a registry of Prometheus' client: `registry.register(Gauges(bridge))`.

    Each scrape reads broker and store once. What can't be read is left out, and a line is logged.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def describe(self) -> Iterable[Family]:
        """Return nothing, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield what can be read."""
        for read in (_queues, _schedules):
            try:
                yield from read(self._bridge)
            except TaskBridgeError as exc:
                _log.warning("metrics of %s are left out of a scrape: %s", read.__name__.strip("_"), exc)


def text_of(bridge: Bridge) -> str:
    """Return all of it in Prometheus' text format.

    Raises:
        NotInstalledError: prometheus-client is not installed.
        BrokerUnavailable: Broker or store doesn't answer.
    """
    families: Any = SimpleNamespace(collect=lambda: [*_queues(bridge), *_schedules(bridge)])
    try:
        from prometheus_client import generate_latest
    except ModuleNotFoundError as exc:
        raise NotInstalledError("prometheus-client", "metrics") from exc
    return generate_latest(families).decode().rstrip("\n")


def _queues(bridge: Bridge) -> list[Any]:
    messages, oldest, paused = _family(QUEUE_MESSAGES), _family(QUEUE_OLDEST), _family(PAUSED)
    queues = _now(bridge)
    for queue in queues:
        for state in ("waiting", "delayed", "dead", "running"):
            if (number := getattr(queue, state)) is not None:
                messages.add_metric((queue.name, state), number)
        if queue.oldest_s is not None:
            oldest.add_metric((queue.name,), queue.oldest_s)
        paused.add_metric((queue.name,), queue.paused is not None)
    of_all = [state for state in ("delayed", "dead") if any(getattr(each, state) is None for each in queues)]
    counts = bridge.counts() if of_all else None
    for state in of_all:
        messages.add_metric((ALL_QUEUES, state), getattr(counts, state))
    return [messages, oldest, paused]


def _now(bridge: Bridge) -> Iterable[Any]:
    """Return the queues as `Operations.queues` does."""
    operations: Any = getattr(bridge, "operations", None)
    if operations is not None:
        return tuple(operations.queues())
    none = dict.fromkeys(("delayed", "dead", "running", "oldest_s", "paused"))
    return [SimpleNamespace(name=name, waiting=number, **none) for name, number in bridge.counts().waiting.items()]


def _schedules(bridge: Bridge) -> list[Any]:
    missed = _family(MISSED)
    for each in () if bridge.store is None else bridge.schedules.list():
        missed.add_metric((each.name,), each.missed)
    return [missed]


def _family(name: str) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # here, for it is an extra

    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(name, READ[name].help, labels=READ[name].labels)
