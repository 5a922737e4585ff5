"""The real Celery worker, embedded: it runs, ends and disturbs nobody."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from traceback import extract_tb
from typing import Any

import pytest
from celery import _state, signals

from taskbridge import Bridge, RetryPolicy, TaskBridgeError


def until(condition: Callable[[], Any], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s:g} s in vain for {what}"
        time.sleep(0.005)


@pytest.fixture
def bridge() -> Bridge:
    return Bridge("celery+memory://", queues=["vip"], grace=0.3)


def test_a_failing_task_is_retried_and_then_dead(bridge: Bridge) -> None:
    runs: list[int] = []

    @bridge.task(name="fails", retry=RetryPolicy(max_attempts=3, min_delay=0.05, jitter=0))
    def fails() -> None:
        runs.append(1)
        raise ValueError("no")

    with bridge.embedded_worker(threads=1):
        fails.send()
        until(bridge.dead_letters, "a dead letter")
    [letter] = bridge.dead_letters()
    assert (len(runs), letter.reason) == (3, "exhausted")


def test_who_listens_is_told_what_really_happened_and_no_log_says_it_twice(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenTelemetry's and Datadog's instrumentation listen; they leave out the errors that a task `throws`."""
    told: list[Any] = []

    @bridge.task(name="works", retry=RetryPolicy(max_attempts=2, min_delay=0.05, jitter=0))
    def works(value: str) -> str:
        if not value:
            raise ValueError(value)
        return value

    def succeeded(result: Any, **_: Any) -> None:
        told.append(("success", result))

    def ended(retval: Any, state: str, **_: Any) -> None:
        told.append((state, retval if state == "SUCCESS" else None))

    def retried(reason: Any, **_: Any) -> None:
        told.append(("retry", repr(reason.exc)))

    def failed(sender: Any, exception: Any, traceback: Any, einfo: Any, **_: Any) -> None:
        frames = [frame.name for frame in extract_tb(traceback)]
        told.append(("failure", repr(exception), sender.throws, "works" in frames, einfo.tb is not None))

    listeners = {"success": succeeded, "postrun": ended, "retry": retried, "failure": failed}
    for name, listener in listeners.items():
        getattr(signals, f"task_{name}").connect(listener, weak=False)
    try:
        with caplog.at_level(logging.INFO), bridge.embedded_worker(threads=1):
            works.send("s3cret")
            until(lambda: len(told) == 2, "the first to end")
            works.send("")
            until(lambda: len(told) == 6, "the second to end")
    finally:
        for name, listener in listeners.items():
            getattr(signals, f"task_{name}").disconnect(listener)
    error = "ValueError('')"
    failure = ("failure", error, (), True, True)
    ends = [("success", "s3cret"), ("SUCCESS", "s3cret"), ("retry", error), ("RETRY", None), failure, ("FAILURE", None)]
    assert told == ends
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and "works" in record.getMessage()]
    assert [record.name for record in errors] == ["taskbridge.worker"]
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_no_error_of_a_task_ends_the_worker(bridge: Bridge, error: BaseException) -> None:
    ran = threading.Event()

    @bridge.task(name="quits", retry=RetryPolicy.never())
    def quits() -> None:
        raise error

    @bridge.task(name="works")
    def works() -> None:
        ran.set()

    with bridge.embedded_worker(threads=1):
        quits.send()
        works.send()
        assert ran.wait(60)
    assert [letter.reason for letter in bridge.dead_letters()] in (["gave_up"], ["exhausted"])


def test_a_higher_priority_comes_first_and_then_who_came_first(bridge: Bridge) -> None:
    order: list[str] = []

    @bridge.task(name="note")
    def note(name: str) -> None:
        order.append(name)

    for number in "12":
        for priority in ("low", "normal", "high", "critical"):
            note.using(priority=priority).send(priority + number)
    with bridge.embedded_worker(threads=1):
        until(lambda: len(order) == 8, "8 runs")
    assert order == [f"{name}{number}" for name in ("critical", "high", "normal", "low") for number in "12"]


