"""What is paused, as it is kept and as a worker process knows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest

from taskbridge import Bridge, Pause, StoreUnavailable, UnsupportedError
from taskbridge.message import Message
from taskbridge.pauses import KEY, MOST_BACK_A_SECOND, MOST_PUT_OFF_S, PUT_OFF_S, Pauses
from taskbridge.stores.memory import MemoryBackend

WAIT_S = 60.0


class SharedBackend(MemoryBackend):
    """A store that other processes share, and that may be away."""

    is_shared = True
    is_away = False

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        if self.is_away:
            raise StoreUnavailable("it is away")
        return super().get(keys, timeout_s=timeout_s)


def pauses_of(backend: MemoryBackend) -> Pauses:
    return Pauses(backend, time.time, timeout_s=5.0)


def message(task: str = "shop.pay", queue: str = "default") -> Message:
    return Message(id="1", task=task, queue=queue, args_json="[]", kwargs_json="{}", enqueued_at=1.0)


def until(condition: partial[bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


@pytest.fixture
def backend() -> SharedBackend:
    return SharedBackend(time.time)


def test_what_is_paused_is_known_to_other_processes(backend: SharedBackend) -> None:
    operator, worker = pauses_of(backend), pauses_of(backend)
    operator.pause("email", None, None)
    operator.pause(None, "shop.*", None)
    assert [(each.queue, each.task, each.until) for each in operator.all()] == [
        ("email", None, None),
        (None, "shop.*", None),
    ]
    assert worker.covers(message(queue="email", task="other"))
    assert worker.covers(message())
    assert not worker.covers(message(task="shopping"))
    assert not worker.covers(message(task="taskbridge.probe", queue="email"))
    assert operator.resume("email", None)
    assert not operator.resume("email", None)
    until(partial(lambda: not worker.holds(message(queue="email", task="other"))))
    worker.close()


def test_pausing_again_sets_another_end_and_keeps_the_beginning(backend: SharedBackend) -> None:
    pauses = pauses_of(backend)
    pauses.pause("email", None, None)
    pauses.pause("sms", None, None)
    (first, _), later = pauses.all(), datetime.now(timezone.utc) + timedelta(hours=1)
    pauses.pause("email", None, later)
    assert pauses.all()[0] == Pause(queue="email", task=None, since=first.since, until=later)


def test_the_last_that_is_known_holds_while_the_store_is_away(backend: SharedBackend) -> None:
    clock = [1000.0]
    worker = Pauses(backend, lambda: clock[0], timeout_s=5.0)
    worker.pause("email", None, None)
    worker.pause("sms", None, datetime.fromtimestamp(clock[0] + 60, timezone.utc))
    worker.begin()
    backend.is_away = True
    worker.old_at = 0.0
    assert worker.covers(message(queue="email"))
    assert worker.covers(message(queue="sms"))
    assert not worker.covers(message())
    clock[0] += 60
    until(partial(lambda: worker.queues == frozenset(["email"])))  # an end that was set comes all the same
    worker.close()


def test_nothing_starts_until_it_is_known_what_is_paused(backend: SharedBackend) -> None:
    """A worker that starts while the store is away would start what was paused before."""
    worker = pauses_of(backend)
    backend.is_away = True
    worker.begin()
    with pytest.raises(StoreUnavailable):
        worker.covers(message())
    backend.is_away = False
    assert not worker.covers(message())
    worker.close()


@pytest.mark.parametrize(
    "text", ["1", "1\n{", '1\n[["email"]]', "1\n[[1, 2, 3.0, null]]", '1\n[["a", null, "x", null]]']
)
def test_what_can_not_be_read_stops_no_worker(backend: SharedBackend, text: str) -> None:
    backend.put(KEY, text, kept_s=3600.0, timeout_s=5.0)
    worker = pauses_of(backend)
    assert not worker.covers(message())
    with pytest.raises(StoreUnavailable, match="remove that key"):
        worker.all()
    worker.close()


def test_a_later_release_may_keep_more_of_a_pause(backend: SharedBackend) -> None:
    backend.put(KEY, '7\n[["email", null, 1.0, null, "by me"]]', kept_s=3600.0, timeout_s=5.0)
    assert [each.queue for each in pauses_of(backend).all()] == ["email"]


def test_what_is_put_off_comes_back_soon_and_never_too_much_at_once(
    backend: SharedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskbridge.pauses.monotonic", lambda: 1000.0)
    pauses = pauses_of(backend)
    waits = [pauses.wait_s() for _ in range(10 * MOST_BACK_A_SECOND)]
    assert waits[0] == pytest.approx(PUT_OFF_S)
    assert waits[-1] == pytest.approx(PUT_OFF_S + 10.0, abs=0.1)
    waits = [pauses.wait_s() for _ in range(int(MOST_PUT_OFF_S * MOST_BACK_A_SECOND))]
    assert max(waits) == waits[-1] == pytest.approx(MOST_PUT_OFF_S)


def test_an_end_must_be_ahead_and_have_a_zone(backend: SharedBackend) -> None:
    pauses = pauses_of(backend)
    with pytest.raises(ValueError, match="in the future"):
        pauses.pause("email", None, datetime.now(timezone.utc))
    with pytest.raises(ValueError, match="naive"):
        pauses.pause("email", None, datetime.now() + timedelta(hours=1))  # noqa: DTZ005 - that is the point


def test_without_a_store_nothing_can_be_paused() -> None:
    bridge = Bridge("celery+amqp://guest:guest@127.0.0.1:1//")
    for act in (partial(bridge.pause, "default"), partial(bridge.resume, task="*"), bridge.paused):
        with pytest.raises(UnsupportedError, match="needs a store"):
            act()


def test_a_virtual_clock_jumps_to_the_end_of_a_pause() -> None:
    bridge = Bridge("inline://?threads=0")
    seen: list[str] = []
    note = bridge.task(name="note", unique=True)(seen.append)
    bridge.pause(task="no*", until=datetime.now(timezone.utc) + timedelta(hours=1))
    bridge.pause("default")
    first, second = note.send("a"), note.send("a")
    assert (second.id, second.is_new) == (first.id, False)  # what waits keeps its key
    assert bridge.run_until_idle() == 0
    assert bridge.counts().waiting == {"default": 1}
    bridge.resume("default")
    assert bridge.run_until_idle() == 1
    assert (seen, bridge.paused()) == (["a"], ())
    bridge.close()


def test_what_is_paused_is_an_alarm() -> None:
    bridge = Bridge("inline://?threads=0")
    bridge.pause("default")
    bridge.pause(task="shop.*")
    found = [(each.text, each.level, each.queue) for each in bridge.operations.alarms()]
    assert found == [
        ("queue default is paused", "warning", "default"),
        ("tasks shop.* are paused", "warning", None),
    ]
    bridge.close()


def test_nobody_who_sends_waits_for_the_store_that_tells_what_is_paused(
    backend: SharedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, ran = Bridge("inline://?threads=1"), threading.Event()
    ring = bridge.task(name="ring")(ran.set)
    pauses, asked, sent = pauses_of(backend), threading.Event(), threading.Event()
    were_sent: list[bool] = []

    def get(keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        asked.set()
        were_sent.append(sent.wait(WAIT_S))
        return [None]

    monkeypatch.setattr(backend, "get", get)
    monkeypatch.setattr(type(bridge), "pauses", pauses)
    ring.send()
    assert asked.wait(WAIT_S)
    ring.send()
    sent.set()
    assert ran.wait(WAIT_S)
    assert all(were_sent)
    bridge.close()
    pauses.close()


def test_pauses_are_kept_in_a_database(tmp_path: Path) -> None:
    bridges = [Bridge("inline://?threads=0", store=f"sqlite:///{tmp_path}/store.db") for _ in range(2)]
    bridges[0].pause("default")
    assert [each.queue for each in bridges[1].paused()] == ["default"]
    assert bridges[1].resume("default")
    assert bridges[0].paused() == ()
    for bridge in bridges:
        bridge.close()
