"""CR: declaring schedules, the setting, and running them on a virtual clock."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskbridge import (
    Bridge,
    Cron,
    DeclarationError,
    EncodeError,
    Every,
    Message,
    RetryPolicy,
    SettingsError,
    UnknownSchedule,
    UnsupportedError,
    current,
)
from taskbridge.engines.base import WorkerOptions
from taskbridge.engines.settle import NotRun, begin
from taskbridge.schedules.listing import PLANNED_HEADER, SCHEDULE_HEADER, tick_id
from taskbridge.stores.records import Ending


def a_bridge(**settings: Any) -> Bridge:
    return Bridge("inline://?threads=0", **settings)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test begin at noon, and 20 s, on a day in winter: no tick is near, and no change of clocks."""
    ahead_s = datetime(2026, 1, 14, 12, 0, 20, tzinfo=timezone.utc).timestamp() - time.time()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s)


def names(bridge: Bridge) -> list[str]:
    return list(bridge.schedules.planned())


def test_the_short_option_has_the_name_of_its_task_and_others_tell_when_they_are_due() -> None:
    bridge = a_bridge()
    hourly, daily = Every(timedelta(hours=1)), Cron("0  3 * * *", timezone="Europe/Rome")

    @bridge.task(name="report", cron="0 8 * * mon-fri", timezone="Europe/Rome", schedules=[hourly, daily])
    def report(region: str = "all") -> None: ...

    bridge.periodic(report.call("eu"), every=60)
    bridge.periodic(report.call("us"), every=60, name="minutely for us")

    assert names(bridge) == [
        "report",
        "report:every 3600 s",
        "report:0 3 * * *",
        "report:every 60 s",
        "minutely for us",
    ]


def refused(declare: Callable[[Bridge], object], match: str, error: type[Exception] = DeclarationError) -> None:
    bridge = a_bridge()

    @bridge.task(name="old", every=60)
    def old(region: str = "all") -> None: ...

    with pytest.raises(error, match=match):
        declare(bridge)
    assert names(bridge) == ["old"]


def with_arguments(region: str) -> None: ...


def without_arguments() -> None: ...


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "* * * * *", "timezone": "Rome"}, "no time zone 'Rome'"),
        ({"cron": "* * * * *", "every": 5}, "several in schedules="),
        ({"every": 5, "timezone": "Europe/Rome"}, "timezone has an effect only with cron"),
        ({"every": 0.5}, "whole seconds"),
        ({"timezone": "Europe/Rome"}, "timezone has an effect only with cron"),
        ({"catch_up": "all"}, "catch_up has an effect only with"),
        ({"overlap": "skip", "schedules": [Every(5)]}, "overlap has an effect only with"),
        ({"every": 5, "overlap": "skip", "results": False}, "results must be True"),
        ({"schedules": "0 8 * * *"}, "must be a list"),
        ({"schedules": ["0 8 * * *"]}, "must be a list"),
        ({"schedules": [Every(5), Every(5)]}, "schedule 'new:every 5 s' already"),
        ({"schedules": [Every(5, name="old")]}, "schedule 'old' already, of task 'old'"),
        ({"crom": "* * * * *"}, "did you mean 'cron'"),
    ],
)
def test_options_that_are_wrong_or_have_no_effect_are_refused(options: dict[str, Any], match: str) -> None:
    refused(lambda bridge: bridge.task(name="new", **options)(without_arguments), match)


def test_a_task_that_needs_arguments_has_no_schedule_without_them() -> None:
    refused(lambda bridge: bridge.task(name="new", every=5)(with_arguments), "bridge.periodic")


def test_periodic_calls_are_checked_as_they_are_declared() -> None:
    def periodic(*arguments: Any, **options: Any) -> Callable[[Bridge], object]:
        return lambda bridge: bridge.periodic(bridge.task(name="new")(with_arguments).call(*arguments), **options)

    refused(periodic("eu"), "needs cron or every")
    refused(periodic("eu", every=5, name="old"), "schedule 'old' already")
    refused(periodic(object(), every=5), r"args\[0\]", EncodeError)
    refused(periodic(every=5), "region", TypeError)
    foreign = Bridge("inline://?threads=0").task(name="foreign")(without_arguments)
    refused(lambda bridge: bridge.periodic(foreign.call(), every=5), "not one of this bridge")


def test_a_module_that_is_imported_twice_declares_its_schedules_once() -> None:
    bridge = a_bridge()
    for _ in range(2):
        task = bridge.task(name="twice", schedules=[Every(5)])(without_arguments)
        bridge.periodic(task.call(), every=7)

    assert names(bridge) == ["twice:every 5 s", "twice:every 7 s"]
    bridge.task(name="twice")(without_arguments)
    assert names(bridge) == ["twice:every 7 s"]


SETTING = {
    "nightly": {"task": "report", "cron": "0 3 * * *", "timezone": "Europe/Rome", "args": ["eu"], "queue": "slow"},
    "often": {"task": "report", "every": 60, "kwargs": {"region": "us"}, "catch_up": "all", "priority": "low"},
}


