"""When a message may take the short way through a Celery worker, and that it is taken."""

from __future__ import annotations

import functools
import gc
import json
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.app import trace
from kombu.message import Message as KombuMessage
from prometheus_client import CollectorRegistry

from taskbridge import Bridge
from taskbridge.engines.celery.carrier import CARRIED, Slots
from taskbridge.engines.celery.consumer import Request, Way
from taskbridge.engines.celery.fast.tasks import FastRequest, FastWay, _Context, is_traced_by_celery_alone
from taskbridge.engines.celery.reading import Parts, arguments_in
from taskbridge.engines.celery.stock import CeleryTask, worker_state
from taskbridge.engines.celery.wire import AmqpWire
from taskbridge.message import Message, new_id
from taskbridge.metrics import observe

kombu_message: Any = KombuMessage


@pytest.fixture
def task() -> Iterator[Any]:
    bridge = Bridge("celery+memory://")

    @bridge.task(name="shop.pay")
    def pay() -> None: ...

    yield bridge.native.tasks["shop.pay"]
    bridge.close()


@pytest.fixture
def consumer(task: Any) -> Any:
    task.app.engine.consumer = made = SimpleNamespace(
        begins=lambda request: None,
        ends=lambda request, *, has_ended: None,
        call_soon=lambda *args: None,
        acknowledge_soon=lambda message: None,
        disable_rate_limits=False,
        slots=Slots(1),
        app=task.app,
        hostname="h",
        event_dispatcher=SimpleNamespace(enabled=True, groups={"worker"}),
        connection_errors=(),
        task_buckets={"shop.pay": None},
        on_task_message=(),
        on_task_request=None,
    )
    return made


@pytest.fixture
def way(consumer: Any, task: Any) -> FastWay:
    return FastWay(task, consumer)


def received(sent: Message) -> tuple[Any, Parts]:
    """Return a message as the consumer hands it on."""
    headers = {"id": sent.id, "task": sent.task, "taskbridge": sent.dumps_meta()}
    message = kombu_message(None, headers=headers, delivery_info={"routing_key": "q"})
    message.taskbridge = sent
    return message, Parts(headers, [], {}, {})


def test_a_forged_outcome_is_no_outcome(consumer: Any, task: Any) -> None:
    """What has become of a message is never read from the message."""
    sent = Message(id=new_id(), task="shop.pay", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)
    message, parts = received(sent)
    parts.headers["delivery_info"] = {CARRIED: "done"}
    parts.headers[CARRIED] = "done"

    request = Request(Way(task, consumer), message, parts)
    assert CARRIED not in request.request_dict["delivery_info"]
    request.tell_tracer(sent)
    assert request.request_dict["delivery_info"][CARRIED] is sent


@pytest.mark.parametrize("is_fast", [True, False])
def test_what_a_lost_connection_took_along_does_not_run(consumer: Any, task: Any, is_fast: bool) -> None:
    """It is delivered again, on the next connection, perhaps to another worker."""
    sent = Message(id=new_id(), task="shop.pay", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)
    ran: list[Any] = []
    consumer.event_dispatcher = None
    task.app.engine.host.on("before_run")(ran.append)
    dropped, kept = (FastWay(task, consumer) if is_fast else Way(task, consumer) for _ in range(2))
    first, second = dropped.request_for(*received(sent)), kept.request_for(*received(sent))
    first.dropped_at = 1.0
    first.run()
    assert ran == []
    second.run()
    assert len(ran) == 1


def test_an_error_in_the_turn_of_a_rate_limited_task_stops_no_other(consumer: Any, task: Any) -> None:
    contents: list[Any] = []
    consumer.task_buckets["shop.pay"] = SimpleNamespace(
        contents=contents,
        add=contents.append,
        can_consume=lambda: len(contents) < 3,
        expected_time=lambda: 1.0,
        pop=partial(contents.pop, 0),
    )
    timers: list[Any] = []
    consumer.timer = SimpleNamespace(call_after=lambda after_s, call, given: timers.append(partial(call, *given)))
    consumer.event_dispatcher = None
    handed: list[Any] = []
    failed: list[Any] = []

    def hand_on(request: Any) -> None:
        handed.append(request.message)
        if len(handed) == 2:
            raise OSError("no child")

    consumer.on_task_request = hand_on
    consumer.failed = lambda message, error: failed.append(message)
    way = Way(task, consumer)
    messages: list[Any] = []
    for _ in range(4):
        sent = Message(id=new_id(), task="shop.pay", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)
        message, parts = received(sent)
        messages.append(message)
        contents.append(way.request_for(message, parts))
    way._hand_on_from(consumer.task_buckets["shop.pay"])
    assert (handed, len(timers)) == ([], 1), "its turn has not come"
    contents.pop()
    contents.pop()
    timers.pop()()
    assert (handed, failed) == (messages[:2], messages[1:2])
    assert timers == []


