"""Django's tasks on the default bridge, in this process: `inline://?threads=0`, whose clock `run_until_idle` moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pytest
from django.core import checks
from django.dispatch import Signal
from django.test import modify_settings, override_settings
from django.utils.timezone import now

from taskbridge import RetryPolicy
from taskbridge.bridge import default_bridge
from taskbridge.django.backend import TaskBackend
from taskbridge.django.compat import (
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    TaskResultStatus,
    signals,
    task_backends,
)
from taskbridge.message import Message
from taskbridge.stores.transitions import new
from tests.django.site.reports import tasks as reports

BACKEND: Final = "taskbridge.django.TaskBackend"
NAME: Final = "tests.django.site.reports.tasks"
READY, SUCCESSFUL, FAILED = map(TaskResultStatus, ("READY", "SUCCESSFUL", "FAILED"))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A namespace in memory of the test's own."""
    with default_bridge().temporarily():
        yield


class Heard(list[tuple[str, str, str, int, type]]):
    """What was sent by Django's three signals: which, of which task, its status and attempts, and the sender."""

    def __init__(self) -> None:
        super().__init__()
        self.connected: list[tuple[Signal, Any]] = []

    def connect(self, name: str) -> None:
        def receiver(sender: type, task_result: Any, **_: Any) -> None:
            self.append((name, task_result.task.name, task_result.status, task_result.attempts, sender))

        signal: Signal = getattr(signals, f"task_{name}")
        signal.connect(receiver)
        self.connected.append((signal, receiver))


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    for name in ("enqueued", "started", "finished"):
        found.connect(name)
    yield found
    for signal, receiver in found.connected:
        signal.disconnect(receiver)


def run() -> None:
    default_bridge().run_until_idle()


def last_message() -> Message:
    """Return the message that waits, as the broker holds it."""
    found: Message | None = default_bridge().engine.native.wire.take(None)
    assert found is not None
    return found


# Sending


def test_a_result_is_ready_until_it_is_run_and_any_process_gets_it() -> None:
    result = reports.total.enqueue([1, 2], discount=1)

    assert (result.status, result.args, result.kwargs, result.attempts) == (READY, [[1, 2]], {"discount": 1}, 0)
    assert reports.total.get_result(result.id) == result
    run()
    result.refresh()
    assert (result.status, result.return_value, result.attempts, result.errors) == (SUCCESSFUL, {"total": 2}, 1, [])
    times: list[Any] = [result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at]
    assert times == sorted(times)
    assert times[1] == times[2]
    assert (result.args, result.kwargs) == ([[1, 2]], {"discount": 1})


def test_a_coroutine_function_is_sent_and_run() -> None:
    result: Any = asyncio.run(reports.mail.aenqueue("me"))

    run()
    asyncio.run(result.arefresh())
    assert result.return_value == "to me"


def test_what_using_says_comes_back_with_the_result() -> None:
    when = datetime.now(timezone.utc) + timedelta(hours=1)
    sent = reports.total.using(priority=-5, queue_name="bulk", run_after=when, backend="reserve")

    result = sent.enqueue([1])

    assert result.backend == "reserve"
    assert sent.get_result(result.id) == result
    assert sent.get_result(result.id).task == sent


@pytest.mark.parametrize(
    ("priority", "level"),
    [(-100, "low"), (-1, "low"), (0, "normal"), (1, "high"), (49, "high"), (50, "critical"), (100, "critical")],
)
def test_a_priority_is_one_of_four_levels(priority: int, level: str) -> None:
    reports.mail.using(priority=priority).enqueue("me")

    assert last_message().priority == level


def test_higher_priorities_run_first(heard: Heard) -> None:
    for priority in (-10, 0, 10, 90):
        reports.total.using(priority=priority).enqueue([priority])
    ids: list[Any] = []

    def receiver(task_result: Any, **_: Any) -> None:
        ids.append(task_result.task.priority)

    signals.task_started.connect(receiver)
    try:
        run()
    finally:
        signals.task_started.disconnect(receiver)
    assert ids == [90, 10, 0, -10]


