"""What a Celery worker drops as its connection is lost, and what it does as that is delivered again."""

from __future__ import annotations

import threading
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.common import QoS as KombuQoS

from taskbridge import Bridge
from taskbridge.engines.celery import consumer as worker
from taskbridge.engines.celery.carrier import Slots
from taskbridge.engines.settle import RUNNING, Attempts
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message

SENT = Message(id="1", task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)

QoS: Any = KombuQoS

LATER_S = 60.0


class Request:
    """A request as Celery keeps it until a slot says that it has begun."""

    def __init__(self) -> None:
        self.message = SimpleNamespace(taskbridge=SENT)
        self.time_start: float | None = None
        self.dropped_at: float | None = None
        self.is_orphan = False


def _consumer() -> Any:
    """Return a consumer that has no worker around it."""
    made: Any = worker.Consumer.__new__(worker.Consumer)
    made._surplus = None
    return made


class Worker:
    """A consumer that holds one request, and whose messages that have to wait are only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.request = Request()
        self.put_off: list[Any] = []
        self.consumer = _consumer()
        self.consumer._life = SimpleNamespace(active_requests=list, draining=False, is_embedded=False)
        self.consumer._host = None
        self.consumer._has_children = False
        self.consumer._attempts = Attempts()
        self.consumer.begins(self.request)
        self.consumer.pool = SimpleNamespace(num_processes=2)
        self.consumer.prefetch_multiplier = 1
        self.consumer._in_background = lambda message, act: self.put_off.append(message)
        monkeypatch.setattr(CeleryConsumer, "on_close", lambda consumer: None)
        monkeypatch.setattr("celery.worker.state.reserved_requests", {self.request})

    def is_dealt_with_again(self) -> bool:
        """Deliver the message once more; return whether that was not to be handed to the pool."""
        message = SimpleNamespace(delivery_info={"redelivered": True})
        return bool(self.consumer._came_back(message, replace(SENT)))


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(monkeypatch)


def _let_time_pass(monkeypatch: pytest.MonkeyPatch, seconds: float = LATER_S) -> None:
    now = monotonic()
    monkeypatch.setattr("taskbridge.engines.celery.consumer.monotonic", lambda: now + seconds)


def test_what_no_slot_had_begun_with_is_run(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    holding.consumer.on_close()
    _let_time_pass(monkeypatch)

    assert not holding.is_dealt_with_again()
    assert holding.put_off == []
    assert holding.consumer._state_of(SENT) is None


def test_a_child_may_still_say_that_it_has_begun(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    _let_time_pass(monkeypatch, 0.0)  # from here on it stands still
    holding.consumer.on_close()

    assert holding.is_dealt_with_again()
    assert len(holding.put_off) == 1
    assert holding.consumer._state_of(SENT) == RUNNING


def test_what_began_since_is_not_run_twice(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    holding.consumer.on_close()
    holding.request.time_start = 1.0
    _let_time_pass(monkeypatch)

    assert holding.is_dealt_with_again()
    assert holding.consumer._state_of(SENT) == RUNNING


def test_what_had_begun_before_is_not_run_twice(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    holding.request.time_start = 1.0
    holding.consumer.on_close()
    _let_time_pass(monkeypatch)

    assert holding.is_dealt_with_again()
    assert holding.consumer._state_of(SENT) == RUNNING


def test_a_second_copy_of_what_has_ended_is_not_run(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it says that it may have been started, as one does whose parking was tried twice."""
    acknowledged: list[Any] = []
    monkeypatch.setattr(holding.consumer, "_acknowledge", acknowledged.append)
    holding.consumer.ends(holding.request, has_ended=True)

    copy = SimpleNamespace(delivery_info={}, ack_log_error="the copy")

    assert holding.consumer._came_back(copy, replace(SENT, redelivered=1))
    assert acknowledged == ["the copy"]


class Job:
    """What the pool remembers of what it has written to a child."""

    def __init__(self, *, accepted: bool) -> None:
        self._accepted = accepted
        self.is_ready = False

    def ready(self) -> bool:
        return self.is_ready


