"""Metrics: the same names, labels and counts on both engines, for Prometheus and OpenTelemetry.

`observe` counts what this process sends and runs. `taskbridge worker --metrics-port` adds up the processes of a worker;
`Gauges` and `taskbridge metrics` read the broker and the store, for all processes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbridge.background import in_time
from taskbridge.exceptions import needs
from taskbridge.metrics.counts import Adder, Batch, Counts
from taskbridge.metrics.gauges import Gauges as Gauges
from taskbridge.metrics.names import BUCKETS_S, COUNTED, in_opentelemetry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from taskbridge.bridge import Bridge
    from taskbridge.hooks import Event

_EXPORT_S: Final = 2.0  # how long a worker that stops waits for OpenTelemetry's exporter


def observe(bridge: Bridge, *, registry: CollectorRegistry | None = None, meter_provider: Any | None = None) -> Counts:
    """Count what this process sends and runs from here on: in a web process, say, or a worker that was started by hand.

    What is heard is handed on once a second, and as a worker or the process ends; `flush` of what this returns does it
    at once.

    Args:
        bridge: Whose messages are counted.
        registry: Where Prometheus' client finds it; its default one if None. Its multiprocess mode is supported.
        meter_provider: OpenTelemetry's `MeterProvider`, which is told instead of a registry. In the process that starts
            and supervises workers, `taskbridge worker`, it also gets what `Gauges` read.

    Raises:
        NotInstalledError: prometheus-client is not installed.
        ValueError: The registry has metrics of these names already.
    """
    adders = _prometheus(registry) if meter_provider is None else _opentelemetry(meter_provider)

    def deliver(batch: Batch) -> None:
        for name, labels, values in batch:
            add = adders[name](dict(zip(COUNTED[name].labels, labels, strict=True)))
            for value in values:
                add(value)

    def supervising() -> None:
        if meter_provider is not None:  # whoever scrapes a registry is given the gauges by the worker's port
            Gauges(bridge).register_with(meter_provider)

    counts = Counts(bridge, lambda: deliver, supervising=supervising)
    counts.begin()
    if (force := getattr(meter_provider, "force_flush", None)) is not None:  # only the SDK's have it

        def export(_: Event) -> None:
            until = monotonic() + _EXPORT_S
            in_time("metrics", force, bool, left_s=lambda: until - monotonic())

        bridge.on("worker_stopping")(export)
    return counts


def _prometheus(registry: CollectorRegistry | None) -> Mapping[str, Adder]:
    with needs("prometheus-client", "metrics"):
        from prometheus_client import REGISTRY, Counter, Histogram
    into = REGISTRY if registry is None else registry

    def made(name: str) -> Adder:
        about = COUNTED[name]
        if about.is_histogram:
            histogram = Histogram(name, about.help, about.labels, buckets=BUCKETS_S, registry=into)
            return lambda labels: histogram.labels(**labels).observe
        counter = Counter(name, about.help, about.labels, registry=into)
        return lambda labels: counter.labels(**labels).inc

    return {name: made(name) for name in COUNTED}


def _opentelemetry(provider: Any) -> Mapping[str, Adder]:
    meter = provider.get_meter("taskbridge")

    def made(name: str) -> Adder:
        about = in_opentelemetry(name)
        if COUNTED[name].is_histogram:
            histogram = meter.create_histogram(**about, explicit_bucket_boundaries_advisory=list(BUCKETS_S))
            return lambda labels: partial(histogram.record, attributes=labels)
        counter = meter.create_counter(**about)
        return lambda labels: partial(counter.add, attributes=labels)

    return {name: made(name) for name in COUNTED}
