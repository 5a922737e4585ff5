"""The Dramatiq engine, embedded: taskbridge's rules for its tasks, Dramatiq's own for the user's actors."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import CurrentMessage, Middleware, Retries, SkipMessage, TimeLimit, TimeLimitExceeded
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from taskbridge import Bridge, DeclarationError, Discard, Event, RetryPolicy, TaskBridgeError, current
from taskbridge.contract.harness import STOP_S
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.engines.base import WorkerOptions
from taskbridge.engines.dramatiq.deliveries import TaskActor
from taskbridge.message import Message, new_id
from taskbridge.retry import Interrupted

QUEUE = "taskbridge.dramatiq.default"


def make_bridge(**given: Any) -> Bridge:
    policy = RetryPolicy(max_attempts=3, min_delay=0.01, jitter=0)
    options: dict[str, Any] = {"retry": policy, "grace": 5, "queues": ("email",), **given}
    return Bridge("dramatiq+memory://", **options)


def wait_until(condition: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.005)


def idle(bridge: Bridge) -> None:
    """Return when nothing waits, runs or is parked, seen twice."""
    for _ in range(2):
        wait_until(lambda: _held(bridge) == 0, lambda: f"{bridge.counts()}, {_held(bridge)} held")
        time.sleep(0.02)


def _held(bridge: Bridge) -> int:
    """Return how many messages there are; one that goes from a place to the other meanwhile counts at least once."""
    before = bridge.counts().delayed
    unfinished: int = sum(queue.unfinished_tasks for queue in bridge.native.queues.values())
    return max(before, bridge.counts().delayed) + unfinished


@contextmanager
def events(bridge: Bridge, *names: Any) -> Generator[list[Event]]:
    seen: list[Event] = []
    for name in names:
        bridge.on(name)(seen.append)
    yield seen


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = make_bridge()
    yield bridge
    bridge.close()


pipeline: Any = dramatiq.pipeline  # untyped


class TestOutcomes:
    def test_a_task_runs_with_its_arguments_and_is_done(self, bridge: Bridge) -> None:
        ran: list[Any] = []

        @bridge.task
        def add(x: int, *, y: int) -> int:
            ran.append((x, y, current().queue, current().attempt))
            return x + y

        add.send(1, y=2)
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [(1, 2, "default", 1)]

    def test_parameters_may_have_any_name(self, bridge: Bridge) -> None:
        ran: list[Any] = []

        @bridge.task
        def odd(self: int, queue: int, args: int, kwargs: int, message: int) -> None:
            ran.append((self, queue, args, kwargs, message))

        odd.send(self=1, queue=2, args=3, kwargs=4, message=5)
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [(1, 2, 3, 4, 5)]

    def test_a_task_that_fails_runs_again_and_then_is_dead_once(self, bridge: Bridge) -> None:
        starts: list[int] = []

        @bridge.task
        def fails() -> None:
            starts.append(current().attempt)
            raise ValueError("never")

        with events(bridge, "retrying", "dead") as seen:
            fails.send()
            with bridge.embedded_worker():
                idle(bridge)

        assert starts == [1, 2, 3]
        assert [(event.name, event.reason) for event in seen] == [("retrying", "")] * 2 + [("dead", "exhausted")]
        assert [letter.reason for letter in bridge.dead_letters()] == ["exhausted"]
        (native,) = bridge.native.dead_letters  # Dramatiq's dashboards show it too
        assert native.actor_name == fails.name
        assert native.options["retries"] == 2

    def test_system_exit_is_the_tasks_failure_and_the_worker_goes_on(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @bridge.task
        def exits() -> None:
            raise SystemExit(3)

        @bridge.task
        def runs() -> None:
            ran.append(1)

        with bridge.embedded_worker(threads=1):
            exits.send()
            idle(bridge)
            runs.send()
            idle(bridge)

        assert ran == [1]
        assert [letter.reason for letter in bridge.dead_letters()] == ["gave_up"]

    def test_a_discarded_task_leaves_nothing_behind(self, bridge: Bridge) -> None:
        @bridge.task
        def discards() -> None:
            raise Discard("enough")

        with events(bridge, "discarded") as seen:
            discards.send()
            with bridge.embedded_worker():
                idle(bridge)

        assert [event.reason for event in seen] == ["enough"]
        assert bridge.counts().dead == 0
        assert bridge.native.dead_letters == []

    def test_an_async_task_runs(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @bridge.task
        async def runs(x: int) -> None:
            ran.append(x)

        runs.send(7)
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [7]

    def test_middleware_sees_an_attempt_that_runs_again_as_a_retry(self, bridge: Bridge) -> None:
        seen: list[Any] = []

        class Watch(Middleware):
            def after_process_message(
                self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
            ) -> None:
                seen.append((type(exception), message.failed))

            def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
                seen.append((message.options.get("retries"), delay))

        bridge.native.add_middleware(Watch(), before=Retries)

        @bridge.task(retry=RetryPolicy(max_attempts=2, min_delay=0.05, jitter=0))
        def fails() -> None:
            raise ValueError("never")

        fails.send()
        with bridge.embedded_worker():
            idle(bridge)

        assert seen == [(1, 50), (dramatiq.Retry, False), (ValueError, True)]

    def test_middleware_is_told_what_a_task_returned_and_what_it_raised(
        self, bridge: Bridge, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[Any] = []

        class Watch(Middleware):
            def after_process_message(
                self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
            ) -> None:
                cause = None if exception is None else exception.__cause__
                seen.append((result, repr(exception), repr(cause)))

        bridge.native.add_middleware(Watch())

        @bridge.task(retry=RetryPolicy(max_attempts=2, min_delay=0.05, jitter=0))
        def works(value: Any) -> Any:
            if value is None:
                raise ValueError(current().attempt)
            return value

        with bridge.embedded_worker(threads=1):
            works.send({"a": 1})
            idle(bridge)
            works.send(None)
            idle(bridge)

        again = "Retry('next attempt in 0.050 s', 50)"
        ends = [({"a": 1}, "None", "None"), (None, again, "ValueError(1)"), (None, "ValueError(2)", "None")]
        assert seen == ends
        assert "returned a value" not in caplog.text

    def test_joining_raises_what_a_task_or_an_actor_raised(self, bridge: Bridge) -> None:
        @bridge.task(retry=RetryPolicy.never())
        def fails() -> None:
            raise ValueError("of a task")

        @dramatiq.actor(broker=bridge.native, queue_name="own", max_retries=0)
        def acts() -> None:
            raise ValueError("of an actor")

        with bridge.embedded_worker():
            fails.send()
            with pytest.raises(ValueError, match="of a task"):
                bridge.native.join(QUEUE)
            acts.send()
            with pytest.raises(ValueError, match="of an actor"):
                bridge.native.join("own")

    def test_no_log_shows_arguments(self, bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
        @bridge.task
        def fails(password: str) -> None:
            raise ValueError("never")

        with caplog.at_level(logging.DEBUG):
            fails.send("s3cret")
            fails.send(password="s3cret")
            with bridge.embedded_worker():
                idle(bridge)

        assert fails.name in caplog.text
        assert "s3cret" not in caplog.text

    def test_an_error_that_hinders_an_outcome_from_being_shown_is_logged(
        self, bridge: Bridge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def raise_odd(*given: Any) -> bool:
            raise TypeError("nobody thought of it")

        @bridge.task
        def returns() -> int:
            return 1

        monkeypatch.setattr(TaskActor, "_would_warn", raise_odd)
        with bridge.embedded_worker():
            returns.send()
            idle(bridge)

        assert "nobody thought of it" in caplog.text


class TestPlainClients:
    def test_a_message_from_dramatiq_itself_runs_under_taskbridges_rules(self, bridge: Bridge) -> None:
        starts: list[Any] = []

        @bridge.task(queue="email")
        def fails(x: Any) -> None:
            starts.append((x, current().id, current().attempt, current().queue, current().priority))
            raise ValueError("never")

        sent = bridge.native.get_actor(fails.name).send_with_options(args=({"$": 1},), max_retries=0)
        with bridge.embedded_worker():
            idle(bridge)

        assert starts == [({"$": 1}, sent.message_id, attempt, "email", "normal") for attempt in (1, 2, 3)]

    def test_a_delayed_one_is_parked_and_not_held_in_memory(self, bridge: Bridge) -> None:
        ran: list[float] = []

        @bridge.task
        def runs() -> None:
            ran.append(time.time())

        with bridge.embedded_worker():
            sent_at = time.time()
            bridge.native.get_actor(runs.name).send_with_options(delay=600)
            wait_until(lambda: bridge.counts().delayed == 1)
            idle(bridge)

        (ran_at,) = ran
        assert 0.599 <= ran_at - sent_at < 30  # Dramatiq counts from the whole millisecond

    def test_one_on_a_queue_that_is_not_its_own_runs_all_the_same(self, bridge: Bridge) -> None:
        """Dramatiq's worker thread dies of a message whose `queue_name` isn't the queue it came from."""
        ran: list[int] = []

        @bridge.task
        def runs(x: int) -> None:
            ran.append(x)

        message = bridge.native.get_actor(runs.name).message(1)
        bridge.native.queues[QUEUE].put(message.copy(queue_name="elsewhere").encode())
        with bridge.embedded_worker(threads=1):
            idle(bridge)
            runs.send(2)
            idle(bridge)

        assert ran == [1, 2]

    def test_a_pipeline_goes_on_with_the_result_after_a_retry(self, bridge: Bridge) -> None:
        ran: list[Any] = []

        @bridge.task
        def flaky(x: int) -> int:
            ran.append(("flaky", current().attempt))
            if current().attempt < 2:
                raise ValueError("not yet")
            return x + 1

        @bridge.task
        def last(result: int) -> None:
            ran.append(("last", result))

        first, second = (bridge.native.get_actor(task.name) for task in (flaky, last))
        pipeline([first.message(1), second.message()], broker=bridge.native).run()
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [("flaky", 1), ("flaky", 2), ("last", 2)]

    def test_a_discarded_step_ends_a_pipeline(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @bridge.task
        def discards() -> None:
            raise Discard("enough")

        @bridge.task
        def last() -> None:
            ran.append(1)

        first, second = (bridge.native.get_actor(task.name) for task in (discards, last))
        pipeline([first.message(), second.message_with_options(pipe_ignore=True)], broker=bridge.native).run()
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == []

    def test_results_are_stored_if_the_user_wants_them(self, bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
        backend = StubBackend()
        results: Any = Results  # untyped
        bridge.native.add_middleware(results(backend=backend))

        @bridge.task
        def adds(x: int) -> int:
            return x + 1

        actor = bridge.native.get_actor(adds.name)
        stored = actor.send_with_options(args=(1,), store_results=True)
        adds.send(1)
        with bridge.embedded_worker():
            idle(bridge)

        assert stored.get_result(backend=backend) == 2
        assert "discarded" not in caplog.text


class TestMessagesThatCanNotRun:
    def test_an_unknown_task_waits_until_it_is_known(self, bridge: Bridge) -> None:
        ran: list[int] = []
        fields: dict[str, Any] = {"queue": "default", "args_json": "[]", "kwargs_json": "{}"}
        unknown = Message(id=new_id(), task="shop.later", enqueued_at=time.time(), **fields)
        with bridge.embedded_worker():
            bridge.broker.publish([unknown], timeout_s=1)
            wait_until(lambda: bridge.counts().delayed == 1)

            @bridge.task(name="shop.later")
            def later() -> None:
                ran.append(current().attempt)

            idle(bridge)

        assert ran == [1]

    def test_an_unknown_task_is_dead_after_its_grace(self) -> None:
        bridge = make_bridge(unknown_task_grace=0.1)
        fields: dict[str, Any] = {"queue": "default", "args_json": "[]", "kwargs_json": "{}"}
        unknown = Message(id="7", task="shop.never", enqueued_at=time.time(), **fields)
        with events(bridge, "dead") as seen, bridge.embedded_worker():
            bridge.broker.publish([unknown], timeout_s=1)
            wait_until(lambda: seen)
            idle(bridge)

        assert [(letter.id, letter.reason) for letter in bridge.dead_letters()] == [("7", "unknown_task")]

    def test_a_newer_form_waits_as_it_is_and_is_dead_after_the_grace(self) -> None:
        bridge = make_bridge(unknown_task_grace=3)

        @bridge.task
        def runs() -> None:
            raise AssertionError("it must not run")

        body = bridge.native.get_actor(runs.name).message_with_options(taskbridge='{"form":99}', tomorrow=1).encode()
        with bridge.embedded_worker():
            bridge.native.queues[QUEUE].put(body)
            wait_until(lambda: bridge.native.queues[f"{QUEUE}.DQ"].unfinished_tasks)
            assert bridge.counts().dead == 0
            wait_until(lambda: bridge.counts().dead)
            idle(bridge)

        (letter,) = bridge.dead_letters()
        assert letter.reason == "unknown_task"
        assert letter.raw is not None
        options = json.loads(letter.raw)["options"]
        assert (options["taskbridge"], options["tomorrow"]) == ('{"form":99}', 1)

    @pytest.mark.parametrize("body", [b"\x80\x04.", b"{}", b'{"queue_name":1}'])
    def test_bytes_that_can_not_be_read_are_dead_as_they_came(self, bridge: Bridge, body: bytes) -> None:
        ran: list[int] = []

        @bridge.task
        def runs() -> None:
            ran.append(1)

        bridge.native.queues[QUEUE].put(body)
        runs.send()
        with bridge.embedded_worker(threads=1):
            idle(bridge)

        assert ran == [1]
        assert [(letter.reason, letter.raw) for letter in bridge.dead_letters()] == [("undecodable", body)]

    def test_a_message_with_an_unreadable_option_is_dead(self, bridge: Bridge) -> None:
        @bridge.task
        def runs() -> None:
            raise AssertionError("it must not run")

        bridge.native.get_actor(runs.name).send_with_options(taskbridge="{")
        with bridge.embedded_worker():
            idle(bridge)

        assert [letter.reason for letter in bridge.dead_letters()] == ["undecodable"]

    def test_what_taskbridge_reads_is_json_whatever_encoder_is_set(
        self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[int] = []
        monkeypatch.setattr("dramatiq.message.global_encoder", dramatiq.PickleEncoder())

        @bridge.task
        def runs() -> None:
            ran.append(1)

        runs.send()
        bridge.native.get_actor(runs.name).send()  # pickled
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [1]
        assert [letter.reason for letter in bridge.dead_letters()] == ["undecodable"]


class TestOrdinaryActors:
    def test_one_is_retried_by_dramatiq(self, bridge: Bridge) -> None:
        starts: list[int] = []

        @dramatiq.actor(broker=bridge.native, max_retries=1, min_backoff=1, max_backoff=1)
        def fails() -> None:
            starts.append(1)
            raise ValueError("never")

        fails.send()
        with bridge.embedded_worker():
            wait_until(lambda: bridge.native.dead_letters)

        assert len(starts) == 2
        assert bridge.counts().dead == 0

    def test_dramatiqs_own_limits_hold_for_it_and_not_for_tasks(self, bridge: Bridge) -> None:
        (limit,) = (found for found in bridge.native.middleware if isinstance(found, TimeLimit))
        manager: Any = limit.manager
        limit.time_limit, manager.interval = 500, 0.01
        ended: list[str] = []

        def lasts(name: str, seconds: float) -> None:
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(0.01)
                ended.append(name)
            except TimeLimitExceeded:
                ended.append(f"{name} was interrupted")

        @dramatiq.actor(broker=bridge.native, max_retries=0)
        def actor() -> None:
            lasts("actor", 60)

        @bridge.task
        def task() -> None:
            lasts("task", 1)

        actor.send()
        task.send()
        with bridge.embedded_worker():
            wait_until(lambda: len(ended) == 2)
            idle(bridge)

        assert sorted(ended) == ["actor was interrupted", "task"]

    def test_one_that_is_too_old_is_skipped(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @dramatiq.actor(broker=bridge.native, max_age=1)
        def runs() -> None:
            ran.append(1)

        runs.send()
        time.sleep(0.02)
        with bridge.embedded_worker():
            wait_until(lambda: bridge.native.dead_letters)

        assert ran == []

    def test_an_unknown_one_is_dead_at_once_on_a_queue_of_the_users_own(self, bridge: Bridge) -> None:
        bridge.native.declare_queue("mine")
        bridge.native.enqueue(dramatiq.Message(queue_name="mine", actor_name="no", args=(), kwargs={}, options={}))
        with bridge.embedded_worker():
            wait_until(lambda: bridge.native.dead_letters)

        assert bridge.counts().dead == 0

    def test_stub_brokers_join_works(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @dramatiq.actor(broker=bridge.native)
        def runs() -> None:
            ran.append(1)

        with bridge.embedded_worker():
            runs.send_with_options(delay=50)
            bridge.native.join(runs.queue_name, timeout=60_000)

        assert ran == [1]

    def test_a_queue_that_is_declared_while_a_worker_runs_is_consumed(
        self, bridge: Bridge, caplog: pytest.LogCaptureFixture
    ) -> None:
        with bridge.embedded_worker():
            for number in range(20):
                bridge.native.declare_queue(f"own{number}")
            time.sleep(0.05)

        own = [record for record in caplog.records if record.name.startswith(("dramatiq", "taskbridge.dramatiq"))]
        assert not [record for record in own if record.levelno >= logging.ERROR]

    def test_what_waits_can_be_looked_at_as_on_a_stub_broker(self, bridge: Bridge) -> None:
        @dramatiq.actor(broker=bridge.native, queue_name="own")
        def ordinary(x: int) -> None: ...

        sent = ordinary.send(1)

        assert dramatiq.Message.decode(bridge.native.queues["own"].get(timeout=1)) == sent
        ordinary.send(2)
        bridge.native.flush_all()
        assert bridge.native.queues["own"].qsize() == 0


class TestActors:
    def test_a_task_is_an_ordinary_actor_under_its_own_name_on_its_queue(self, bridge: Bridge) -> None:
        @bridge.task(queue="vip")
        def add(x: int) -> int:
            return x + 1

        actor = bridge.native.get_actor(add.name)

        assert isinstance(actor, dramatiq.Actor)
        assert (actor.actor_name, actor.queue_name) == (add.name, "taskbridge.dramatiq.vip")
        assert actor(1) == 2

    def test_every_known_queue_is_declared(self) -> None:
        bridge = make_bridge(queues=("a", "b"), routes=(("x.*", "c"),))

        @bridge.task(queue="d")
        def runs() -> None: ...

        assert bridge.native.get_declared_queues() >= {f"taskbridge.dramatiq.{name}" for name in ("default", *"abcd")}

    def test_the_global_broker_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dramatiq.broker.global_broker", None)
        bridge = make_bridge()

        assert bridge.native is not None
        assert dramatiq.broker.global_broker is None

    def test_an_unknown_actor_is_not_found(self, bridge: Bridge) -> None:
        with pytest.raises(ActorNotFound):
            bridge.native.get_actor("no")

    def test_not_in_a_task_either_and_nothing_can_be_sent_to_it(self, bridge: Bridge) -> None:
        raised: list[bool] = []

        @bridge.task
        def sends() -> None:
            with pytest.raises(ActorNotFound):
                bridge.native.get_actor("no").send()
            raised.append(True)

        sends.send()
        with bridge.embedded_worker():
            idle(bridge)

        assert raised == [True]

    def test_a_task_can_not_have_the_name_of_an_actor(self, bridge: Bridge) -> None:
        @dramatiq.actor(broker=bridge.native, actor_name="taken")
        def actor() -> None: ...

        with pytest.raises(DeclarationError, match="'taken'"):

            @bridge.task(name="taken")
            def task() -> None: ...

        assert bridge.native.get_actor("taken") is actor

    def test_a_module_may_be_imported_twice(self, bridge: Bridge) -> None:
        def module() -> Any:
            @bridge.task(name="twice")
            def task() -> int:
                return 1

            return task

        _ = bridge.native
        module()
        module()

        assert bridge.native.get_actor("twice")() == 1

    def test_a_task_may_call_its_own_actor_as_a_function(self, bridge: Bridge) -> None:
        ran: list[int] = []

        @bridge.task
        def counts_down(n: int) -> None:
            ran.append(n)
            if n > 0:
                bridge.native.get_actor(counts_down.name)(n - 1)

        counts_down.send(2)
        with bridge.embedded_worker():
            idle(bridge)

        assert ran == [2, 1, 0]

    def test_the_current_message_is_dramatiqs(self, bridge: Bridge) -> None:
        seen: list[Any] = []

        @bridge.task
        def looks() -> None:
            message = CurrentMessage.get_current_message()
            seen.append(message and (message.actor_name, message.message_id))

        handle = looks.send()
        with bridge.embedded_worker():
            idle(bridge)

        assert seen == [(looks.name, handle.id)]

    def test_middleware_may_skip_a_message(self, bridge: Bridge) -> None:
        class Skip(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise SkipMessage("not today")

        @bridge.task
        def runs() -> None:
            raise AssertionError("it must not run")

        bridge.native.add_middleware(Skip())
        runs.send()
        with bridge.embedded_worker():
            idle(bridge)

        assert bridge.counts().dead == 0


class TestWorkers:
    def test_higher_priorities_go_first(self, bridge: Bridge) -> None:
        ran: list[str] = []

        @bridge.task
        def runs(n: int) -> None:
            ran.append(f"{current().priority} {n}")

        for n in (1, 2):
            for priority in ("low", "normal", "high", "critical"):
                runs.using(priority=priority).send(n)
        bridge.native.get_actor(runs.name).send(3)
        with bridge.embedded_worker(threads=1):
            idle(bridge)

        ranks = ("critical", "high", "normal", "low")
        expected = [f"{rank} {n}" for rank in ranks for n in (1, 2)]
        expected.insert(6, "normal 3")
        assert ran == expected

    def test_a_busy_worker_takes_nothing_from_any_queue(self, bridge: Bridge) -> None:
        go = threading.Event()

        @bridge.task
        def blocks() -> None:
            go.wait(60)

        @bridge.task(queue="email")
        def waits() -> None: ...

        with bridge.embedded_worker(threads=2):
            blocks.send()
            blocks.send()
            wait_until(lambda: bridge.counts().waiting["default"] == 0)
            waits.send()
            blocks.send()
            time.sleep(0.5)
            waiting = dict(bridge.counts().waiting)
            go.set()
            idle(bridge)

        assert waiting == {"default": 1, "email": 1}

    def test_it_consumes_the_queues_it_was_started_for(self, bridge: Bridge) -> None:
        ran: list[str] = []

        @bridge.task
        def runs() -> None:
            ran.append(current().queue)

        runs.using(queue="email").send()
        runs.send()
        with bridge.embedded_worker(queues=["email"]):
            wait_until(lambda: ran)
            time.sleep(0.2)

        assert ran == ["email"]
        assert bridge.counts().waiting == {"default": 1, "email": 0}

    def test_workers_may_come_and_go_but_one_at_a_time(self, bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[int] = []

        @bridge.task
        def runs(n: int) -> None:
            ran.append(n)

        for n in range(3):
            with bridge.embedded_worker(threads=1):
                with pytest.raises(TaskBridgeError, match="already"), bridge.embedded_worker():
                    raise AssertionError("a second worker")
                runs.send(n)
                idle(bridge)

        assert ran == [0, 1, 2]
        assert "twice" not in caplog.text

    def test_the_hooks_of_a_worker_are_called_in_the_thread_that_starts_it(self, bridge: Bridge) -> None:
        seen: list[Any] = []
        for name in ("worker_started", "worker_stopping"):
            bridge.on(name)(lambda event: seen.append((event.name, threading.current_thread())))

        with bridge.embedded_worker():
            assert [name for name, _ in seen] == ["worker_started"]

        here = threading.current_thread()
        assert seen == [("worker_started", here), ("worker_stopping", here)]

    def test_a_worker_that_stops_lets_tasks_end_in_the_grace(self, bridge: Bridge) -> None:
        ended: list[int] = []
        started = threading.Event()

        @bridge.task
        def lasts() -> None:
            started.set()
            time.sleep(0.5)
            ended.append(1)

        with bridge.embedded_worker():
            lasts.send()
            assert started.wait(60)

        assert ended == [1]

    def test_after_the_grace_what_runs_goes_back_with_its_attempt(self) -> None:
        bridge = make_bridge(grace=0.2)
        attempts: list[int] = []
        go = threading.Event()

        @bridge.task
        def is_interrupted() -> None:
            attempts.append(current().attempt)
            while not go.is_set():
                time.sleep(0.01)

        with events(bridge, "retrying", "dead", "discarded") as seen:
            with ExitStack() as stack:
                stack.enter_context(bridge.embedded_worker())
                is_interrupted.send()
                wait_until(lambda: attempts)
                with Stopwatch() as watch:
                    stack.close()
            assert bridge.counts().waiting["default"] == 1
            go.set()
            with bridge.embedded_worker():
                idle(bridge)

        assert attempts == [1, 1]
        assert seen == []
        assert watch.took_s < bridge.settings.grace_s + STOP_S

    def test_a_task_that_can_not_be_interrupted_is_left_behind(self) -> None:
        bridge = make_bridge(grace=0.2)
        attempts: list[int] = []
        go = threading.Event()

        @bridge.task
        def is_deaf() -> None:
            attempts.append(current().attempt)
            while not go.is_set():
                try:
                    time.sleep(0.01)
                except Interrupted:
                    continue
            raise ValueError("nobody hears it")

        with events(bridge, "retrying") as seen:
            with ExitStack() as stack:
                stack.enter_context(bridge.embedded_worker())
                is_deaf.send()
                wait_until(lambda: attempts)
                with Stopwatch() as watch:
                    stack.close()
            assert watch.took_s < bridge.settings.grace_s + STOP_S
            assert bridge.counts().waiting["default"] == 1
            go.set()
            with bridge.embedded_worker():
                wait_until(lambda: len(seen) == 2)
                idle(bridge)

        assert attempts == [1, 1, 2, 3], "what the abandoned run raised does not count"

    def test_nothing_waits_for_the_rest_of_the_grace(self) -> None:
        bridge = make_bridge(grace=600)
        others = set(threading.enumerate())
        with bridge.embedded_worker():
            pass

        wait_until(lambda: "taskbridge-grace" not in {each.name for each in {*threading.enumerate()} - others})
        bridge.close()

    def test_what_a_run_does_is_ignored_that_is_lost_with_its_process(self, bridge: Bridge) -> None:
        began, go = threading.Event(), threading.Event()
        engine: Any = bridge.engine

        @bridge.task
        def is_stuck() -> None:
            began.set()
            go.wait(60)

        with events(bridge, "succeeded") as seen, bridge.embedded_worker(threads=1):
            is_stuck.send()
            assert began.wait(60)
            assert engine._life.abandon(engine._life.runs.all()) == []
            go.set()
            wait_until(lambda: not engine._life.runs.all())

        assert seen == []
        assert bridge.counts().waiting["default"] == 1

    def test_a_worker_is_a_command_line_of_dramatiqs_own_for_each_process(self, bridge: Bridge) -> None:
        options = WorkerOptions(app="shop:bridge", queues=("email",), processes=2, threads=3, log_level="debug")

        commands = bridge.engine.worker_commands(options)

        assert len(commands) == 2
        for command in commands:
            assert command.argv[1:4] == (
                "-m",
                "taskbridge.engines.dramatiq.command",
                "taskbridge.engines.dramatiq.main:broker",
            )
            assert " ".join(command.argv[4:]) == (
                "--processes 1 --threads 3 --worker-shutdown-timeout 1000 --queues taskbridge.dramatiq.email --verbose"
            )
            assert command.env["TASKBRIDGE_APP"] == "shop:bridge"


class TestBoot:
    def test_a_worker_in_an_applications_tests_leaves_their_process_alone(self, bridge: Bridge) -> None:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
        bridge.native.emit_after("process_boot")  # as Dramatiq's guide has it, for its own middleware
        worker = dramatiq.Worker(bridge.native, worker_threads=1)
        worker.start()
        try:
            assert bridge.native.booted.is_set()
            assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers
        finally:
            worker.stop()

    def test_a_worker_process_takes_messages_once_its_main_process_knows_of_it(
        self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
        bridge.native.emit_after("process_boot")  # as dramatiq/cli.py does it, in the main thread
        worker = dramatiq.Worker(bridge.native, worker_threads=1)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            worker.start()
            assert not bridge.native.booted.is_set(), "the main process is told after this"
            assert bridge.native.booted.wait(60)
            assert worker.queue_prefetch == 1, "no more than its threads, also where it was started by hand"
            assert worker.worker_timeout == 250
        finally:
            bridge.native.middleware[:] = [
                each for each in bridge.native.middleware if getattr(each, "worker", None) is not worker
            ]
            for number, handler in before.items():
                signal.signal(number, handler)
            worker.stop()
