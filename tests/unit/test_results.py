"""Handles, status and results, where they need no server: on `inline://` and in memory."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskbridge import (
    Bridge,
    Discard,
    Handle,
    NoSuchRecord,
    ResultInTask,
    ResultTimeout,
    RetryPolicy,
    Status,
    StoreUnavailable,
    TaskBridgeError,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    UnsupportedError,
    current,
    parts,
    results,
)
from taskbridge.results import shown

Fails = pytest.MonkeyPatch


def forget_tasks(bridge: Bridge) -> None:
    """Leave a bridge with no tasks."""
    bridge._tasks = {}
    bridge._forget()


@pytest.fixture
def driven() -> Iterator[Bridge]:
    """A bridge on which nothing runs unless someone asks for it."""
    bridge = Bridge("inline://?threads=0")
    yield bridge
    bridge.close()


class TestHandles:
    def test_handles_of_the_same_message_are_equal(self, driven: Bridge) -> None:
        sent = driven.task(name="add")(lambda a: a).send(1)

        assert sent == driven.handle(sent.id)
        assert len({sent, driven.handle(sent.id)}) == 1
        assert sent != driven.handle("other")

    def test_a_pickled_handle_keeps_its_id_and_says_how_to_go_on(self, driven: Bridge) -> None:
        sent = driven.task(name="add")(lambda a: a).send(1)

        loaded: Handle[Any] = pickle.loads(pickle.dumps(sent))

        assert (loaded, loaded.task, loaded.queue) == (sent, "add", "default")
        with pytest.raises(TaskBridgeError, match=rf"message {sent.id} .* use bridge\.handle\(handle\.id\)"):
            loaded.status()
        assert driven.handle(loaded.id).result() == 1

    @pytest.mark.parametrize("id", ["", "a\0b", "\ud800", "a" * 256])
    def test_of_what_is_no_id_nothing_is_known_and_no_store_is_asked(
        self, driven: Bridge, monkeypatch: Fails, id: str
    ) -> None:
        def ask(*_: Any, **__: Any) -> None:
            raise AssertionError

        handle = driven.handle(id)
        for name in ("get", "cancel", "watch"):
            monkeypatch.setattr(driven.records, name, ask)

        for call in (handle.status, handle.cancel, handle.result, lambda: asyncio.run(handle.aresult())):
            with pytest.raises(NoSuchRecord):
                call()

    def test_whoever_awaits_opens_no_store_on_the_event_loop(self, monkeypatch: Fails) -> None:
        bridge = Bridge("celery+memory://")
        openers = list[str]()
        open_store = parts._open_store

        def note(*args: Any) -> Any:
            openers.append(threading.current_thread().name)
            return open_store(*args)

        monkeypatch.setattr(parts, "_open_store", note)
        handle = bridge.handle("nobody")
        with pytest.raises(NoSuchRecord):
            asyncio.run(handle.aresult())
        bridge.close()

        assert len(openers) == 1
        assert openers[0].startswith("taskbridge-results")

    def test_a_copied_handle_is_the_handle(self, driven: Bridge) -> None:
        sent = driven.task(name="add")(lambda a: a).send(1)

        assert copy.copy(sent) is sent
        assert copy.deepcopy([sent])[0] is sent

    def test_what_a_handle_shows_is_short(self, driven: Bridge) -> None:
        assert repr(driven.handle("some-id")) == "Handle(id='some-id', task='', queue='')"


class TestWhereNothingIsRecorded:
    def test_a_bridge_without_a_store_says_what_would_help(self) -> None:
        bridge = Bridge("celery+amqp://localhost//")
        handle = bridge.handle("some-id")

        for ask in (handle.status, handle.result, handle.cancel):
            with pytest.raises(UnsupportedError, match=r"need a store; set one \(TASKBRIDGE_STORE=redis://"):
                ask()

    def test_an_id_that_nobody_knows_is_an_error(self, driven: Bridge) -> None:
        handle = driven.handle("some-id")

        for ask in (handle.status, handle.result, handle.cancel):
            with pytest.raises(NoSuchRecord, match="nothing is known of a message 'some-id'") as caught:
                ask()
            assert caught.value.id == "some-id"

    def test_a_record_is_forgotten_after_its_time(self) -> None:
        bridge = Bridge("inline://?threads=0", result_ttl=timedelta(minutes=5))
        task = bridge.task(name="add")(lambda: 1)
        handle = task.send()
        assert handle.result() == 1

        task.schedule(timedelta(minutes=4))
        bridge.run_until_idle()
        assert handle.status().state == "done"
        task.schedule(timedelta(minutes=2))
        bridge.run_until_idle()
        with pytest.raises(NoSuchRecord):
            handle.status()

    def test_a_coroutine_that_is_a_task_waits_for_no_result(self, driven: Bridge) -> None:
        first = driven.task(name="add")(lambda: 1).send()
        assert first.result() == 1

        @driven.task(name="asks")
        async def asks(id: str) -> int:
            handle: Handle[int] = driven.handle(id)
            with pytest.raises(ResultInTask, match=r"task 'asks' would wait .* result\(timeout=0\)"):
                await handle.aresult(timedelta(seconds=1))
            return await handle.aresult(0)

        assert asks.send(first.id).result() == 1

    def test_who_waits_lives_through_an_outage_of_the_store(self, driven: Bridge, monkeypatch: Fails) -> None:
        """Looking again now and then must not end a wait that nobody would have woken."""
        bridge: Any = Bridge("celery+memory://")
        handle: Handle[int] = bridge.task(name="add")(lambda: 1).send()
        looks: list[int] = []
        look = bridge.records.get

        def away(*given: Any, **named: Any) -> Any:
            looks.append(1)
            if len(looks) > 1:  # the first look comes before the wait
                raise StoreUnavailable("away")
            return look(*given, **named)

        monkeypatch.setattr(results, "_LOOK_AGAIN_S", (0.01, 0.02))
        monkeypatch.setattr(bridge.records, "get", away)
        waits: list[Callable[[], int]] = [lambda: handle.result(0.5), lambda: asyncio.run(handle.aresult(0.5))]
        for wait in waits:
            looks.clear()
            with pytest.raises(StoreUnavailable):
                wait()
            assert len(looks) > 3
        bridge.close()

    def test_results_must_be_a_truth_value(self, driven: Bridge) -> None:
        with pytest.raises(TaskBridgeError, match="results must be True or False, not 'no'"):
            driven.task(name="add", results="no")(lambda: 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

    def test_a_store_that_is_away_is_named(self, driven: Bridge, monkeypatch: Fails) -> None:
        handle = driven.task(name="add")(lambda: 1).send()

        def away(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("redis://localhost: connection refused")

        for name in ("get", "cancel"):
            monkeypatch.setattr(driven.records, name, away)
        for ask in (handle.status, handle.result, handle.cancel):
            with pytest.raises(StoreUnavailable, match=r"^the store does not answer: redis://localhost: conn"):
                ask()


class TestOnAVirtualClock:
    def test_a_result_runs_what_it_needs(self, driven: Bridge) -> None:
        attempts: list[int] = []

        @driven.task(retry=RetryPolicy(max_attempts=3, min_delay=timedelta(hours=1)))
        def flaky() -> str:
            attempts.append(current().attempt)
            if current().attempt < 3:
                raise ValueError("not yet")
            return "at last"

        handle = flaky.schedule(timedelta(days=1))

        assert handle.status().state == "scheduled"
        assert handle.result(timeout=0) == "at last"  # the clock jumps: no real time passes
        assert attempts == [1, 2, 3]

    def test_it_runs_no_more_than_it_needs(self, driven: Bridge) -> None:
        task = driven.task(name="add")(lambda a: a)
        later, soon = task.schedule(3600, 1), task.send(2)

        assert soon.result() == 2
        assert later.status().state == "scheduled"

    def test_a_task_waits_for_no_other_one(self, driven: Bridge) -> None:
        """Here it could, for this runs what it waits for; where it is deployed, its worker's slots might all wait."""
        inner = driven.task(name="inner")(lambda a: a + 1)
        done = inner.send(1)
        assert done.result() == 2

        @driven.task(name="outer")
        def outer() -> str:
            with pytest.raises(ResultInTask, match="task 'outer' would wait for a result"):
                inner.send(1).result()
            with pytest.raises(ResultTimeout, match="it is queued"):
                inner.send(1).result(0)
            return str(done.result(0))

        assert outer.send().result() == "2"

    def test_what_nothing_can_end_is_a_timeout_at_once(self, driven: Bridge) -> None:
        task = driven.task(name="add")(lambda: 1)
        handle = task.send()
        driven.engine.wire.take(None)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] - lost

        with pytest.raises(ResultTimeout, match=r"no result and nothing is left to run: it is queued") as caught:
            handle.result()
        assert (caught.value.id, caught.value.state) == (handle.id, "queued")

    def test_threads_of_an_embedded_worker_run_it_instead(self, driven: Bridge) -> None:
        ran_in: list[str] = []
        task = driven.task(name="add")(lambda: ran_in.append(threading.current_thread().name))
        with driven.embedded_worker(threads=1):
            task.send().result(timeout=20)

        assert [name for name in ran_in if not name.startswith("taskbridge-inline")] == []


