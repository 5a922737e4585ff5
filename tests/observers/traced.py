"""An application whose sends and runs are traced; each span becomes a line of JSON in the file `OBSERVED`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from taskbridge import Bridge, RetryPolicy, Task, current
from taskbridge.integrations.opentelemetry import instrument


class Lines(SpanExporter):
    """Writes spans to a file, to which several processes may write."""

    def __init__(self, path: str) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with open(self._path, "a") as lines:
            for span in spans:
                assert span.context is not None
                about = {
                    "name": span.name,
                    "id": f"{span.context.trace_id:x} {span.context.span_id:x}",
                    "parent": None if span.parent is None else f"{span.parent.trace_id:x} {span.parent.span_id:x}",
                    "links": [f"{each.context.trace_id:x} {each.context.span_id:x}" for each in span.links],
                    "start_s": (span.start_time or 0) / 1e9,
                    "status": span.status.status_code.name,
                    "raised": [(event.attributes or {}).get("exception.type") for event in span.events],
                    **dict(span.attributes or {}),
                }
                lines.write(json.dumps(about) + "\n")
        return SpanExportResult.SUCCESS


@dataclass(frozen=True, kw_only=True, slots=True)
class Shop:
    """The tasks; `order` and `later` send `mail`."""

    order: Task[[], None]
    mail: Task[[], None]
    flaky: Task[[], int]
    across: Task[[str], str]
    later: Task[[], None]


def declare(bridge: Bridge) -> Shop:
    """Declare them."""

    @bridge.task(name="mail", queue="mails")
    def mail() -> None: ...

    @bridge.task(name="order")
    def order() -> None:
        mail.send()

    @bridge.task(name="later")
    def later() -> None:
        mail.send()

    @bridge.task(name="flaky", retry=RetryPolicy(delays=[0.1]))
    def flaky() -> int:
        if current().attempt == 1:
            raise KeyError("the first time")
        return 1

    # Long enough for a worker to stop meanwhile: what waits in the queue of its engine is not taken across on RabbitMQ.
    pause_s = 30 if bridge.settings.url.broker == "amqp" else 6

    @bridge.task(name="across", retry=RetryPolicy(delays=[pause_s], max_attempts=None, jitter=0))
    def across(failing: str) -> str:
        engine = bridge.settings.url.engine
        if engine == failing:
            raise OSError(f"not on {engine}")
        return engine

    return Shop(order=order, mail=mail, flaky=flaky, across=across, later=later)


def traced(bridge: Bridge, path: str) -> TracerProvider:
    """Have a bridge's sends and runs traced; return what makes the application's own spans."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Lines(path)))
    instrument(bridge, provider)
    return provider


def application() -> Bridge:
    """Return what a worker loads."""
    bridge = Bridge()
    declare(bridge)
    traced(bridge, os.environ["OBSERVED"])
    return bridge