def test_a_worker_consumes_only_its_queues_and_the_next_one_is_not_bound_by_it(bridge: Bridge) -> None:
    ran: list[str] = []

    @bridge.task(name="note")
    def note(name: str) -> None:
        ran.append(name)

    note.send("default")
    note.using(queue="vip").send("vip")
    with bridge.embedded_worker(queues=["vip"], threads=1):
        until(lambda: ran, "a run")
        time.sleep(0.1)
        assert ran == ["vip"]
    with bridge.embedded_worker(threads=1):
        until(lambda: len(ran) == 2, "the other run")


def test_two_bridges_of_one_namespace_do_not_interfere() -> None:
    ran: list[tuple[int, int]] = []
    bridges = [Bridge("celery+memory://", grace=0.3) for _ in range(2)]
    notes: list[Any] = []
    for number, one in enumerate(bridges):
        notes.append(one.task(name="note")(lambda value, number=number: ran.append((number, value))))
    with bridges[0].embedded_worker(threads=1), bridges[1].embedded_worker(threads=1):
        for number, note in enumerate(notes):
            note.send(number)
            bridges[number].native.send_task("note", (number,))
        until(lambda: len(ran) == 4, "4 runs")
    assert sorted(ran) == [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_a_second_worker_of_the_same_bridge_is_refused(bridge: Bridge) -> None:
    with (
        bridge.embedded_worker(threads=1),
        pytest.raises(TaskBridgeError, match="already"),
        bridge.embedded_worker(threads=1),
    ):
        pass


def test_a_worker_is_up_and_down_in_no_time_and_leaves_the_process_as_it_was(bridge: Bridge) -> None:
    with bridge.embedded_worker(threads=2):
        pass  # the imports
    signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    blocks, app = _state.task_join_will_block(), _state.get_current_app()
    started = time.monotonic()
    with bridge.embedded_worker(threads=2):
        assert _state.task_join_will_block() == blocks
        assert _state.get_current_app() is app
    assert time.monotonic() - started < 5  # 0.05 s on an idle machine
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)] == signals


def test_a_task_that_outlasts_the_grace_goes_back_at_the_same_attempt(bridge: Bridge) -> None:
    attempts: list[str] = []
    endings: list[str] = []

    @bridge.task(name="long")
    def long() -> None:
        attempts.append("start")
        try:
            while len(attempts) == 1:
                time.sleep(0.01)
        except BaseException as exc:
            endings.append(type(exc).__name__)
            raise

    handle = long.send()
    with bridge.embedded_worker(threads=1):
        until(lambda: attempts, "a start")
    assert endings == ["Interrupted"]
    assert bridge.counts().waiting["default"] == 1
    seen: list[Any] = []
    bridge.on("succeeded")(seen.append)
    with bridge.embedded_worker(threads=1):
        until(lambda: seen, "the second run")
    assert [(event.message.id, event.message.attempt) for event in seen] == [(handle.id, 1)]


def test_a_stuck_task_does_not_keep_the_worker_from_ending(bridge: Bridge) -> None:
    started, free, threads = threading.Event(), threading.Event(), list[threading.Thread]()

    @bridge.task(name="stuck")
    def stuck() -> None:
        threads.append(threading.current_thread())
        started.set()
        free.wait(120)  # inside such a call nothing interrupts it

    stuck.send()
    before = 0.0
    try:
        with bridge.embedded_worker(threads=1):
            assert started.wait(60)
            before = time.monotonic()
        assert time.monotonic() - before < 5.3  # the grace and 5 s
        assert bridge.counts().waiting["default"] == 1
    finally:
        free.set()
    threads[0].join(60)
    assert not threads[0].is_alive(), "it ends in no other test"
    assert bridge.counts().waiting["default"] == 1


