"""Spans of what is sent and run: their context travels in headers, and each attempt says how it ended."""

from __future__ import annotations

import threading
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskbridge import Bridge, BrokerUnavailable, Discard, Event, RetryPolicy, current
from taskbridge.integrations.opentelemetry import instrument
from taskbridge.message import Message
from taskbridge.testing import capture_sent
from tests.unit.test_transactions import Ledger


class Traced:
    """A bridge with spans, and an application's own tracer."""

    def __init__(self, url: str = "inline://?threads=0", **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("application")
        self.bridge = Bridge(url, **settings)
        instrument(self.bridge, provider)
        instrument(self.bridge, provider)  # the second changes nothing

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


@pytest.fixture
def traced() -> Generator[Traced]:
    made = Traced()
    yield made
    made.bridge.close()
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_send_is_a_child_of_what_sends_and_the_run_is_one_of_the_send(traced: Traced) -> None:
    @traced.bridge.task(name="shop.pay", queue="money", retry=RetryPolicy(max_attempts=3))
    def pay(order: int) -> None:
        traced.tracer.start_span("inside").end()

    with traced.tracer.start_as_current_span("request"):
        handle = pay.send(1)
    traced.bridge.run_until_idle()

    request, send, run = traced.span("request"), traced.span("send money"), traced.span("process money")
    assert parent_of(send) == id_of(request)
    assert parent_of(run) == id_of(send)
    assert parent_of(traced.span("inside")) == id_of(run)
    assert (send.kind, run.kind) == (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
    about = {
        "messaging.system": "memory",
        "messaging.destination.name": "money",
        "messaging.message.id": handle.id,
        "messaging.message.body.size": len("[1]{}"),
        "taskbridge.engine": "inline",
        "taskbridge.task": "shop.pay",
    }
    assert attributes_of(send) == {
        **about,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert attributes_of(run) == {
        **about,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "taskbridge.attempt": 1,
        "taskbridge.max_attempts": 3,
        "taskbridge.outcome": "done",
    }


def test_a_coroutine_and_what_is_around_a_run_are_inside_its_span(traced: Traced) -> None:
    seen: list[int] = []

    @traced.bridge.around
    def surrounded(_: Any) -> Generator[None]:
        seen.append(trace.get_current_span().get_span_context().span_id)
        yield

    @traced.bridge.task(name="shop.slow", queue="slow")
    async def slow() -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    slow.send()
    traced.bridge.run_until_idle()

    assert seen == [id_of(traced.span("process slow"))[1]] * 2


@pytest.mark.parametrize(("delay_s", "is_child"), [(59, True), (61, False)])
def test_a_run_long_after_its_send_links_to_it(traced: Traced, delay_s: float, is_child: bool) -> None:
    tokens: list[object] = []

    @traced.bridge.task(name="shop.later")
    def later() -> None:
        tokens.append(baggage.get_baggage("tenant"))

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    later.schedule(timedelta(seconds=delay_s))
    context.detach(token)
    traced.bridge.run_until_idle()

    send, run = traced.span("send default"), traced.span("process default")
    assert parent_of(run) == (id_of(send) if is_child else None)
    links = [(link.context.trace_id, link.context.span_id) for link in run.links]
    assert links == ([] if is_child else [id_of(send)])
    assert (id_of(run)[0] == id_of(send)[0]) is is_child
    assert tokens == ["acme"]


def test_each_attempt_is_a_span_and_a_failed_one_tells_its_error(traced: Traced) -> None:
    @traced.bridge.task(name="shop.flaky", retry=RetryPolicy(delays=[1], max_attempts=2, jitter=0))
    def flaky() -> None:
        raise ValueError(f"no {current().attempt}")

    @traced.bridge.task(name="shop.dropped", queue="dropped")
    def dropped() -> None:
        raise Discard("not needed")

    flaky.send()
    dropped.send()
    traced.bridge.run_until_idle()

    first, second = traced.spans("process default")
    assert parent_of(first) == parent_of(second) == id_of(traced.span("send default"))
    for number, (run, outcome) in enumerate([(first, "retried"), (second, "dead")], 1):
        about = attributes_of(run)
        assert (about["taskbridge.attempt"], about["taskbridge.outcome"]) == (number, outcome)
        assert about["error.type"] == "ValueError"
        assert (run.status.status_code.name, run.status.description) == ("ERROR", f"no {number}")
        (event,) = run.events
        told = dict(event.attributes or {})
        assert (event.name, told["exception.type"], told["exception.message"]) == (
            "exception",
            "ValueError",
            f"no {number}",
        )
        assert "in flaky" in str(told["exception.stacktrace"])
    run = traced.span("process dropped")
    assert attributes_of(run)["taskbridge.outcome"] == "discarded"
    assert (run.status.status_code.name, list(run.events)) == ("UNSET", [])


def test_an_exception_whose_text_is_hostile_is_told_within_bounds(traced: Traced) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @traced.bridge.task(name="shop.hostile", retry=RetryPolicy.never())
    def hostile(huge: bool) -> None:
        raise ValueError("x" * 1_000_000) if huge else Hostile

    hostile.send(True)
    hostile.send(False)
    traced.bridge.run_until_idle()

    for run in traced.spans("process default"):
        assert attributes_of(run)["taskbridge.outcome"] == "dead"
        assert all(len(str(value)) <= 32_000 for event in run.events for value in (event.attributes or {}).values())


def test_many_messages_are_one_span_which_all_runs_are_children_of(traced: Traced) -> None:
    @traced.bridge.task(name="shop.one", queue="one")
    def one(number: int) -> None: ...

    @traced.bridge.task(name="shop.other", queue="other")
    def other() -> None: ...

    with traced.tracer.start_as_current_span("request") as request:
        traced.bridge.send_many([one.call(1), one.call(2)])
        traced.bridge.send_many([one.call(3), other.call()])
    traced.bridge.run_until_idle()

    alike, mixed = traced.span("send one"), traced.span("send")
    assert attributes_of(alike)["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in attributes_of(alike)
    assert "messaging.destination.name" not in attributes_of(mixed)
    assert alike.parent == mixed.parent == request.get_span_context()
    parents = [parent_of(run) for run in traced.spans("process one")]
    assert parents == [id_of(alike), id_of(alike), id_of(mixed)]
    assert parent_of(traced.span("process other")) == id_of(mixed)


def test_a_send_that_fails_tells_why() -> None:
    traced = Traced("celery+redis://127.0.0.1:1/0", send_timeout=0.2)
    task = traced.bridge.named("shop.pay")

    with pytest.raises(BrokerUnavailable):
        task.send()

    (span,) = traced.spans("send default")
    assert attributes_of(span)["error.type"].endswith("BrokerUnavailable")
    assert span.status.status_code.name == "ERROR"
    assert not trace.get_current_span().get_span_context().is_valid


def test_what_waits_for_a_commit_or_in_an_outbox_names_the_request_that_sent_it(traced: Traced) -> None:
    ledger = Ledger()
    traced.bridge.transactions = ledger

    @traced.bridge.task(name="shop.held")
    def held() -> None: ...

    ledger.begin("db")
    with traced.tracer.start_as_current_span("held"):
        held.using(commit=("db",)).send()
    ledger.commit("db")  # outside the request
    with traced.tracer.start_as_current_span("put"):
        held.using(commit="outbox").send()
    traced.bridge.run_until_idle()

    send = traced.span("send default")
    assert parent_of(send) == id_of(traced.span("held"))
    parents = [parent_of(run) for run in traced.spans("process default")]
    assert parents == [id_of(send), id_of(traced.span("put"))]


def test_a_replay_long_after_links_to_the_first_send(traced: Traced) -> None:
    @traced.bridge.task(name="shop.dies", retry=RetryPolicy.never())
    def dies() -> None:
        raise ValueError("no")

    handle = dies.send()
    traced.bridge.run_until_idle()
    traced.bridge.named("shop.pause").using(queue="default").schedule(timedelta(hours=1))
    traced.bridge.run_until_idle()
    traced.bridge.dead.replay(handle.id)
    traced.bridge.run_until_idle()

    first, again = (
        run for run in traced.spans("process default") if attributes_of(run)["taskbridge.task"] == "shop.dies"
    )
    send = id_of(traced.spans("send default")[0])
    assert parent_of(first) == send
    assert parent_of(again) is None
    assert [(link.context.trace_id, link.context.span_id) for link in again.links] == [send]


def test_headers_that_somebody_forged_start_a_trace_of_their_own(traced: Traced) -> None:
    @traced.bridge.task(name="shop.odd")
    def odd() -> None: ...

    def forge(event: Any) -> None:
        event.message.headers.update(traceparent=5, tracestate="=" * 3000, baggage="a=b,;;=" * 300)

    traced.bridge.on("before_send")(forge)
    odd.send()
    traced.bridge.run_until_idle()

    assert traced.span("process default").parent is None
    assert attributes_of(traced.span("process default"))["taskbridge.outcome"] == "done"


def test_a_flush_that_hangs_does_not_hold_up_the_stop_of_a_worker(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    class Hangs(SpanProcessor):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return is_over.wait(600)

    is_over = threading.Event()
    traced.provider.add_span_processor(Hangs())
    traced.bridge.hooks.call(Event(name="worker_stopping"))
    is_over.set()

    assert [record.getMessage() for record in caplog.records] == ["spans may be lost: traces took too long"]


@pytest.mark.parametrize("theirs", ["theirs=1", "tenant=acmeltd"])
def test_other_baggage_of_a_message_is_kept(theirs: str, traced: Traced) -> None:
    with capture_sent(traced.bridge) as sent, traced.tracer.start_as_current_span("request"):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        traced.bridge.named("shop.odd").using(headers={"baggage": theirs}).send()
        context.detach(token)

    (message,) = sent
    assert message.headers["baggage"] == f"{theirs},tenant=acme"
    assert message.headers["traceparent"].startswith("00-")


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_run_that_another_tool_has_a_span_for_gets_no_second_one(engine: str) -> None:
    pytest.importorskip(engine)
    traced = Traced(f"{engine}+memory://")
    bridge = traced.bridge

    @bridge.task(name="shop.pay", retry=RetryPolicy.never())
    def pay(fails: bool) -> None:
        if fails:
            raise ValueError("no")

    runner = bridge.bound("shop.pay")
    with capture_sent(bridge) as sent, traced.tracer.start_as_current_span("request") as request:
        pay.send(fails=False)
    message = Message(
        id="1",
        task="shop.pay",
        queue="default",
        args_json="[]",
        kwargs_json='{"fails":false}',
        enqueued_at=bridge.now(),
        headers=dict(sent[0].headers),
    )
    with traced.tracer.start_as_current_span("run/shop.pay", kind=trace.SpanKind.CONSUMER):
        runner.run(message)
    runner.run(message)

    run = traced.span("run/shop.pay")
    assert attributes_of(run)["taskbridge.outcome"] == "done"
    assert attributes_of(run)["messaging.message.id"] == "1"
    assert [link.context.span_id for link in run.links] == [request.get_span_context().span_id]
    assert len(traced.spans("process default")) == 1  # the run without a tool
    bridge.close()


def test_a_run_whose_end_was_not_told_is_no_parent_of_the_next(traced: Traced) -> None:
    (observer,) = traced.bridge.observers
    lost, found = (
        Message(id=each, task="shop.pay", queue=each, args_json="[]", kwargs_json="{}", enqueued_at=0.0)
        for each in ("lost", "found")
    )

    def work() -> None:
        observer.running(lost, 0.0)
        traced.bridge.bound("shop.pay").run(found)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)

    assert parent_of(traced.span("process found")) is None
    assert attributes_of(traced.span("process found"))["taskbridge.outcome"] == "dead"  # nobody knows the task
