"""An application whose worker is watched by a tool: `OBSERVER` says which, and `OBSERVED` where what it sees is noted.

Several are joined by a plus; `ours` are taskbridge's own spans of OpenTelemetry, `sentry-ours` what it tells Sentry.
Each tool is what its users install. Only its last part, which sends to a server, is one of ours that writes lines of
JSON: `error` with the name of the task, the type and the text of what it raised, and `run` with the name of the task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from taskbridge import Bridge
from tests.observers.tasks import declare


def _note(what: str, **facts: Any) -> None:
    with open(os.environ["OBSERVED"], "a") as noted:
        noted.write(json.dumps({"what": what, **{name: str(value) for name, value in facts.items()}}) + "\n")


def _note_error(*, name: Any, kind: Any, text: Any) -> None:
    _note("error", name=name, kind=kind, text=text)


def _sentry(*, has_integration: bool = True) -> None:
    import sentry_sdk
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class Local(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            event: Any = envelope.get_event()
            if event is not None:
                raised: Any = event.get("exception", {}).get("values", [{}])[-1]
                message: Any = event.get("contexts", {}).get("dramatiq", {}).get("data", {})
                name = event.get("transaction") or message.get("actor_name")
                _note_error(name=name, kind=raised.get("type"), text=raised.get("value"))
            transaction: Any = envelope.get_transaction_event()
            if transaction is not None:
                _note("run", name=transaction["transaction"])
                for span in transaction["spans"]:
                    if span["op"] == "queue.process":
                        _note("process", name=transaction["transaction"], id=span["data"]["messaging.message.id"])

    options: Any = {}
    if not has_integration:
        options = {"auto_enabling_integrations": False}
    elif os.environ["TASKBRIDGE_URL"].startswith("dramatiq"):  # Celery's is there by itself
        from sentry_sdk.integrations.dramatiq import DramatiqIntegration

        options["integrations"] = [DramatiqIntegration()]
    sentry_sdk.init(dsn="http://key@127.0.0.1/1", transport=Local, traces_sample_rate=1.0, **options)


def _opentelemetry() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Local(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            for span in spans:
                if span.kind is trace.SpanKind.CONSUMER:
                    note(span)
            return SpanExportResult.SUCCESS

    def note(span: ReadableSpan) -> None:
        name = (span.attributes or {}).get("taskbridge.task") or str(span.name).removeprefix("run/")
        _note("run", name=name)
        if span.status.status_code.name == "ERROR":
            raised: Any = next((event.attributes for event in span.events if event.name == "exception"), None) or {}
            _note_error(name=name, kind=raised.get("exception.type"), text=raised.get("exception.message"))

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Local()))
    trace.set_tracer_provider(provider)


def _instrumented() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    _opentelemetry()
    CeleryInstrumentor().instrument()


def _spans() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())  # which gives them to nobody


def _datadog() -> None:
    from ddtrace import patch, tracer
    from ddtrace.trace import TraceFilter

    class Local(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            for span in trace:
                if span.name == "celery.run" and span.error:
                    kind, text = span.get_tag("error.type"), span.get_tag("error.message")
                    _note_error(name=span.resource, kind=kind, text=text)

    patch(celery=True)
    tracer.configure(trace_processors=[Local()])


_OBSERVERS: Final[Mapping[str, Callable[[], object]]] = {
    "sentry": _sentry,
    "sentry-alone": lambda: _sentry(has_integration=False),
    "opentelemetry": _instrumented,
    "opentelemetry-alone": _opentelemetry,
    "spans": _spans,
    "datadog": _datadog,
    "flower": bool,
}

_watching: Final = os.environ["OBSERVER"].split("+")
for _name in _watching:
    if _name in _OBSERVERS:
        _OBSERVERS[_name]()
bridge = Bridge()
declare(bridge)
if "ours" in _watching:
    from taskbridge.integrations.opentelemetry import instrument

    instrument(bridge)
if "sentry-ours" in _watching:
    from taskbridge.integrations import sentry

    sentry.instrument(bridge)
app = bridge.native
if "flower" in _watching:
    app.conf.worker_send_task_events = True