class TestEnds:
    def test_each_end_raises_its_own_error(self, driven: Bridge) -> None:
        def fail() -> None:
            raise KeyError("k")

        def drop() -> None:
            raise Discard("not wanted")

        failed = driven.task(name="fail", retry=RetryPolicy.never())(fail).send()
        dropped = driven.task(name="drop")(drop).send()
        cancelled = driven.task(name="add")(lambda: 1).schedule(60)
        cancelled.cancel()

        with pytest.raises(
            TaskFailed, match=r"task 'fail' \(message .*\) is dead \(exhausted\): KeyError: 'k'"
        ) as dead:
            failed.result()
        assert (dead.value.type, dead.value.message, dead.value.reason) == ("KeyError", "'k'", "exhausted")
        assert 'raise KeyError("k")' in dead.value.traceback
        with pytest.raises(TaskDiscarded, match="was discarded: not wanted"):
            dropped.result()
        with pytest.raises(TaskCancelled, match=rf"message {cancelled.id}\) was cancelled"):
            cancelled.result()

    def test_a_task_that_only_cancels_itself_by_name_is_discarded(self, driven: Bridge) -> None:
        def drop() -> None:
            raise Discard("cancelled")

        handle = driven.task(name="drop")(drop).send()

        with pytest.raises(TaskDiscarded):
            handle.result()
        assert handle.status().state == "discarded"

    def test_a_message_that_no_worker_knows_is_dead_in_the_end(self, driven: Bridge) -> None:
        handle = driven.task(name="gone")(lambda: 1).send()
        forget_tasks(driven)  # a deploy that lost the task

        with pytest.raises(TaskFailed, match=r"is dead \(unknown_task\): no error was raised"):
            handle.result()

    def test_a_hook_has_been_told_before_who_waits(self) -> None:
        bridge = Bridge("inline://")
        told: list[object] = []
        bridge.on("succeeded")(lambda event: told.append(event.result))
        task = bridge.task(name="add")(lambda a: a)

        assert [(task.send(number).result(20), told[-1]) for number in range(50)] == [(n, n) for n in range(50)]
        bridge.close()