def test_a_queue_is_the_declared_one_or_the_one_that_using_names() -> None:
    for sent, queue in (
        (reports.mail, "mail"),
        (reports.mail.using(queue_name="bulk"), "bulk"),
        (reports.mail.using(queue_name="default"), "default"),
        (reports.fails, "default"),
    ):
        sent.enqueue("me")
        assert last_message().queue == queue


def test_the_queue_default_is_the_default_queue_of_the_bridge_and_routes_count() -> None:
    with default_bridge().temporarily(default_queue="main", routes=[(f"{NAME}.mail", "bulk")], queues=["bulk"]):
        reports.total.enqueue([1])
        assert last_message().queue == "main"
        reports.mail.enqueue("me")
        assert last_message().queue == "bulk"
        reports.mail.using(queue_name="default").enqueue("me")
        assert last_message().queue == "main"


def test_a_queue_that_the_bridge_does_not_know_is_refused() -> None:
    unknown = reports.total.using(queue_name="nowhere", backend="reserve")

    with pytest.raises(InvalidTask, match=r"'nowhere' is not known: add it to TASKBRIDGE\['QUEUES'\]"):
        unknown.enqueue([1])


def test_run_after_is_kept(heard: Heard) -> None:
    when = datetime.now(timezone.utc) + timedelta(days=2)
    result = reports.total.using(run_after=when).enqueue([1])

    assert default_bridge().handle(result.id).status().state == "scheduled"
    run()
    result.refresh()
    assert result.started_at is not None
    assert result.started_at >= when


def test_a_naive_run_after_is_local_time_where_django_uses_no_zones() -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        when = now() + timedelta(days=1)
        result = reports.total.using(run_after=when).enqueue([1])
        assert reports.total.get_result(result.id) == result
        run()
        result.refresh()
        assert result.started_at is not None
        assert when <= result.started_at <= when + timedelta(hours=1)


@pytest.mark.parametrize("argument", [object(), datetime(2026, 1, 1), {1, 2}])
def test_an_argument_that_is_not_json_is_refused(argument: object) -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        reports.total.enqueue(argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - that is it


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"total\(prices, \*, discount"):
        reports.total.enqueue([1], 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue] - that is it


def test_with_at_send_the_result_says_what_became_of_it() -> None:
    with default_bridge().temporarily(url="inline://?at_send=1"):
        assert reports.total.enqueue([1]).return_value == {"total": 1}
        assert reports.fails.enqueue("so").status == FAILED


def test_a_task_sent_by_its_name_has_a_result() -> None:
    handle = default_bridge().send(f"{NAME}.total", [4])

    run()
    result = reports.total.get_result(handle.id)
    assert (result.return_value, result.args, result.backend) == ({"total": 4}, [[4]], "default")


# Running


def test_an_attempt_that_is_retried_has_not_finished(heard: Heard) -> None:
    result = reports.twice.enqueue("hm")

    run()

    assert heard == [
        ("enqueued", "twice", READY, 0, TaskBackend),
        ("started", "twice", "RUNNING", 1, TaskBackend),
        ("started", "twice", "RUNNING", 2, TaskBackend),
        ("finished", "twice", SUCCESSFUL, 2, TaskBackend),
    ]
    result.refresh()
    assert result.return_value == [2, result.id, ["hm"], ["builtins.LookupError"]]
    assert result.attempts == 2
    assert [(each.exception_class, each.traceback) for each in result.errors] == [(LookupError, "LookupError: hm\n")]


def test_between_two_attempts_a_result_is_ready_again() -> None:
    result = reports.twice.enqueue("hm")

    default_bridge().run_schedules(0)
    result.refresh()
    assert (result.status, result.attempts, result.is_finished) == (READY, 1, False)


