"""What a Celery worker does with what RabbitMQ sends it beyond its free slots."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from taskbridge.engines import settle
from taskbridge.engines.celery import consumer as worker
from taskbridge.engines.celery import reading, surplus
from taskbridge.engines.celery.surplus import Surplus
from taskbridge.message import Message


class Queues:
    """What a consumer consumes, as kombu's."""

    def __init__(self) -> None:
        self.queues = [SimpleNamespace(name=name) for name in ("one", "two", "three")]
        self.first: list[str] = []
        self.is_consuming = True

    def consume(self) -> None:
        self.is_consuming = True
        self.first.append(self.queues[0].name)

    def cancel(self) -> None:
        self.is_consuming = False


class Place:
    """A worker with so many free slots, and its surplus."""

    lost = (ConnectionError,)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.task_consumer = Queues()
        self.free = 0
        self.timers: list[Callable[[], object]] = []
        self.timer = SimpleNamespace(call_after=lambda _, call, given: self.timers.append(lambda: call(*given)))
        self.begun: list[int] = []
        self.returned: list[int] = []
        self.now = 100.0
        self.surplus = Surplus(self, may_return=True)  # type: ignore[arg-type]
        monkeypatch.setattr(surplus, "monotonic", lambda: self.now)

    def call_soon(self, act: Callable[..., object], *given: object) -> None:
        act(*given)

    def has_free_slot(self) -> bool:
        return self.free > 0

    def failed(self, message: Any, error: Exception) -> None:
        raise AssertionError from error

    def keep(self, number: int) -> None:
        def begin() -> None:
            self.free -= 1
            self.begun.append(number)

        message = SimpleNamespace(reject_log_error=lambda *_, requeue: self.returned.append(number))
        self.surplus.keep(message, begin)

    def end_one(self) -> None:
        self.free += 1
        self.surplus.go_on()

    def let_pass(self, wait_s: float) -> None:
        self.now += wait_s
        timers, self.timers = self.timers, []
        for act in timers:
            act()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_one_timer_looks_however_often_a_surplus_comes_and_goes(place: Place) -> None:
    for number in range(5):
        place.keep(number)
        place.end_one()
        place.end_one()
        place.free = 0

    assert place.begun == [0, 1, 2, 3, 4]
    assert len(place.timers) == 1
    place.free = 1
    place.let_pass(1)
    assert place.timers == []


def test_what_comes_later_waits_behind_what_waits(place: Place) -> None:
    place.keep(1)
    place.free = 1  # and its end has not been told yet
    place.keep(2)

    assert place.begun == [1]
    place.end_one()
    assert place.begun == [1, 2]


def test_after_a_pause_another_queue_comes_first(place: Place) -> None:
    for number in range(4):
        place.keep(number)
        place.let_pass(1)
        assert not place.task_consumer.is_consuming
        place.end_one()
        place.free = 0

    assert place.returned == [0, 1, 2, 3]
    assert place.task_consumer.first == ["two", "three", "one", "two"]


def test_a_worker_that_takes_nothing_new_holds_nothing_and_consumes_no_more(place: Place) -> None:
    place.keep(1)
    place.let_pass(1)
    place.keep(2)
    place.surplus.close()
    place.keep(3)
    place.end_one()
    place.surplus.renew()
    place.let_pass(1)

    assert (place.returned, place.begun) == ([1, 2, 3], [])
    assert not place.task_consumer.is_consuming
    assert place.timers == []


def test_a_lost_connection_is_told_to_the_main_loop(place: Place) -> None:
    def begin() -> None:
        raise ConnectionError

    place.surplus.keep(SimpleNamespace(), begin)
    place.free = 1
    with pytest.raises(ConnectionError):
        place.surplus.go_on()


def test_what_waits_for_a_slot_and_goes_back_does_not_count_as_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six crashes end a message, and it may wait for a slot more often."""
    read = Message(id="1", task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    taken: list[Message] = []
    monkeypatch.setattr(settle, "taken_again", lambda _, message, *, is_counted: taken.append(message))
    begun: list[Any] = []
    way: Any = worker.Way.__new__(worker.Way)
    monkeypatch.setattr(worker.Way, "__call__", lambda _, message, *__: begun.append(message))
    parts = SimpleNamespace(headers={"task": read.task})
    monkeypatch.setattr(reading, "taken_apart", lambda _: parts)
    monkeypatch.setattr(reading, "read", lambda *_: read)
    consumer: Any = worker.Consumer.__new__(worker.Consumer)
    consumer.strategies = {read.task: way}
    consumer.dead = SimpleNamespace(redacts=False)
    consumer._host = SimpleNamespace(marks=object(), now=lambda: 0.0)
    consumer._surplus, consumer._pauses = place.surplus, None
    consumer._came_back = lambda *_: False
    consumer.has_free_slot = place.has_free_slot
    message = SimpleNamespace(delivery_info={"redelivered": True}, headers={})

    consumer._admit(message, None)
    assert (taken, begun) == ([], [])
    place.free = 1
    place.surplus.go_on()
    assert (taken, begun) == ([read], [message])