class TestAwaiting:
    def test_one_that_is_given_up_leaves_nothing_behind(self) -> None:
        bridge = Bridge("inline://", namespace="waits")
        begun, gate = threading.Event(), threading.Event()

        @bridge.task(name="hold")
        def hold() -> bool:
            begun.set()
            return gate.wait(60)

        handle = hold.send()
        assert begun.wait(20)

        async def wait() -> None:
            waiting = asyncio.create_task(handle.aresult())
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(ResultTimeout, match="it is running"):
                await handle.aresult(0.05)

        asyncio.run(wait())
        watches: Any = bridge.store
        assert watches.backend._watches.keys() == ()
        gate.set()
        assert asyncio.run(handle.aresult(20)) is True
        bridge.close()

    def test_status_and_cancelling_can_be_awaited(self, driven: Bridge) -> None:
        handle = driven.task(name="add")(lambda: 1).schedule(60)

        async def ask() -> list[str]:
            return [(await handle.astatus()).state, (await handle.acancel()).state]

        assert asyncio.run(ask()) == ["scheduled", "cancelled"]


class TestReplays:
    @pytest.mark.parametrize("declared", [True, False])
    def test_what_was_recorded_is_recorded_again(self, driven: Bridge, declared: bool) -> None:
        def fail() -> None:
            raise ValueError("no")

        handle = driven.task(name="fail", retry=RetryPolicy.never())(fail).send()
        driven.run_until_idle()
        if not declared:
            forget_tasks(driven)  # the command line without --app
        driven.dead.replay(handle.id)

        assert driven.handle(handle.id).status().state == "queued"

    def test_what_was_not_recorded_is_not_now(self, driven: Bridge) -> None:
        def fail() -> None:
            raise ValueError("no")

        handle = driven.task(name="fail", results=False, retry=RetryPolicy.never())(fail).send()
        driven.run_until_idle()
        forget_tasks(driven)  # the command line without --app
        driven.dead.replay(handle.id)

        with pytest.raises(NoSuchRecord):
            driven.handle(handle.id).status()


