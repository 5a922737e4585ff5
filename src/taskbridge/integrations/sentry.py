"""Tells Sentry of sends, runs and dead messages, the same on both engines; `instrument` turns it on.

Sends are spans `queue.publish`, runs `queue.process`, which Sentry's page of queues reads. A message that is dead is an
event; an attempt that failed before is a breadcrumb of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskbridge import failures, locks
from taskbridge.exceptions import needs
from taskbridge.integrations import BAGGAGE, SYSTEMS, TOGETHER, Open, add_baggage
from taskbridge.message import DeadLetter
from taskbridge.observing import Observer, Outcome, outcome_of
from taskbridge.retry import Dead, ErrorInfo

with needs("sentry-sdk", "sentry", fails_by=ImportError):
    import sentry_sdk
    from sentry_sdk.utils import event_from_exception

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskbridge.bridge import Bridge
    from taskbridge.hooks import Event
    from taskbridge.message import Message
    from taskbridge.retry import Verdict

_PUBLISH: Final = "queue.publish"
_PROCESS: Final = "queue.process"
_TRACE: Final = "sentry-trace"
_ORIGIN: Final = "auto.queue.taskbridge"
_FLUSH_S: Final = 2.0

_STATUS: Final[Mapping[Outcome, str]] = {"done": "ok", "retried": "aborted", "dead": "internal_error"}


def instrument(bridge: Bridge) -> None:
    """Have Sentry told of what a bridge sends and runs in this process; a second call changes nothing.

    Call it beside `sentry_sdk.init`, in each process that sends and in the module that workers load. Where Sentry's own
    integration of the engine watches a run, that one reports its errors and its transaction.
    """
    if any(isinstance(each, _Queues) for each in bridge.observers):
        return
    queues = _Queues(bridge)
    bridge.observers.append(queues)
    bridge.on("before_send")(queues.before_send)
    bridge.on("dead")(queues.dead)
    bridge.on("worker_stopping")(queues.flush)


class _Opened(NamedTuple):
    """What is open of a send or a run, and whether the engine's own integration reports the run's errors."""

    exits: ExitStack
    spans: Sequence[Any]
    is_seen: bool

    def close(self) -> None:
        self.exits.close()


class _Queues(Observer):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._open = Open(_Opened.close)
        self._told = locks.Local()  # the last attempt of this thread whose death was told, before it is settled

    # Sends

    def before_send(self, event: Event) -> None:
        """Have a message say what it is sent in, which it may leave before it is published."""
        if event.message is not None and sentry_sdk.is_initialized():
            _inject([event.message])

    def sending(self, messages: Sequence[Message]) -> None:
        if not sentry_sdk.is_initialized():
            return
        first = messages[0]
        with ExitStack() as exits:
            span: Any = exits.enter_context(sentry_sdk.start_span(op=_PUBLISH, name=first.queue, origin=_ORIGIN))
            if all(each.queue == first.queue for each in messages):
                span.set_data("messaging.destination.name", first.queue)
            if len(messages) == 1:
                self._describe(span, first)
            else:
                span.set_data(TOGETHER, len(messages))
            _inject(messages)
            self._open.push(messages, _Opened(exits.pop_all(), [span], True))

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        if (opened := self._open.pop(messages)) is not None:
            opened.spans[0].set_status("ok" if error is None else "internal_error")
            opened.close()

    # Runs

    def running(self, message: Message, started_at: float) -> None:
        if not sentry_sdk.is_initialized():
            return
        spans, is_seen = list[Any](), self._is_seen()
        with ExitStack() as exits:
            if not is_seen:
                exits.enter_context(sentry_sdk.isolation_scope()).clear_breadcrumbs()
                spans.append(exits.enter_context(sentry_sdk.start_transaction(_continued(message))))
            span: Any = sentry_sdk.get_current_span()
            if not is_seen or span.op != _PROCESS:
                span = exits.enter_context(sentry_sdk.start_span(op=_PROCESS, name=message.task, origin=_ORIGIN))
                spans.append(span)
            self._describe(span, message)
            span.set_data("messaging.destination.name", message.queue)
            span.set_data("messaging.message.retry.count", message.attempt - 1)
            if message.attempt == 1 and message.replays == 0:
                due_at = message.enqueued_at if message.due_at is None else message.due_at
                span.set_data("messaging.message.receive.latency", max(0.0, started_at - due_at) * 1000)
            if (error := self._shown(message, message.error)) is not None:
                text = f"attempt {message.attempt - 1} failed: {error.type}: {error.message}"
                sentry_sdk.add_breadcrumb(type="error", category="taskbridge.retry", level="warning", message=text)
            self._open.push(message, _Opened(exits.pop_all(), spans, is_seen))

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        if (opened := self._open.pop(message)) is None:
            return
        outcome, error = outcome_of(verdict)
        for span in opened.spans:
            span.set_status(_STATUS.get(outcome, "cancelled"))
        if isinstance(verdict, Dead) and not opened.is_seen:
            self._capture(message, error, verdict.reason)
            vars(self._told)["attempt"] = message.attempt_key
        opened.close()

    def dead(self, event: Event) -> None:
        """Tell of a message that died without a run: its worker was lost, or nobody knows its task."""
        message = event.message
        if message is None or vars(self._told).pop("attempt", None) == message.attempt_key or self._is_seen():
            return
        with sentry_sdk.isolation_scope():
            self._capture(message, event.error, event.reason)

    def flush(self, _: Event) -> None:
        """Hand over what is left: children of Celery's pool end without `atexit`."""
        sentry_sdk.flush(_FLUSH_S)

    def _is_seen(self) -> bool:
        """Return whether Sentry's own integration of the engine watches what this thread has in hand."""
        engine = self._bridge.settings.url.engine
        is_on = engine != "inline" and sentry_sdk.get_client().get_integration(engine) is not None
        return is_on and sentry_sdk.get_current_span() is not None

    def _describe(self, span: Any, message: Message) -> None:
        broker = self._bridge.settings.url.broker
        span.set_data("messaging.system", SYSTEMS.get(broker, broker))
        span.set_data("messaging.message.id", message.id)
        span.set_data("messaging.message.body.size", len(message.args_json) + len(message.kwargs_json))

    def _shown(self, message: Message, error: ErrorInfo | None) -> ErrorInfo | None:
        """Return what may be shown of a message's error, whose text may hold arguments."""
        dead = self._bridge.dead
        if not dead.redacts:
            return error
        return dead.shown(DeadLetter(message=message, reason="", died_at=0.0, error=error)).error

    def _capture(self, message: Message, error: BaseException | None, reason: str) -> None:
        client, dead = sentry_sdk.get_client(), self._bridge.dead
        about: dict[str, Any] = {"task": message.task, "id": message.id, "attempt": message.attempt, "reason": reason}
        if dead.redacts or client.should_send_default_pii():
            about["args"], about["kwargs"] = dead.shown_arguments(message)
        options: Any = client.options
        if dead.redacts:  # the variables of frames hold what it is to hide
            options = {**options, "include_local_variables": False}
        with sentry_sdk.new_scope() as scope:
            scope.set_transaction_name(message.task, source="task")
            scope.set_context("taskbridge", about)
            scope.set_tag("taskbridge.queue", message.queue)
            scope.set_tag("taskbridge.id", message.id)
            if error is None:
                scope.capture_message(f"task {message.task} is dead: {reason}", level="error")
                return
            mechanism = {"type": "taskbridge", "handled": False}
            told, hint = event_from_exception(failures.presentable(error), client_options=options, mechanism=mechanism)
            if dead.redacts:
                shown = self._shown(message, ErrorInfo.of(error))
                *causes, raised = told.get("exception", {})["values"]
                for each in causes:
                    each["value"] = ""
                raised["value"] = "" if shown is None else shown.message
            scope.capture_event(told, hint=hint)


def _inject(messages: Sequence[Message]) -> None:
    trace, baggage = sentry_sdk.get_traceparent(), sentry_sdk.get_baggage()
    for message in messages:
        if trace:
            message.headers[_TRACE] = trace
        if baggage:
            add_baggage(message.headers, baggage)


def _continued(message: Message) -> Any:
    """Return the transaction of a run, in the trace that its message was sent in."""
    texts = {name: message.headers.get(name) for name in (_TRACE, BAGGAGE)}
    headers: Any = {name: text for name, text in texts.items() if isinstance(text, str)}
    about: Any = {"op": "queue.task.taskbridge", "name": message.task, "source": "task", "origin": _ORIGIN}
    try:
        return sentry_sdk.continue_trace(headers, **about)
    except (ValueError, OverflowError):  # somebody else has written them
        return sentry_sdk.continue_trace({}, **about)