@pytest.mark.usefixtures("noon")
@pytest.mark.parametrize("by_environment", [False, True])
def test_the_setting_names_schedules(by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_environment:
        monkeypatch.setenv("TASKBRIDGE_SCHEDULES", json.dumps(SETTING))
    bridge = a_bridge(queues=["slow"], **({} if by_environment else {"schedules": SETTING}))
    seen: list[tuple[str, str, str, str]] = []

    @bridge.task(name="report")
    def report(region: str) -> None:
        context = current()
        seen.append((region, context.queue, context.priority, context.headers[SCHEDULE_HEADER]))

    bridge.run_schedules(timedelta(days=1, minutes=1))

    assert seen.count(("eu", "slow", "normal", "nightly")) == 1
    assert seen.count(("us", "default", "low", "often")) in (1440, 1441)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("{", "must be JSON"),
        ([1], "by name"),
        ({"x": 5}, "'x': it must hold a task"),
        ({"x": {"task": "report"}}, "'x': it needs a task, by name, and cron or every"),
        ({"x": {"every": 5}}, "'x': it needs a task"),
        ({"x": {"task": "report", "every": 5, "cran": 1}}, "did you mean 'cron'"),
        ({"x": {"task": "report", "cron": "x"}}, "'x': cron expression 'x'"),
        ({"x": {"task": "report", "every": 5, "args": "eu"}}, "'x': args must be a list"),
        ({"x": {"task": "report", "every": 5, "priority": "top"}}, "priority 'top'"),
        ({"x": {"task": "report", "every": 5, "queue": "no queue"}}, "queue"),
    ],
)
def test_a_setting_that_is_wrong_is_named(value: Any, match: str) -> None:
    with pytest.raises(SettingsError, match=match) as caught:
        a_bridge(schedules=value)
    assert caught.value.key == "schedules"


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"x": {"task": "repor", "every": 5, "args": ["eu"]}}, "no task 'repor'; did you mean 'report'"),
        ({"x": {"task": "report", "every": 5}}, "region"),
        ({"report": {"task": "report", "every": 5, "args": ["eu"]}}, "already, declared in the code"),
    ],
)
def test_a_setting_that_does_not_fit_the_tasks_is_found_before_a_worker_starts(
    setting: dict[str, Any], match: str
) -> None:
    bridge = Bridge("celery+redis://nowhere", schedules=setting)
    report = bridge.task(name="report")(with_arguments)
    bridge.periodic(report.call("eu"), every=5, name="report")

    with pytest.raises(SettingsError, match=match):
        bridge.worker_commands(WorkerOptions(app="shop"))


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_workers_with_schedules_and_no_store_are_refused_with_what_would_help(engine: str) -> None:
    pytest.importorskip(engine)
    pytest.importorskip("pika")
    bridge = Bridge(f"{engine}+amqp://nowhere//")
    bridge.task(name="new", every=5)(without_arguments)

    with pytest.raises(UnsupportedError, match=r"TASKBRIDGE_STORE.*CR1"):
        bridge.worker_commands(WorkerOptions(app="shop"))
    with pytest.raises(UnsupportedError, match=r"CR1"):
        bridge.schedules.list()
    off = bridge.worker_commands(WorkerOptions(app="shop", scheduler=False))
    assert {command.env["TASKBRIDGE_APP_SCHEDULER"] for command in off} == {"off"}
    bridge.reconfigure(url=f"{engine}+amqp://nowhere//", scheduler=False)
    assert bridge.worker_commands(WorkerOptions(app="shop"))


@pytest.mark.usefixtures("noon")
def test_a_test_runs_a_week_of_schedules_in_a_moment() -> None:
    bridge = a_bridge()
    seen: list[datetime] = []
    retried: list[int] = []

    @bridge.task(name="daily", cron="0 8 * * *", timezone="Europe/Rome")
    def daily() -> None:
        seen.append(datetime.fromisoformat(current().headers[PLANNED_HEADER]))
        retried.append(current().attempt)
        if current().attempt < 3:
            raise ConnectionError

    runs = bridge.run_schedules(timedelta(days=7))

    assert runs == 21
    assert retried == [1, 2, 3] * 7
    planned = sorted(set(seen))
    assert [moment.astimezone(Cron("* * * * *", timezone="Europe/Rome").zone).hour for moment in planned] == [8] * 7
    assert bridge.run_until_idle() == 0


@pytest.mark.usefixtures("noon")
def test_running_schedules_ends_at_the_time_that_was_given() -> None:
    bridge = a_bridge()
    bridge.task(name="new", every=60)(without_arguments)
    end = datetime.fromtimestamp(bridge.now(), timezone.utc) + timedelta(seconds=90)

    runs = bridge.run_schedules(end)
    again = bridge.run_schedules(0)

    assert runs in (1, 2)
    assert again == 0
    assert 0 <= bridge.now() - end.timestamp() < 5
    with pytest.raises(UnsupportedError):
        Bridge("celery+redis://nowhere").run_schedules(5)