class TestCancelling:
    def test_nothing_that_is_cancelled_starts(self, driven: Bridge) -> None:
        started: list[int] = []
        reasons: list[str] = []
        driven.on("discarded")(lambda event: reasons.append(event.reason))
        task = driven.task(name="add")(started.append)
        handles = [task.send(1), task.schedule(60, 2), task.send(3)]

        assert [handle.cancel().state for handle in handles[:2]] == ["cancelled", "cancelled"]
        driven.run_until_idle()

        assert started == [3]
        assert reasons == ["cancelled", "cancelled"]
        assert [handle.cancel().state for handle in handles] == ["cancelled", "cancelled", "done"]

    def test_a_replay_is_not_cancelled_with_what_it_replays(self, driven: Bridge) -> None:
        starts: list[bool] = []

        @driven.task(retry=RetryPolicy.never())
        def cancelled_as_it_runs() -> None:
            if not starts:
                driven.handle(current().id).cancel()
            starts.append(current().cancelled)
            raise ValueError("x")

        handle = cancelled_as_it_runs.send()
        driven.run_until_idle()
        assert (handle.status().state, handle.status().cancel_asked) == ("dead", True)
        driven.dead.replay(handle.id)
        assert (handle.status().state, handle.status().cancel_asked) == ("queued", False)
        driven.run_until_idle()

        assert starts == [True, False]
        assert (handle.status().state, handle.status().replays) == ("dead", 1)

    def test_nothing_is_cancelled_where_no_message_runs_one(self, driven: Bridge) -> None:
        seen: list[bool] = []
        driven.task(name="look", results=False)(lambda: seen.append(current().cancelled)).send()
        driven.run_until_idle()

        assert seen == [False]


def test_what_was_scheduled_and_is_due_is_shown_as_queued() -> None:
    sent_at, due_at = (datetime.fromtimestamp(second, timezone.utc) for second in (100, 160))
    record = Status(id="i", task="t", queue="q", state="scheduled", enqueued_at=sent_at, due_at=due_at)

    early, late = shown(record, 159.0), shown(record, 160.0)

    assert (early.state, early.due_at) == ("scheduled", due_at)
    assert (late.state, late.due_at) == ("queued", None)


def test_a_failure_without_an_error_is_a_failure() -> None:
    error = TaskFailed(id="i", task="t", reason="unknown_task", type="", message="", traceback="")

    assert str(error) == "task 't' (message i) is dead (unknown_task): no error was raised"