def test_the_pool_remembers_what_its_children_run(holding: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Celery 5.5 forgets all its jobs, and then nobody learns how those ended that run."""
    running, written, died = Job(accepted=True), Job(accepted=False), Job(accepted=True)
    jobs = {1: running, 2: written, 3: died}
    holding.consumer._has_children = True
    holding.consumer.pool = SimpleNamespace(_pool=SimpleNamespace(_cache=jobs), num_processes=2)
    monkeypatch.setattr(worker, "celery_version", "5.5.3")

    def flush(_: Any) -> None:
        jobs.clear()
        died.is_ready = True  # the pool looks after its children, too

    monkeypatch.setattr(CeleryConsumer, "on_close", flush)
    holding.consumer.on_close()

    assert jobs == {1: running}


def test_after_a_reconnection_no_more_is_fetched_than_there_are_free_slots(holding: Worker) -> None:
    """And each slot that gets free lets the main loop fetch one more."""
    consumer = holding.consumer
    running = [Request(), Request()]
    consumer.pool.num_processes = 4
    users_own: Any = SimpleNamespace(message=SimpleNamespace())
    consumer._life.active_requests = lambda: [*running, users_own]
    soon: list[Any] = []
    consumer.call_soon = soon.append
    consumer.on_close()
    assert consumer.initial_prefetch_count == 2
    consumer.qos = QoS(lambda prefetch_count: None, consumer.initial_prefetch_count)
    for request in (*running, Request(), running[0]):
        consumer.ends(request, has_ended=True)
    for act in soon:
        act()
    assert consumer.qos.value == 4


@pytest.mark.parametrize("is_kept", [False, True], ids=["celery 5.6", "celery 5.7"])
def test_what_runs_since_before_a_reconnection_has_its_slot_until_it_ends(
    is_kept: bool, holding: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery 5.7 keeps it among what it has reserved slots for; that doesn't make it two."""
    consumer, running = holding.consumer, Request()
    active = [running]
    reserved = {running} if is_kept else set[Request]()
    consumer._life.active_requests = lambda: active
    consumer.call_soon = lambda act, *args: None
    monkeypatch.setattr("celery.worker.state.reserved_requests", reserved)
    for _ in range(2):  # lost again: it is counted once
        consumer.on_close()
        consumer.pool.num_processes = 1
        assert not consumer.has_free_slot()
        consumer.pool.num_processes = 2
        assert consumer.has_free_slot()

    active.clear()
    reserved.clear()
    consumer.pool.num_processes = 1
    consumer.ends(running, has_ended=True)
    assert consumer.has_free_slot()


def test_of_a_queue_of_another_type_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    consumer, told = _consumer(), list[Exception]()
    consumer.event_dispatcher = None
    consumer._engine = SimpleNamespace(settings=SimpleNamespace(url=SimpleNamespace(broker="amqp")))
    monkeypatch.setattr(CeleryConsumer, "on_connection_error_after_connected", lambda _, exc: told.append(exc))
    refusals = [PreconditionFailed("inequivalent arg 'x-queue-type' for queue 'q'"), ConnectionError("reset")]
    for each in refusals:
        consumer.on_connection_error_after_connected(each)

    assert told == refusals
    (said,) = [message for message in caplog.messages if "inequivalent arg" in message]
    assert "queue 'q'; it can't be changed: set queue_type" in said


def test_a_message_that_waits_to_go_back_holds_nothing_else_up() -> None:
    """All that would make the main loop wait for the broker is done by one thread."""
    bridge: Any = Bridge("celery+memory://", requeue_pause=LATER_S)
    consumer, background, done = _consumer(), Slots(1), threading.Event()
    pauses: list[float] = []
    consumer._host = bridge
    consumer._life = SimpleNamespace(background=background)
    consumer.call_soon = lambda act, *args: act(*args)
    consumer.timer = SimpleNamespace(call_after=lambda pause_s, *_: pauses.append(pause_s))

    def fails() -> None:
        raise BrokerUnavailable("it is away")

    for _ in range(2):
        consumer._in_background(SimpleNamespace(taskbridge=SENT), fails)
    background.put(done.set)
    try:
        assert done.wait(LATER_S / 3)
    finally:
        bridge.stopping.set()
        background.shutdown()
        bridge.close()
    assert pauses == [LATER_S, LATER_S]