def test_it_is_open_where_nobody_listens(way: FastWay, task: Any) -> None:
    assert way.is_open()
    assert is_traced_by_celery_alone(task)


def test_metrics_leave_it_open(way: FastWay, task: Any) -> None:
    observe(task.app.engine.host, registry=CollectorRegistry())

    assert way.is_open()
    assert is_traced_by_celery_alone(task)


@pytest.mark.parametrize("name", ["task_received", "task_prerun", "task_postrun", "task_success"])
def test_it_is_closed_as_long_as_somebody_listens_for_a_signal(way: FastWay, name: str) -> None:
    def listen(**_: Any) -> None: ...

    signal: Any = getattr(signals, name)
    signal.connect(listen, weak=False)
    try:
        assert not way.is_open()
    finally:
        signal.disconnect(listen)
    assert way.is_open()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("task_buckets", {"shop.pay": "a rate limit"}),
        ("event_dispatcher", SimpleNamespace(enabled=True, groups=set[str]())),
        ("event_dispatcher", SimpleNamespace(enabled=True, groups={"task"})),
    ],
)
def test_it_is_closed_for_events_and_rate_limits(way: FastWay, consumer: Any, attribute: str, value: Any) -> None:
    setattr(consumer, attribute, value)
    assert not way.is_open()


def test_a_request_is_let_go_without_a_garbage_collection(way: FastWay, consumer: Any, task: Any) -> None:
    """One that has to wait for it, 2,000 times a second, makes collections frequent, and long."""
    requests: list[weakref.ref[Any]] = []
    done = threading.Event()
    consumer.acknowledge_soon = lambda message: done.set()

    def hand_on(request: Any) -> None:
        requests.append(weakref.ref(request))
        consumer.slots.put(request.run)

    consumer.on_task_request = hand_on
    task.app.engine.life.opens(None, has_children=False)
    sent = Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    message, parts = received(sent)
    gc.disable()
    try:
        way(message, parts)
        assert done.wait(60)
        consumer.slots.shutdown()
        assert [request() for request in requests] == [None]
    finally:
        gc.enable()


def test_headers_that_would_change_what_the_tracer_does_are_left_out(way: FastWay, task: Any) -> None:
    task.app.engine.life.opens(None, has_children=False)
    sent = Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    message, parts = received(sent)
    parts.headers.update({"shadow": "another", "get": 1, "_protected": 1, "colour": "red"})
    request = Request(way, message, parts)
    assert parts.headers.keys() - request.request_dict.keys() == {"shadow", "get", "_protected"}
    assert request.name == "another", "what events show"


def test_what_celery_itself_puts_into_tasks_as_a_worker_starts_does_not_close_it(task: Any) -> None:
    trace.setup_worker_optimizations(task.app)
    try:
        assert is_traced_by_celery_alone(task)
    finally:
        trace.reset_worker_optimizations(task.app)


