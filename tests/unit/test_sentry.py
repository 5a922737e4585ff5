"""What Sentry is told of sends, runs and dead messages, by its real SDK with a transport that keeps it all."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from taskbridge import Bridge, BrokerUnavailable, Discard, RetryPolicy
from taskbridge.dead import DeadEntry
from taskbridge.integrations.sentry import instrument


class Kept(Transport):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.items: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [json.loads(item.get_bytes()) for item in envelope.items]

    def runs(self) -> list[Any]:
        return [item for item in self.items if item.get("type") == "transaction" and item["transaction"] != "request"]

    def events(self) -> list[Any]:
        return [item for item in self.items if item.get("type") != "transaction"]

    def spans(self, op: str) -> list[Any]:
        found = [span for item in self.items if item.get("type") == "transaction" for span in item["spans"]]
        return [span for span in found if span["op"] == op]


@pytest.fixture
def kept() -> Generator[Kept]:
    transport = Kept()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1/1", transport=transport, traces_sample_rate=1.0, default_integrations=False
    )
    with sentry_sdk.isolation_scope():
        yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def bridge(kept: Kept) -> Generator[Bridge]:
    made = Bridge("inline://?threads=0", retry=RetryPolicy(delays=[5], max_attempts=2, jitter=0))
    instrument(made)
    instrument(made)  # the second changes nothing
    yield made
    made.close()
    assert sentry_sdk.get_current_span() is None


def test_sends_and_runs_are_spans_of_one_trace(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.pay", queue="money")
    def pay(order: int) -> None:
        with sentry_sdk.start_span(op="db", name="inside"):
            pass

    with sentry_sdk.start_transaction(op="http.server", name="request"):
        handle = pay.send(1)
    bridge.run_until_idle()

    (sent,), (process,), (run,) = kept.spans("queue.publish"), kept.spans("queue.process"), kept.runs()
    about = {
        "messaging.system": "memory",
        "messaging.message.id": handle.id,
        "messaging.destination.name": "money",
        "messaging.message.body.size": len("[1]{}"),
    }
    assert about.items() <= sent["data"].items()
    assert about.items() <= process["data"].items()
    assert process["data"]["messaging.message.retry.count"] == 0
    assert 0 <= process["data"]["messaging.message.receive.latency"] < 60_000
    assert run["transaction"] == "shop.pay"
    assert run["contexts"]["trace"]["status"] == "ok"
    assert run["contexts"]["trace"]["trace_id"] == sent["trace_id"]
    assert run["contexts"]["trace"]["parent_span_id"] == sent["span_id"]
    assert [span["op"] for span in run["spans"]] == ["queue.process", "db"]
    assert kept.events() == []


def test_a_delay_is_no_latency(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.later")
    def later() -> None: ...

    later.schedule(3600)
    bridge.run_until_idle()

    (process,) = kept.spans("queue.process")
    assert 0 <= process["data"]["messaging.message.receive.latency"] < 60_000


def test_a_retry_is_a_breadcrumb_and_the_death_is_the_only_event(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.flaky")
    def flaky(token: str) -> None:
        sentry_sdk.add_breadcrumb(message="seen in this attempt")
        raise ValueError("no")

    handle = flaky.send("s3cret")
    bridge.run_until_idle()

    (event,) = kept.events()
    assert event["transaction"] == "shop.flaky"
    assert event["exception"]["values"][-1]["type"] == "ValueError"
    assert event["exception"]["values"][-1]["mechanism"] == {"type": "taskbridge", "handled": False}
    about = event["contexts"]["taskbridge"]
    assert about == about | {"task": "shop.flaky", "id": handle.id, "attempt": 2, "reason": "exhausted"}
    assert "args" not in about
    assert event["tags"] == {"taskbridge.id": handle.id, "taskbridge.queue": "default"}
    crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
    assert crumbs == ["attempt 1 failed: ValueError: no", "seen in this attempt"]
    first, second = kept.runs()
    assert [run["contexts"]["trace"]["status"] for run in (first, second)] == ["aborted", "internal_error"]
    assert event["contexts"]["trace"]["trace_id"] == second["contexts"]["trace"]["trace_id"]
    assert [span["data"]["messaging.message.retry.count"] for span in kept.spans("queue.process")] == [0, 1]


def test_arguments_are_shown_as_the_application_redacts_them(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.login", retry=RetryPolicy.never())
    def login(user: str, token: str) -> None:
        raise ValueError("no")

    secret = uuid4().hex
    login.send("ann", secret)
    bridge.run_until_idle()
    assert "args" not in kept.events()[0]["contexts"]["taskbridge"]

    @bridge.dead.redact
    def redact(entry: DeadEntry) -> DeadEntry:
        return replace(entry, args=("ann", "***"))

    kept.items.clear()
    login.send("ann", secret)
    bridge.run_until_idle()

    (event,) = kept.events()
    assert "***" in event["contexts"]["taskbridge"]["args"]
    assert secret not in json.dumps(kept.items)


def test_errors_are_shown_as_the_application_redacts_them(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.login")
    def login(token: str) -> None:
        try:
            raise KeyError(token)
        except KeyError as exc:
            raise ValueError(token) from exc

    @bridge.dead.redact
    def redact(entry: DeadEntry) -> DeadEntry:
        error = None if entry.error is None else replace(entry.error, message="***")
        return replace(entry, args=(), error=error)

    secret = uuid4().hex
    login.send(secret)
    bridge.run_until_idle()

    (event,) = kept.events()
    assert [(each["type"], each["value"]) for each in event["exception"]["values"]] == [
        ("KeyError", ""),
        ("ValueError", "***"),
    ]
    assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == ["attempt 1 failed: ValueError: ***"]
    assert secret not in json.dumps(kept.items)


def test_what_dies_without_a_run_is_an_event_too(bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.odd", retry=RetryPolicy.never())
    def odd(number: int) -> None:
        raise Discard("not needed")

    odd.send(1)
    bridge.named("shop.gone").send()
    bridge.run_until_idle()

    (event,) = kept.events()
    assert event["message"] == "task shop.gone is dead: unknown_task"
    assert event["contexts"]["taskbridge"]["task"] == "shop.gone"


def test_many_messages_are_one_span(bridge: Bridge, kept: Kept) -> None:
    task = bridge.named("shop.many").using(queue="default")

    with sentry_sdk.start_transaction(name="request"):
        bridge.send_many([task.call(1), task.call(2)])

    (sent,) = kept.spans("queue.publish")
    assert sent["data"]["messaging.batch.message_count"] == 2
    assert sent["data"]["messaging.destination.name"] == "default"


def test_a_send_that_fails_says_so(kept: Kept) -> None:
    bridge = Bridge("celery+redis://127.0.0.1:1/0", send_timeout=0.2)
    instrument(bridge)

    with sentry_sdk.start_transaction(name="request"), pytest.raises(BrokerUnavailable):
        bridge.send("shop.pay")

    (sent,) = kept.spans("queue.publish")
    assert sent["status"] == "internal_error"


FORGED = [
    {"sentry-trace": 5, "baggage": "a=b,;;="},
    {"sentry-trace": f"{'1' * 32}-{'2' * 16}-1", "baggage": "sentry-sample_rate=Infinity"},
]


@pytest.mark.parametrize("headers", FORGED, ids=lambda each: each["baggage"])
def test_forged_headers_change_nothing_but_the_trace(headers: dict[str, Any], bridge: Bridge, kept: Kept) -> None:
    @bridge.task(name="shop.forged")
    def forged() -> None: ...

    def forge(event: Any) -> None:
        event.message.headers.update(headers)

    bridge.on("before_send")(forge)
    forged.send()
    bridge.run_until_idle()

    assert [run["contexts"]["trace"]["status"] for run in kept.runs()] == ["ok"]


def test_nothing_is_told_before_sentry_is_set_up() -> None:
    bridge = Bridge("inline://?threads=0")
    instrument(bridge)

    @bridge.task(name="shop.quiet", retry=RetryPolicy.never())
    def quiet() -> None:
        raise ValueError("no")

    handle = quiet.send()
    bridge.run_until_idle()

    assert handle.status().state == "dead"
    (letter,) = bridge.dead_letters()
    assert letter.message is not None
    assert letter.message.headers == {}
    bridge.close()