def test_a_failure_is_a_dead_letter_with_the_traceback(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    result = reports.fails.enqueue("so")

    run()
    result.refresh()

    (error,) = result.errors
    assert (result.status, error.exception_class) == (FAILED, ValueError)
    assert error.traceback.endswith("ValueError: so\n")
    assert "in fails" in error.traceback
    assert [letter.id for letter in default_bridge().dead_letters()] == [result.id]
    assert heard[-1] == ("finished", "fails", FAILED, 1, TaskBackend)
    (logged,) = [each for each in caplog.records if "state=FAILED" in each.getMessage()]
    assert logged.exc_info is not None
    assert logged.exc_info[0] is ValueError
    assert "_ended" not in caplog.text


def test_a_replay_begins_anew() -> None:
    result = reports.fails.enqueue("so")
    run()

    default_bridge().dead.replay(result.id)
    assert reports.fails.get_result(result.id) == result
    run()
    result.refresh()
    assert (result.status, result.attempts, result.args) == (FAILED, 1, ["so"])


def test_what_is_returned_must_be_json() -> None:
    result = reports.no_json.enqueue()

    run()
    result.refresh()
    assert result.status == FAILED
    assert result.errors[-1].exception_class is TypeError
    assert "Unsupported type" in result.errors[-1].traceback


def test_what_is_cancelled_or_expires_has_failed(heard: Heard) -> None:
    cancelled = reports.total.enqueue([1])
    default_bridge().handle(cancelled.id).cancel()
    run()
    expired = default_bridge().named(f"{NAME}.total").using(expires=1).schedule(5, [1])
    run()

    cancelled.refresh()
    assert (cancelled.status, cancelled.attempts) == (FAILED, 0)
    assert cancelled.finished_at is not None
    assert [each.exception_class_path for each in cancelled.errors] == ["taskbridge.exceptions.TaskCancelled"]
    result = reports.total.get_result(expired.id)
    assert (result.status, result.errors[0].exception_class.__name__) == (FAILED, "TaskDiscarded")
    assert [each[:3] for each in heard if each[0] == "finished"] == [("finished", "total", FAILED)] * 2


def test_a_receiver_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def receiver(**_: Any) -> None:
        raise RuntimeError("receiver")

    signals.task_started.connect(receiver)
    signals.task_finished.connect(receiver)
    try:
        result = reports.total.enqueue([1])
        run()
    finally:
        signals.task_started.disconnect(receiver)
        signals.task_finished.disconnect(receiver)
    assert reports.total.get_result(result.id).return_value == {"total": 1}
    assert caplog.text.count("RuntimeError: receiver") == 2


def test_an_attempt_knows_its_number_when_its_record_has_forgotten_the_first_ones() -> None:
    result = reports.stubborn.enqueue()

    run()
    result.refresh()
    assert (result.return_value, result.attempts, len(result.errors)) == (55, 55, 49)
    assert result.worker_ids[:5] == [""] * 5
    assert "" not in result.worker_ids[5:]


# Results


@pytest.mark.parametrize("id", ["123", "", 7])
def test_a_result_that_is_not_there_does_not_exist(id: Any) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(id)


def test_a_result_of_a_task_that_is_not_djangos_does_not_exist() -> None:
    handle = default_bridge().send("tests.django.site.shop.tasks.add", 1, 2)

    with pytest.raises(TaskResultDoesNotExist, match="is not imported in this process"):
        task_backends["default"].get_result(handle.id)


def test_a_record_of_an_earlier_release_has_no_arguments() -> None:
    bridge = default_bridge()
    message = Message(id="old", task=f"{NAME}.total", queue="q", args_json="[1]", kwargs_json="{}", enqueued_at=1.0)
    assert bridge.records is not None
    assert "sent" not in new(message)
    bridge.records.create([(message, 0.0)], timeout_s=5)

    result = reports.total.get_result("old")
    assert (result.status, result.args, result.kwargs) == (READY, [], {})


# Options


def policy_of(name: str) -> RetryPolicy | None:
    declaration = default_bridge().declaration_of(f"{NAME}.{name}")
    assert declaration is not None
    return declaration.retry


def test_options_are_the_backends_then_those_of_the_glob_then_the_decorators() -> None:
    assert policy_of("total") == RetryPolicy(min_delay=0.2)
    assert policy_of("twice") == RetryPolicy(max_attempts=2, min_delay=0.2)
    if reports.OPEN:
        declaration = default_bridge().declaration_of(f"{NAME}.patient")
        assert declaration is not None
        assert declaration.retry == RetryPolicy(max_attempts=3, delays=(0.01, 0.02))
        assert (declaration.time_limit_s, declaration.expires_s) == (60.0, 3600.0)


@pytest.mark.parametrize(
    "options", [{"max_attempt": 3}, {"tasks": {"*": {"time_limits": 1}}}, {"tasks": {"*": {"tasks": {}}}}]
)
def test_an_option_that_is_unknown_is_refused(options: dict[str, Any]) -> None:
    with (
        override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}),
        pytest.raises(InvalidTaskBackend, match="has no option"),
    ):
        _ = task_backends["default"].alias


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"time_limit": -1}, {"backoff": "soon"}])
def test_an_option_that_is_wrong_is_told_as_the_task_is_decorated(options: dict[str, Any]) -> None:
    with (
        override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}),
        pytest.raises(InvalidTask),
    ):
        reports.with_options()(wrong)