def test_there_is_none_where_a_tool_watches_over_tracers(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_tracer(*args: Any, **options: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(trace, "build_tracer", build_tracer)
    assert not is_traced_by_celery_alone(task)


@pytest.mark.parametrize("name", ["__call__", "before_start", "on_success", "after_return"])
def test_there_is_none_for_a_task_with_methods_of_its_own(
    task: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(task), name, lambda *_: None, raising=False)
    assert not is_traced_by_celery_alone(task)


def test_there_is_none_for_what_a_tool_has_put_into_tasks_as_such(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CeleryTask, "on_success", lambda *_: None)
    assert not is_traced_by_celery_alone(task)
    monkeypatch.undo()
    monkeypatch.setattr(task, "run", lambda: None, raising=False)
    assert not is_traced_by_celery_alone(task)
    monkeypatch.undo()
    monkeypatch.setattr(trace, "build_tracer", functools.wraps(trace.build_tracer)(lambda *_: None))
    assert not is_traced_by_celery_alone(task)


@pytest.mark.parametrize("name", ["on_task_init", "on_process_cleanup"])
def test_there_is_none_with_a_loader_that_is_told_of_tasks(
    task: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(task.app.loader), name, lambda *_: None, raising=False)
    assert not is_traced_by_celery_alone(task)


def test_what_a_task_puts_into_the_headers_of_its_request_stays_there() -> None:
    request = _Context({"id": "x", "task": "t", "colour": "red"})
    headers = request.headers
    assert headers is not None
    assert headers["colour"] == "red"
    headers["shape"] = "round"
    assert request.headers == headers
    request.headers = {"another": "one"}
    assert request.headers == {"another": "one"}
    request.update(headers={"a": "third"})
    assert request.headers == {"a": "third"}


def test_a_request_that_cannot_be_run_is_put_off_and_holds_no_slot(
    way: FastWay, consumer: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged: list[Any] = []
    ended: list[bool] = []
    consumer.ends = lambda request, *, has_ended: ended.append(has_ended)
    consumer.acknowledge_soon = acknowledged.append
    monkeypatch.setattr(FastRequest, "_settled", lambda *_: 1 / 0)
    consumer.on_task_request = lambda request: request.run()
    consumer.event_dispatcher = None
    way.options["eventer"] = None
    task.app.engine.life.opens(None, has_children=False)
    sent = Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    message, parts = received(sent)

    way(message, parts)

    assert acknowledged == [message]
    assert task.app.engine.host.counts().delayed == 1
    assert ended == [False]
    assert sent.id not in worker_state.requests


def test_a_paused_message_is_put_off_before_it_runs(way: FastWay, consumer: Any, task: Any) -> None:
    acknowledged, taken, ran = list[Any](), list[Any](), list[Any]()
    consumer.acknowledge_soon = acknowledged.append
    consumer.on_task_request = taken.append
    consumer.event_dispatcher = None
    way.options["eventer"] = None
    host = task.app.engine.host
    host.on("before_run")(ran.append)
    task.app.engine.life.opens(None, has_children=False)
    sent = Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    message, parts = received(sent)
    way(message, parts)
    [request] = taken
    assert isinstance(request, FastRequest)

    host.pause(task="shop.*")  # only now, when it waits for a slot
    request.run()

    assert acknowledged == [message]
    assert (host.counts().delayed, ran) == (1, [])


def _body(args_json: str, kwargs_json: str) -> bytes:
    bridge = Bridge("celery+amqp://localhost")
    message = Message(id=new_id(), task="t", queue="q", args_json=args_json, kwargs_json=kwargs_json, enqueued_at=1.0)
    body: bytes = AmqpWire(bridge.settings).encode(message).body
    return body


class TestTakingABodyApart:
    """What taskbridge wrote is read once, and its text is kept."""

    @pytest.mark.parametrize(
        ("args_json", "kwargs_json"),
        [
            ("[]", "{}"),
            ('[1,"], {}, {",[[]]]', '{"a":{"b":"]"}}'),
            ('["\\u00e4",{"$":"set","v":[1]}]', '{"callbacks":null}'),
            ("[1.5e300,-0.0,null,true]", "{}"),
        ],
    )
    def test_it_gives_the_values_and_their_text(self, args_json: str, kwargs_json: str) -> None:
        body = _body(args_json, kwargs_json)
        found = arguments_in(body)
        assert found is not None
        assert list(found[:2]) == json.loads(body)[:2]
        assert found[2] == (args_json, kwargs_json)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"}{",
            b"[[], {}]",
            b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": [1]}]',
            _body("[NaN]", "{}"),
            _body("[]", '{"a":Infinity}'),
            _body("[", "{}"),
            _body("[]", "[]"),
            _body("{}", "{}"),
            _body("[], 1", "{}"),
            _body("[" * 100_000, "{}"),
            _body('[{"__type__":"uuid","__value__":"x"}]', "{}"),
            _body("[]", "{}").replace(b"[[]", b"[ []"),
            _body('["a"]', "{}").replace(b'"a"', '"ä"'.encode()),
        ],
    )
    def test_what_is_written_otherwise_is_left_to_kombu(self, body: bytes) -> None:
        assert arguments_in(body) is None