def test_the_clock_goes_on_to_where_it_was_sent_also_without_schedules() -> None:
    bridge = Bridge("inline://?threads=0")
    began = bridge.now()

    assert bridge.run_schedules(600) == 0
    assert bridge.now() - began >= 600


def test_what_the_clock_passed_over_without_schedules_is_caught_up_as_it_is_set() -> None:
    bridge = a_bridge()
    counts = {"one": 0, "all": 0, "none": 0}

    def count(name: str) -> None:
        counts[name] += 1

    task = bridge.task(name="count")(count)
    for name in counts:
        bridge.periodic(task.call(name), every=3600, name=name, catch_up=name)  # type: ignore[arg-type]
    wait = bridge.task(name="wait")(without_arguments)
    bridge.run_schedules(1)
    before = dict(counts)
    wait.schedule(timedelta(hours=10))
    bridge.run_until_idle()
    assert counts == before

    bridge.run_schedules(60)

    entries = {entry.name: entry for entry in bridge.schedules.list()}
    assert counts["all"] - before["all"] in (10, 11)
    assert counts["one"] - before["one"] in (1, 2)
    assert counts["none"] - before["none"] in (0, 1)
    assert entries["all"].missed == 0
    assert entries["one"].missed in (9, 10)
    assert entries["none"].missed in (10, 11)


def test_a_schedule_is_paused_and_resumed_by_name() -> None:
    bridge = a_bridge()
    bridge.task(name="new", every=60, catch_up="all")(without_arguments)
    bridge.run_schedules(600)

    bridge.schedules.pause("new")
    assert bridge.run_schedules(600) == 0
    [entry] = bridge.schedules.list(runs=3)
    bridge.schedules.resume("new")
    runs = bridge.run_schedules(600)

    assert entry.paused
    assert len(entry.next_runs) == 3
    assert entry.missed == 0
    assert 9 <= runs <= 11
    with pytest.raises(UnknownSchedule, match="did you mean 'new'"):
        bridge.schedules.pause("news")


def test_overlap_skip_looks_at_what_became_of_the_last_message() -> None:
    bridge = a_bridge(retry=RetryPolicy(min_delay=150, factor=1, jitter=0))
    starts: list[int] = []

    @bridge.task(name="slow", every=60, overlap="skip")
    def slow() -> None:
        starts.append(current().attempt)
        if current().attempt < 2:
            raise ConnectionError

    bridge.run_schedules(60 * 60)

    [entry] = bridge.schedules.list()
    assert 19 <= starts.count(1) <= 21  # each takes 2.5 minutes, so that one tick of three is sent
    assert 38 <= entry.missed <= 41


def test_an_embedded_worker_keeps_to_schedules() -> None:
    bridge = a_bridge()
    ran = threading.Event()

    @bridge.task(name="soon", every=1)
    def soon() -> None:
        ran.set()

    with bridge.embedded_worker():
        assert ran.wait(60)


@pytest.mark.parametrize("by_setting", [True, False])
def test_a_worker_that_is_told_so_does_not_send_by_schedules(by_setting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_setting:
        monkeypatch.setenv("TASKBRIDGE_SCHEDULER", "off")
    else:  # as `taskbridge worker --no-scheduler` tells it
        monkeypatch.setenv("TASKBRIDGE_APP_SCHEDULER", "off")
    bridge = a_bridge()
    bridge.task(name="soon", every=1)(without_arguments)

    before = {*threading.enumerate()}  # of other tests, some may end only later
    with bridge.embedded_worker():
        threads = {thread.name for thread in threading.enumerate() if thread not in before}

    assert "taskbridge-pump" in threads
    assert "taskbridge-scheduler" not in threads


def test_the_id_of_a_tick_depends_on_nothing_but_namespace_schedule_and_instant() -> None:
    others = {tick_id("other", "report", 1.8e9), tick_id("shop", "x", 1.8e9), tick_id("shop", "report", 1.0)}

    assert tick_id("shop", "report", 1.8e9) == "91ecbf71-b99d-5e87-a655-b00cec4245f3"  # of another release too
    assert len(others) == 3


def test_a_second_message_of_a_tick_is_not_run_however_late_it_comes() -> None:
    """The mark of the first is kept for a minute past the lease; it may stand in a long queue for longer."""
    pytest.importorskip("celery")
    bridge = Bridge("celery+memory://")
    bridge.task(name="new", every=60)(without_arguments)
    store = bridge.store
    assert store is not None
    message_id = bridge.schedules.send(bridge.schedules.planned()["new"], 1.8e9)
    message = Message(
        id=message_id, task="new", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.8e9, redelivered=1
    )
    assert begin(bridge.bound("new"), message, redelivered=False) is message
    store.records.ended(message, Ending(state="done", at=1.8e9, result_json="null"), timeout_s=5)
    store.marks.given_back(message, timeout_s=5)  # as if it had grown too old

    assert begin(bridge.bound("new"), message, redelivered=False) == NotRun("ended before")
    bridge.close()
