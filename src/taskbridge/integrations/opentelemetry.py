"""Spans of OpenTelemetry for what is sent and run, the same on both engines; `instrument` turns them on.

The context travels in the message's headers, so attempts, delays, outboxes and a switch of engine keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskbridge import failures
from taskbridge._version import __version__
from taskbridge.background import in_time
from taskbridge.exceptions import needs
from taskbridge.integrations import BAGGAGE, SYSTEMS, TOGETHER, Open, add_baggage
from taskbridge.logs import logger
from taskbridge.observing import Observer, outcome_of

with needs("opentelemetry-api", "opentelemetry", fails_by=ImportError):
    from opentelemetry import context, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import Getter
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from taskbridge.bridge import Bridge
    from taskbridge.hooks import Event
    from taskbridge.message import Message
    from taskbridge.retry import Verdict

_NAME: Final = "taskbridge"
_FLUSH_S: Final = 2.0

_log = logger("taskbridge.traces")

LINKED_AFTER_S: Final = 60.0
"""How long after its send a run starts a trace of its own, with a link to the send; until then it is its child."""


def instrument(bridge: Bridge, tracer_provider: TracerProvider | None = None) -> None:
    """Have spans made of what a bridge sends and runs in this process; a second call changes nothing.

    Call it in each process that sends and in the module that workers load. Without a provider, the global one is asked.
    """
    if not any(isinstance(each, _Traces) for each in bridge.observers):
        traces = _Traces(bridge, tracer_provider)
        bridge.observers.append(traces)
        bridge.on("before_send")(traces.before_send)
        bridge.on("worker_stopping")(traces.flush)


class _Texts(Getter[Mapping[str, Any]]):
    """Reads headers, whose values may be no texts."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_TEXTS: Final = _Texts()
_NOWHERE: Final = Context()


class _Opened(NamedTuple):
    """A span, and what undoes that it is the current one; None if another tool made it."""

    span: Span
    token: Token[Context] | None

    def close(self) -> None:
        if self.token is not None:
            context.detach(self.token)
            self.span.end()


class _Traces(Observer):
    def __init__(self, bridge: Bridge, provider: TracerProvider | None) -> None:
        self._bridge = bridge
        self._provider = provider
        self._tracer = trace.get_tracer(_NAME, __version__, provider)
        self._open = Open(_Opened.close)

    # Sends

    def before_send(self, event: Event) -> None:
        """Have a message that waits for a transaction, or goes to an outbox, name what it was sent in."""
        if event.message is not None:
            _inject([event.message], context.get_current())

    def sending(self, messages: Sequence[Message]) -> None:
        first = messages[0]
        around = context.get_current()
        if not trace.get_current_span(around).get_span_context().is_valid:  # as when a commit sends what has waited
            around = _context_of(first, around)
        is_one = len(messages) == 1
        queue = first.queue if is_one or all(each.queue == first.queue for each in messages) else None
        attributes = self._attributes("send", queue, first if is_one else None)
        if not is_one:
            attributes[TOGETHER] = len(messages)
        name = "send" if queue is None else f"send {queue}"
        span = self._tracer.start_span(name, around, SpanKind.PRODUCER, attributes)
        inside = trace.set_span_in_context(span, around)
        self._open.push(messages, _Opened(span, context.attach(inside)))
        _inject(messages, inside)

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        if (opened := self._open.pop(messages)) is not None:
            if error is not None:
                _tell_error(opened.span, error)
            opened.close()

    # Runs

    def running(self, message: Message, started_at: float) -> None:
        parent = _context_of(message, _NOWHERE)  # whatever this thread has been doing
        attributes = self._attributes("process", message.queue, message)
        attributes["taskbridge.attempt"] = message.attempt
        most = self._bridge.bound(message.task).policy.max_attempts
        if most is not None:
            attributes["taskbridge.max_attempts"] = most
        sent_in = trace.get_current_span(parent).get_span_context()
        if (foreign := self._foreign()) is not None:
            foreign.set_attributes(attributes)
            if sent_in.is_valid and sent_in.trace_id != foreign.get_span_context().trace_id:
                foreign.add_link(sent_in)
            self._open.push(message, _Opened(foreign, None))
            return
        links: Sequence[Link] = ()
        if sent_in.is_valid and started_at - message.enqueued_at > LINKED_AFTER_S:
            links = (Link(sent_in),)
            parent = trace.set_span_in_context(trace.INVALID_SPAN, parent)
        span = self._tracer.start_span(f"process {message.queue}", parent, SpanKind.CONSUMER, attributes, links)
        self._open.push(message, _Opened(span, context.attach(trace.set_span_in_context(span, parent))))

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        if (opened := self._open.pop(message)) is not None:
            outcome, error = outcome_of(verdict)
            opened.span.set_attribute("taskbridge.outcome", outcome)
            if opened.token is not None and outcome in ("retried", "dead"):
                _tell_error(opened.span, error, getattr(verdict, "reason", ""))
            opened.close()

    def flush(self, _: Event) -> None:
        """Hand over what is left, for at most 2 s: children of Celery's pool end without `atexit`."""
        provider = trace.get_tracer_provider() if self._provider is None else self._provider
        flush, until = getattr(provider, "force_flush", bool), monotonic() + _FLUSH_S  # which only the SDK's have
        try:
            in_time("traces", flush, bool, left_s=lambda: until - monotonic())
        except TimeoutError as exc:
            _log.warning("spans may be lost: %s", exc)

    def _foreign(self) -> Span | None:
        """Return the span that another tool has made of the run that starts: that one is enough.

        A worker's threads have no current span between runs. On `inline://`, what waits may run in anybody's.
        """
        span = trace.get_current_span()
        if not span.is_recording() or self._bridge.settings.url.engine == "inline":
            return None
        scope = getattr(span, "instrumentation_scope", None)
        is_own = getattr(scope, "name", None) == _NAME  # of a run that was interrupted outside its task
        return span if getattr(span, "kind", None) is SpanKind.CONSUMER and not is_own else None

    def _attributes(self, operation: str, queue: str | None, message: Message | None) -> dict[str, AttributeValue]:
        url = self._bridge.settings.url
        attributes: dict[str, AttributeValue] = {
            "messaging.system": SYSTEMS.get(url.broker, url.broker),
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "taskbridge.engine": url.engine,
        }
        if queue is not None:
            attributes["messaging.destination.name"] = queue
        if message is not None:
            attributes["messaging.message.id"] = message.id
            attributes["messaging.message.body.size"] = len(message.args_json) + len(message.kwargs_json)
            attributes["taskbridge.task"] = message.task
        return attributes


def _inject(messages: Sequence[Message], where: Context) -> None:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, where)
    baggage = carrier.pop(BAGGAGE, None)
    for message in messages:
        message.headers.update(carrier)
        if baggage is not None:
            add_baggage(message.headers, baggage)


def _context_of(message: Message, otherwise: Context) -> Context:
    """Return the context that a message was sent in, as far as its headers tell."""
    return propagate.extract(message.headers, otherwise, _TEXTS)


def _tell_error(span: Span, error: BaseException | None, reason: str = "") -> None:
    """Have a span tell of a failure: bounded, and whatever the exception's own text does."""
    if not span.is_recording():
        return
    if error is None:
        kind = text = reason
    else:
        kind, text = failures.type_of(type(error)), failures.text_of(error)
        about = {"type": kind, "message": text, "stacktrace": failures.traceback_of(error)}
        span.add_event("exception", {f"exception.{name}": value for name, value in about.items()})
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, text))