def wrong() -> None:
    """Be declared with options that can't be."""


def test_a_backend_that_is_made_again_declares_nothing_twice() -> None:
    before = default_bridge().declarations()
    settings = {"default": {"BACKEND": BACKEND, "QUEUES": []}, "second": {"BACKEND": BACKEND, "QUEUES": []}}
    with override_settings(TASKS=settings):
        for alias in settings:
            assert reports.total.using(backend=alias).enqueue([1]).backend == alias
    assert default_bridge().declarations() == before


# Checks


def ids(found: list[checks.CheckMessage]) -> list[str | None]:
    return [each.id for each in found]


def test_nothing_is_said_of_a_backend_that_can_do_all_that_it_says() -> None:
    backend = task_backends["default"]
    flags = [backend.supports_defer, backend.supports_async_task, backend.supports_get_result]

    assert [*flags, backend.supports_priority] == [True] * 4
    assert backend.check() == []


def test_a_bridge_without_a_store_is_an_error() -> None:
    with default_bridge().temporarily(url="celery+amqp://localhost:1"):
        (found,) = task_backends["default"].check()
    assert (found.id, found.level) == ("taskbridge.E101", checks.ERROR)
    assert "TASKBRIDGE['STORE']" in str(found.hint)


def test_a_backend_without_the_app_is_an_error() -> None:
    with modify_settings(INSTALLED_APPS={"remove": "taskbridge.django"}):
        (found,) = task_backends["default"].check()
    assert (found.id, found.level) == ("taskbridge.E103", checks.ERROR)
    assert found.hint == "Add 'taskbridge.django'."


def test_options_for_which_no_task_is_decorated_are_a_warning() -> None:
    second = {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"max_attempts": 1}}
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": []}, "second": second}):
        (found,) = task_backends["second"].check()
        assert (found.id, found.hint) == ("taskbridge.W103", "They are for tasks decorated with backend='second'.")
        assert task_backends["default"].check() == []


def test_a_queue_that_no_worker_consumes_is_a_warning() -> None:
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default", "bulk", "lost"]}}):
        (found,) = task_backends["default"].check()
    assert (found.id, found.msg) == ("taskbridge.W101", "TASKS['default']: no worker consumes the queue 'lost'.")


def test_whether_quorum_queues_keep_priorities_is_asked() -> None:
    url = "celery+amqp://localhost:1"
    with default_bridge().temporarily(url=url, store="memory://", queue_type="quorum", send_timeout=0.5):
        assert ids(task_backends["default"].check()) == ["taskbridge.W102"]