def test_what_is_sent_with_celerys_own_means_runs_under_taskbridges_rules(bridge: Bridge) -> None:
    results: list[Any] = []

    @bridge.task(name="add", retry=RetryPolicy(max_attempts=2, min_delay=0.05, jitter=0))
    def add(x: int, y: int) -> int:
        results.append(x + y)
        if len(results) == 1:
            raise ValueError("once")
        return x + y

    app = bridge.native
    with bridge.embedded_worker(threads=1):
        app.send_task("add", (1, 2), link=app.signature("add", (10,)))
        until(lambda: len(results) == 3, "a retry, and then what was linked")
    assert results == [3, 3, 13]
    with pytest.raises(TypeError):
        app.tasks["add"].delay(1)


def test_a_task_declared_while_the_worker_runs_is_known(bridge: Bridge) -> None:
    ran = threading.Event()
    with bridge.embedded_worker(threads=1):
        late = bridge.task(name="late")(lambda: ran.set())  # noqa: PLW0108 - a lambda has no name that Celery could use
        late.send()
        assert ran.wait(60)


def test_celerys_own_tasks_are_not_run(bridge: Bridge) -> None:
    ran: list[int] = []
    bridge.task(name="note")(lambda value: ran.append(value + 0))
    with bridge.embedded_worker(threads=1):
        bridge.native.send_task("celery.map", (bridge.native.signature("note"), [1, 2]), queue="default")
        until(lambda: bridge.counts().delayed, "it to wait as an unknown task")
    assert ran == []


def noting(ran: list[int]) -> Any:
    def plain(value: int) -> None:
        ran.append(value)

    return plain


def test_a_celery_task_of_the_users_own_expires_as_on_celery(bridge: Bridge) -> None:
    ran: list[int] = []
    bridge.task(name="note")(lambda value: ran.append(value + 0))
    plain: Any = bridge.native.task(name="plain", shared=False)(noting(ran))
    plain.apply_async((1,), queue="default", expires=0.05)
    plain.apply_async((2,), queue="default")
    time.sleep(0.1)
    with bridge.embedded_worker(threads=1):
        until(lambda: 2 in ran, "the one that has not expired")
    assert ran == [2]


def test_celerys_own_tasks_run_the_users_own(bridge: Bridge) -> None:
    ran: list[int] = []
    plain: Any = bridge.native.task(name="plain", shared=False)(noting(ran))
    plain.map([1, 2]).apply_async(queue="default")
    plain.chunks([(3,), (4,)], 1).apply_async(queue="default")
    with bridge.embedded_worker(threads=1):
        until(lambda: len(ran) == 4, "all to run")
    assert sorted(ran) == [1, 2, 3, 4]


def test_celerys_settings_limit_no_run_and_no_start(bridge: Bridge) -> None:
    """Its limits of time are never retried, and a child that is killed as it starts is started again without end."""
    bridge.native.conf.task_time_limit = bridge.native.conf.task_soft_time_limit = 1
    bridge.task(name="note")(lambda: None)
    task = bridge.native.tasks["note"]
    assert (task.time_limit, task.soft_time_limit) == (0, 0)
    assert bridge.native.conf.worker_proc_alive_timeout >= 86_400


def test_what_cannot_be_read_is_buried_as_it_came(bridge: Bridge) -> None:
    ran = threading.Event()

    @bridge.task(name="good")
    def good() -> None:
        ran.set()

    wire: Any = bridge.wire
    for raw in (b"}{", b'{"hello": 1}', b"\xff"):
        wire.put(wire.places("default")[0], 1, raw)
    good.send()
    with bridge.embedded_worker(threads=1):
        assert ran.wait(60)
        until(lambda: bridge.counts().dead == 3, "3 dead letters")
    assert {letter.raw for letter in bridge.dead_letters()} == {b"}{", b'{"hello": 1}', b"\xff"}
    assert {letter.reason for letter in bridge.dead_letters()} == {"undecodable"}


def test_a_plain_call_of_a_celery_task_is_a_plain_call(bridge: Bridge) -> None:
    bridge.task(name="add")(lambda x, y: x + y)
    assert bridge.native.tasks["add"](1, 2) == 3
    assert bridge.counts().waiting["default"] == 0
