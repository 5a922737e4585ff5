"""The schedules of Celery beat become schedules that are put at run time."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from celery.schedules import crontab, schedule
from django.db import connection
from django.test import override_settings

from taskbridge import Bridge, Cron, Every, default_bridge
from taskbridge.cli.command import Parser
from taskbridge.django.import_beat import import_beat
from tests.django.site.office.tasks import report

REPORT: Final = report.name
SQL: Final = Path(__file__).with_name("beat_tables.sql").read_text()
SOON: Final = datetime.now(timezone.utc) + timedelta(days=3)


@pytest.fixture(params=["inline", "celery+redis"])
def bridge(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> Iterator[Bridge]:
    url = "inline://?threads=0" if request.param == "inline" else url_of(request.param)
    with default_bridge().temporarily(url=url, namespace=f"beat-{uuid4().hex}", queues=["reports"]):
        yield default_bridge()


@pytest.fixture
def inline() -> Iterator[Bridge]:
    with default_bridge().temporarily(url="inline://?threads=0", namespace=f"beat-{uuid4().hex}", queues=["reports"]):
        yield default_bridge()


@pytest.fixture
def tables() -> Iterator[None]:
    names = [line.split()[2] for line in SQL.splitlines() if line.startswith("CREATE")]
    with connection.cursor() as cursor:
        for statement in SQL.split(";")[:-1]:
            cursor.execute(statement)
        yield
        for name in reversed(names):
            cursor.execute(f"DROP TABLE {name}")


def insert(table: str, **values: Any) -> int:
    with connection.cursor() as cursor:
        marks = ", ".join(["%s"] * len(values))
        cursor.execute(
            f"INSERT INTO django_celery_beat_{table} ({', '.join(values)}) VALUES ({marks})", [*values.values()]
        )
        return int(cursor.lastrowid)


def insert_task(name: str, **values: Any) -> None:
    always = {"task": REPORT, "args": "[7]", "kwargs": "{}", "headers": "{}", "enabled": True, "one_off": False}
    rest = {"total_run_count": 0, "date_changed": SOON, "description": ""}
    insert("periodictask", **{"name": name, **always, **rest, **values})


def run(bridge: Bridge, *, dry_run: bool = False, celery: str | None = None) -> dict[str, tuple[str, str]]:
    """Run the command, and return what became of each schedule, and why."""
    output = import_beat.run(bridge, Namespace(dry_run=dry_run, namespace="CELERY", celery=celery, database=None))  # type: ignore[misc]
    assert output.code == int(any(each["what"] == "left out" for each in output.data))
    return {each["schedule"]: (each["what"], each["why"]) for each in output.data}


def put(bridge: Bridge) -> Mapping[str, Any]:
    bridge.schedules.follow(at_once=True)
    return {name: each for name, each in bridge.schedules.planned().items() if each.revision}


def test_intervals_and_crontabs_are_taken_over(bridge: Bridge, tables: None) -> None:
    minutes = insert("intervalschedule", every=5, period="minutes")
    morning = insert(
        "crontabschedule",
        minute="0, 30",
        hour="8",
        day_of_week="monday-friday",
        day_of_month="*",
        month_of_year="*/3",
        timezone="Europe/Rome",
    )
    insert_task("five", interval_id=minutes, kwargs='{"title": "x"}', queue="reports", expire_seconds=60)
    insert_task("morning", crontab_id=morning, enabled=False, headers='{"from": "beat"}', expires=SOON)

    assert run(bridge) == {"five": ("put", ""), "morning": ("put", "")}

    found = put(bridge)
    assert found["five"].timing == Every(300, name="five")
    assert found["five"].encoded == ("[7]", '{"title":"x"}', 1)
    assert (found["five"].using["queue"], found["five"].using["expires"]) == ("reports", 60)
    assert found["morning"].timing == Cron("0,30 8 * */3 mon-fri", timezone="Europe/Rome", name="morning")
    assert found["morning"].using["headers"] == {"from": "beat"}
    assert found["morning"].ends_at == pytest.approx(SOON.timestamp())
    assert {each.name: each.paused for each in bridge.schedules.list() if each.source == "store"} == {
        "five": False,
        "morning": True,
    }


def test_the_schedules_of_settings_are_taken_over(bridge: Bridge) -> None:
    schedules = {
        "seconds": {"task": REPORT, "schedule": 30.0, "args": (7,)},
        "delta": {"task": REPORT, "schedule": timedelta(hours=2), "kwargs": {"number": 7}},
        "object": {"task": REPORT, "schedule": schedule(90), "args": (7,), "options": {"queue": "reports"}},
        "cron": {"task": REPORT, "schedule": crontab(hour=[7, 8], minute=0, day_of_week="Sunday"), "args": (7,)},
        "more": {"task": REPORT, "schedule": 30, "args": (7,), "options": {"priority": 3, "expires": 9}},
    }
    with override_settings(CELERY_BEAT_SCHEDULE=schedules, CELERY_TIMEZONE="Europe/Rome"):
        done = run(bridge)

    assert done == {**dict.fromkeys(schedules, ("put", "")), "more": ("put", "without priority")}
    found = put(bridge)
    assert {name: each.timing for name, each in found.items()} == {
        "seconds": Every(30, name="seconds"),
        "delta": Every(7200, name="delta"),
        "object": Every(90, name="object"),
        "cron": Cron("0 7,8 * * Sun", timezone="Europe/Rome", name="cron"),
        "more": Every(30, name="more"),
    }
    assert (found["object"].using["queue"], found["more"].using["expires"]) == ("reports", 9)


def test_the_schedules_of_a_celery_app_are_taken_over(inline: Bridge) -> None:
    assert run(inline, celery="tests.django.celery_app.app") == {"of-app": ("put", "")}
    assert put(inline)["of-app"].timing == Cron("0 8 * * *", timezone="Asia/Tokyo", name="of-app")


def test_a_second_run_changes_nothing(bridge: Bridge, tables: None) -> None:
    insert_task("five", interval_id=insert("intervalschedule", every=5, period="minutes"), expires=SOON)
    insert_task("once", clocked_id=insert("clockedschedule", clocked_time=SOON), one_off=True)
    run(bridge)
    before = put(bridge)
    bridge.schedules.pause("five")

    assert run(bridge) == {"five": ("as before", ""), "once": ("as before", "")}

    assert put(bridge) == before
    assert [each.paused for each in bridge.schedules.list() if each.name == "five"] == [True]


def test_a_row_wins_over_the_settings_from_which_beat_made_it(inline: Bridge, tables: None) -> None:
    every = insert("intervalschedule", every=30, period="seconds")
    insert_task("purge", interval_id=every, enabled=False)

    with override_settings(CELERY_BEAT_SCHEDULE={"purge": {"task": REPORT, "schedule": 30, "args": (7,)}}):
        assert run(inline) == {"purge": ("put", "")}

    assert [each.paused for each in inline.schedules.list() if each.name == "purge"] == [True]


def test_a_dry_run_changes_nothing(bridge: Bridge, tables: None) -> None:
    insert_task("five", interval_id=insert("intervalschedule", every=5, period="minutes"))
    insert_task("other", interval_id=insert("intervalschedule", every=5, period="minutes"), task="nobody")

    done = run(bridge, dry_run=True)

    assert {name: what for name, (what, _) in done.items()} == {"five": "to be put", "other": "left out"}
    assert put(bridge) == {}


def test_a_single_run_that_expires_runs_in_no_other_year(inline: Bridge, tables: None) -> None:
    clocked = insert("clockedschedule", clocked_time=SOON)
    insert_task("once", clocked_id=clocked, one_off=True, expire_seconds=30)
    run(inline)

    expires = put(inline)["once"].using["expires"]
    [entry] = [each for each in inline.schedules.list(runs=1) if each.name == "once"]
    assert expires == entry.next_runs[0] + timedelta(seconds=30)


def test_a_single_run_at_a_time_runs_then_and_once(inline: Bridge, tables: None) -> None:
    at = datetime.now(timezone.utc).replace(second=30, microsecond=0) + timedelta(days=3)
    insert_task("once", clocked_id=insert("clockedschedule", clocked_time=at), one_off=True)

    assert run(inline) == {"once": ("put", "")}

    [entry] = [each for each in inline.schedules.list(runs=5) if each.name == "once"]
    assert entry.next_runs == (at.replace(second=0) + timedelta(minutes=1),)


def test_what_cannot_be_taken_over_is_left_out_with_a_reason(inline: Bridge, tables: None) -> None:
    now = datetime.now(timezone.utc)
    five = insert("intervalschedule", every=5, period="minutes")
    both = {"minute": "0", "hour": "0", "day_of_month": "1", "day_of_week": "mon", "month_of_year": "*"}
    insert_task("sun", solar_id=insert("solarschedule", event="sunrise", latitude=1, longitude=1))
    insert_task("past", clocked_id=insert("clockedschedule", clocked_time=now - timedelta(days=1)), one_off=True)
    insert_task("far", clocked_id=insert("clockedschedule", clocked_time=now + timedelta(days=400)), one_off=True)
    insert_task("typo", interval_id=five, task=f"{REPORT}s")
    insert_task("often", interval_id=insert("intervalschedule", every=500, period="microseconds"))
    insert_task("both", crontab_id=insert("crontabschedule", timezone="UTC", **both))
    insert_task("once", interval_id=five, one_off=True)
    insert_task("later", interval_id=five, start_time=now + timedelta(days=1))
    insert_task("over", interval_id=five, expires=now - timedelta(days=1))
    insert_task("queue", interval_id=five, queue="nobody")
    insert_task("key", interval_id=five, routing_key="reports.daily")
    insert_task("args", interval_id=five, args="[]")
    insert_task("json", interval_id=five, kwargs="{")
    insert_task("list", interval_id=five, kwargs="[]")
    insert_task("headers", interval_id=five, headers='{"deep": []}')
    insert_task("tests.django.site.office.tasks.tidy", interval_id=five)
    insert_task("cleanup", interval_id=five, task="celery.backend_cleanup")

    done = run(inline)

    assert done.pop("cleanup") == ("needless", "records go by themselves when their time is over")
    assert {what for what, _ in done.values()} == {"left out"}
    for name, said in {
        "sun": "by the sun",
        "past": "is over",
        "far": "too far ahead",
        "typo": f"did you mean '{REPORT}'",
        "often": "at least 1",
        "both": "write two schedules",
        "once": "runs once",
        "later": "begins later",
        "over": "has expired",
        "queue": "nobody",
        "key": "give it a queue",
        "args": "can't be called",
        "json": "Expecting property name",
        "list": "JSON array and objects",
        "headers": "headers must be",
        "tests.django.site.office.tasks.tidy": "the code or the settings",
    }.items():
        assert said in done[name][1], done[name]
    assert put(inline) == {}


def test_a_schedule_by_the_sun_in_the_settings_is_left_out(inline: Bridge) -> None:
    solar = type("solar", (), {})  # Celery's own needs a further library
    sun = {"task": REPORT, "schedule": solar(), "args": (7,)}
    with override_settings(CELERY_BEAT_SCHEDULE={"sun": sun}):
        assert run(inline) == {"sun": ("left out", "a schedule of the kind 'solar' has no equivalent")}


def test_a_project_without_celery_beat_is_told_so(inline: Bridge) -> None:
    output = import_beat.run(inline, Namespace(dry_run=False, namespace="CELERY", celery=None, database=None))  # type: ignore[misc]

    assert (output.text, output.code) == ("Celery beat has no schedules here", 0)


def test_it_is_a_command(url_of: Callable[[str], str], tables: None) -> None:
    insert_task("five", interval_id=insert("intervalschedule", every=5, period="minutes"))
    parser = Parser(prog="taskbridge")
    import_beat.add_to(parser.add_subparsers(dest="command"))
    with default_bridge().temporarily(url=url_of("celery+redis"), namespace=f"beat-{uuid4().hex}"):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            arguments = parser.parse_args(["import_beat", "--dry-run"])
            assert arguments.do(arguments) == 0

    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["schedule", "task", "what", "why"],
        ["five", REPORT, "to", "be", "put"],
    ]
