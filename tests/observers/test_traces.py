"""A request, what it sends, what that sends, retries and a switch of engine are one trace, the same on all pairs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from opentelemetry import trace

from taskbridge import Bridge
from taskbridge.contract.workers import ProcessWorker
from taskbridge.engines.base import WorkerOptions
from taskbridge.integrations.opentelemetry import LINKED_AFTER_S
from tests.observers.traced import declare, traced
from tests.servers import PrivateRabbitMQ, PrivateRedis

_PATIENCE_S: Final = 180.0

Span = dict[str, Any]
Shape = tuple[str, str | None, int | None, str | None, str | None]

_ORDERED: Final[list[Shape]] = [  # name, task, attempt, outcome, and the task of what it comes from
    ("process default", "flaky", 1, "retried", "flaky"),
    ("process default", "flaky", 2, "done", "flaky"),
    ("process default", "order", 1, "done", "order"),
    ("process mails", "mail", 1, "done", "mail"),
    ("send default", "flaky", None, None, None),
    ("send default", "order", None, None, None),
    ("send mails", "mail", None, None, "order"),
]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Generator[tuple[str, str]]:
    """The part of a URL behind the engine, and where the store is."""
    with PrivateRedis(appendonly=False) as redis:
        if request.param == "redis":
            yield redis.url, redis.url
        else:
            with PrivateRabbitMQ() as rabbitmq:
                yield rabbitmq.url, redis.url


class Application:
    def __init__(self, broker: tuple[str, str], engine: str, folder: Path) -> None:
        self.url, store = broker
        self.folder = folder
        self.noted = folder / "spans"
        self.noted.touch()
        namespace = f"traced{uuid4().hex[:8]}"
        self.bridge = Bridge(f"{engine}+{self.url}", namespace=namespace, store=store, queues=["mails"])
        self.shop = declare(self.bridge)
        self.tracer = traced(self.bridge, str(self.noted)).get_tracer("web")
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")},
            "OBSERVED": str(self.noted),
            "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}",
            "TASKBRIDGE_NAMESPACE": namespace,
            "TASKBRIDGE_STORE": store,
        }

    @contextmanager
    def worker(self) -> Generator[Callable[[Callable[[], object]], None]]:
        """Start a worker of the engine configured now; yield what waits until something is so."""
        env = {**self.env, "TASKBRIDGE_URL": f"{self.bridge.settings.url.engine}+{self.url}"}
        options = WorkerOptions(app="tests.observers.traced_worker", threads=2)
        worker = ProcessWorker(self.bridge.worker_commands(options), env, self.folder / "log")

        def until(condition: Callable[[], object]) -> None:
            deadline = time.monotonic() + _PATIENCE_S
            while not condition():
                if time.monotonic() > deadline:
                    pytest.fail(f"{self.noted.read_text()}\n{worker.log()}")
                time.sleep(0.05)

        try:
            yield until
            worker.terminate()
            assert worker.wait(_PATIENCE_S) == 0, worker.log()
        finally:
            worker.kill()

    @contextmanager
    def request(self) -> Generator[str]:
        """Be in a request; yield the id of its span."""
        with self.tracer.start_as_current_span("request", kind=trace.SpanKind.SERVER) as span:
            context = span.get_span_context()
            yield f"{context.trace_id:x} {context.span_id:x}"

    def order(self, until: Callable[[Callable[[], object]], None]) -> str:
        """Have a request order something, and wait until all that it leads to has run."""
        before = len(self.runs("mail"))
        with self.request() as root:
            handles = self.shop.order.send(), self.shop.flaky.send()
        until(lambda: all(handle.status().is_final for handle in handles))
        until(lambda: len(self.runs("mail")) > before)
        return root

    def spans(self) -> list[Span]:
        return [json.loads(line) for line in self.noted.read_text().split("\n")[:-1]]  # whole lines

    def runs(self, task: str) -> list[Span]:
        """Return the runs of a task, the first to start first."""
        found = [
            span for span in self.spans() if span["name"].startswith("process") and span["taskbridge.task"] == task
        ]
        return sorted(found, key=lambda span: span["start_s"])

    def led_to(self, root: str) -> list[Span]:
        """Return all that a request has led to: children, and what links to them because it started long after."""
        spans = {span["id"]: span for span in self.spans()}

        def origin(span: Span) -> Span | None:
            if span["links"]:
                assert span["parent"] is None
                (link,) = span["links"]
                assert span["start_s"] - spans[link]["start_s"] > LINKED_AFTER_S - 1
                return spans[link]
            return spans.get(span["parent"])

        def root_of(span: Span) -> str:
            found = origin(span)
            return span["id"] if found is None else root_of(found)

        return [{**span, "origin": origin(span)} for span in spans.values() if root_of(span) == root != span["id"]]


def shape(spans: list[Span]) -> list[Shape]:
    return sorted(
        (
            (
                span["name"],
                span.get("taskbridge.task"),
                span.get("taskbridge.attempt"),
                span.get("taskbridge.outcome"),
                span["origin"].get("taskbridge.task"),
            )
            for span in spans
        ),
        key=repr,
    )


@pytest.mark.parametrize(
    ("broker", "first", "second"),
    [("redis", "celery", "dramatiq"), ("amqp", "dramatiq", "celery")],
    indirect=["broker"],
    ids=str,
)
def test_one_trace_leads_from_a_request_through_a_switch_of_engine(
    broker: tuple[str, str], first: str, second: str, tmp_path: Path
) -> None:
    application = Application(broker, first, tmp_path)
    bridge, shop = application.bridge, application.shop
    with application.worker() as until:
        ordered = application.order(until)
        with application.request() as crossing:
            across = shop.across.send(first)
        until(lambda: application.runs("across"))
    with application.request() as delayed:
        later = shop.later.schedule(0.5)
    bridge.move_to(f"{second}+{application.url}")
    with application.worker() as until:
        until(lambda: across.status().is_final)
        until(lambda: later.status().is_final)
        until(lambda: len(application.runs("mail")) > 1)
        ordered_again = application.order(until)
    bridge.close()

    for root, engine in ((ordered, first), (ordered_again, second)):
        spans = application.led_to(root)
        assert shape(spans) == _ORDERED
        assert {span["taskbridge.engine"] for span in spans} == {engine}
        system = "redis" if application.url.startswith("redis") else "rabbitmq"
        assert {span["messaging.system"] for span in spans} == {system}
        failed = [span for span in spans if span["status"] == "ERROR"]
        assert [span["raised"] for span in failed] == [["KeyError"]]
    *failed, last = application.runs("across")
    assert len(application.led_to(crossing)) == len(failed) + 2
    assert [each["taskbridge.engine"] for each in (*failed, last)] == [first] * len(failed) + [second]
    assert [each["taskbridge.outcome"] for each in (*failed, last)] == ["retried"] * len(failed) + ["done"]
    assert shape(application.led_to(delayed)) == [
        ("process default", "later", 1, "done", "later"),
        ("process mails", "mail", 1, "done", "mail"),
        ("send default", "later", None, None, None),
        ("send mails", "mail", None, None, "later"),
    ]
    sends = {span["name"]: span["taskbridge.engine"] for span in application.led_to(delayed)}
    assert sends["send default"] == first
    assert sends["process default"] == second
