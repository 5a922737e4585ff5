"""CR: when schedules are due, and what is decided about their ticks. Pure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from taskbridge import Cron, DeclarationError, Every
from taskbridge.schedules.plan import Decision, Timing, decide

CHANGES = {
    "Europe/Rome": (date(2026, 3, 29), date(2026, 10, 25)),
    "America/New_York": (date(2026, 3, 8), date(2026, 11, 1)),
    "Australia/Lord_Howe": (date(2026, 4, 5), date(2026, 10, 4)),
}
"""Where the clocks change, and on which days of 2026; on Lord Howe Island by half an hour."""

WINDOWS = [(zone, day) for zone, days in CHANGES.items() for day in days]

PATTERNS = {
    "30 2 * * *": ({30}, {2}),
    "*/10 2 * * *": (set(range(0, 60, 10)), {2}),
    "0,45 1-3 * * *": ({0, 45}, {1, 2, 3}),
    "15 */2 * * *": ({15}, set(range(0, 24, 2))),
    "*/10 * * * *": (set(range(0, 60, 10)), set(range(24))),
    "40 0-23 * * *": ({40}, set(range(24))),
}
"""Expressions, and the minutes and hours that they name."""


def moments(timing: Timing, after: datetime, count: int) -> list[str]:
    shown = islice(timing.ticks(after.timestamp()), count)
    return [datetime.fromtimestamp(tick, timing.zone).strftime("%d %H:%M %z") for tick in shown]


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def scanned(expression: str, zone: str, begin: float, end: float) -> list[float]:
    """Return the ticks of ten days as the rule has them, by looking at every minute, and at the wall clock."""
    minutes, hours = PATTERNS[expression]
    found: set[float] = set()
    seen: set[datetime] = set()
    info = ZoneInfo(zone)
    for instant in range(int(begin) // 60 * 60, int(end) + 1, 60):
        shown = datetime.fromtimestamp(instant, info)
        wall = shown.replace(tzinfo=None, fold=0)
        again = wall in seen
        seen.add(wall)
        if wall.minute in minutes and wall.hour in hours and (len(hours) == 24 or not again):
            found.add(float(instant))
    if len(hours) < 24:
        found |= set(_after_gaps(seen, minutes, hours, info))
    return sorted(tick for tick in found if begin < tick <= end)


def _after_gaps(seen: set[datetime], minutes: set[int], hours: set[int], info: ZoneInfo) -> Iterator[float]:
    wall, last = min(seen), max(seen)
    owed = False
    while wall < last:
        if wall not in seen:
            owed = owed or (wall.minute in minutes and wall.hour in hours)
        elif owed:
            yield wall.replace(tzinfo=info).timestamp()
            owed = False
        wall += timedelta(minutes=1)


@pytest.mark.parametrize("expression", PATTERNS)
@pytest.mark.parametrize(("zone", "day"), WINDOWS)
def test_ten_days_around_a_clock_change_have_the_ticks_that_the_rule_says(
    zone: str, day: date, expression: str
) -> None:
    begin = datetime(day.year, day.month, day.day, 0, 1, tzinfo=ZoneInfo(zone)) - timedelta(days=5)
    end = begin + timedelta(days=10)
    planned = list(
        takewhile(lambda tick: tick <= end.timestamp(), Cron(expression, timezone=zone).ticks(begin.timestamp()))
    )

    assert planned == scanned(expression, zone, begin.timestamp(), end.timestamp())


@pytest.mark.parametrize("expression", PATTERNS)
@pytest.mark.parametrize(("zone", "day"), WINDOWS)
def test_whoever_begins_to_plan_anywhere_plans_the_same(zone: str, day: date, expression: str) -> None:
    timing = Cron(expression, timezone=zone)
    begin = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()
    whole = list(islice(timing.ticks(begin), 40))

    for start in range(int(begin), int(whole[-1]), 31 * 60 + 13):
        after = next(tick for tick in whole if tick > start)
        assert next(timing.ticks(start)) == after
    assert [next(timing.ticks(tick)) for tick in whole[:-1]] == whole[1:]


def test_what_falls_into_the_skipped_hour_is_due_once_as_it_ends() -> None:
    timing = Cron("0,30 2 * * *", timezone="Europe/Rome")

    assert moments(timing, at("2026-03-28T12:00", "Europe/Rome"), 3) == [
        "29 03:00 +0200",
        "30 02:00 +0200",
        "30 02:30 +0200",
    ]


def test_what_is_due_as_the_skipped_hour_ends_anyway_is_due_once() -> None:
    timing = Cron("30 2,3 * * *", timezone="Europe/Rome")
    both = Cron("0 2,3 * * *", timezone="Europe/Rome")

    assert moments(timing, at("2026-03-28T12:00", "Europe/Rome"), 2) == ["29 03:00 +0200", "29 03:30 +0200"]
    assert moments(both, at("2026-03-28T12:00", "Europe/Rome"), 2) == ["29 03:00 +0200", "30 02:00 +0200"]


def test_what_falls_into_the_repeated_hour_is_due_the_first_time() -> None:
    timing = Cron("*/30 2 * * *", timezone="Europe/Rome")

    assert moments(timing, at("2026-10-24T12:00", "Europe/Rome"), 3) == [
        "25 02:00 +0200",
        "25 02:30 +0200",
        "26 02:00 +0100",
    ]


def test_a_schedule_for_every_hour_goes_by_elapsed_time() -> None:
    timing = Cron("0 * * * *", timezone="Europe/Rome")

    assert moments(timing, at("2026-03-29T00:30", "Europe/Rome"), 3) == [
        "29 01:00 +0100",
        "29 03:00 +0200",
        "29 04:00 +0200",
    ]
    assert moments(timing, at("2026-10-25T01:30", "Europe/Rome"), 3) == [
        "25 02:00 +0200",
        "25 02:00 +0100",
        "25 03:00 +0100",
    ]


def test_a_day_that_a_zone_leaves_out_is_caught_up_once() -> None:
    timing = Cron("0 6,18 * * *", timezone="Pacific/Apia")  # there was no 2011-12-30

    assert moments(timing, at("2011-12-29T12:00", "Pacific/Apia"), 3) == [
        "29 18:00 -1000",
        "31 00:00 +1400",
        "31 06:00 +1400",
    ]


def test_days_and_names_are_read_as_cron_does() -> None:
    weekdays = Cron("0 8 * * mon-fri", timezone="Europe/Rome")

    assert moments(weekdays, at("2026-11-27T09:00", "Europe/Rome"), 2) == ["30 08:00 +0100", "01 08:00 +0100"]
    assert moments(Cron("0 0 29 2 *"), at("2026-01-01T00:00"), 1) == ["29 00:00 +0000"]
    assert moments(Cron("0 0 1 * mon"), at("2026-11-25T00:00"), 3) == [
        "30 00:00 +0000",
        "01 00:00 +0000",
        "07 00:00 +0000",
    ]


def test_intervals_count_from_the_epoch() -> None:
    assert moments(Every(timedelta(minutes=20)), at("2026-11-25T08:05"), 2) == ["25 08:20 +0000", "25 08:40 +0000"]
    assert list(islice(Every(7).ticks(14.0), 2)) == [21.0, 28.0]
    assert list(islice(Every(7).ticks(13.9), 2)) == [14.0, 21.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Cron("61 * * * *"), "Bad minute"),
        (lambda: Cron("* * * *"), "5 fields"),
        (lambda: Cron("*/90 * * * *"), r"'\*/90', the field minute, is more than 60; use every"),
        (lambda: Cron("0 */25 * * *"), "the field hour, is more than 24"),
        (lambda: Cron("0,5-50/61 * * * *"), "more than 60"),
        (lambda: Cron("0 0 * * sat-sun"), "Bad day-of-week 'sat-sun'; a range goes up, from SUN"),
        (lambda: Cron("* * * * * *"), "5 fields"),
        (lambda: Cron("0 0 30 2 *"), "day-of-month"),
        (lambda: Cron("0 0 */20 * 1L"), "never due"),
        (lambda: Cron(5), "is text"),  # type: ignore[arg-type]
        (lambda: Cron("* * * * *", timezone="Europe/Roma"), "did you mean 'Europe/Rome'"),
        (lambda: Cron("* * * * *", timezone="../etc/passwd"), "no time zone"),
        (lambda: Cron("* * * * *", timezone="Europe"), "no time zone"),
        (lambda: Cron("* * * * *", catch_up="al"), "did you mean 'all'"),  # type: ignore[arg-type]
        (lambda: Cron("* * * * *", overlap=True), "not one of allow, skip"),  # type: ignore[arg-type]
        (lambda: Cron("* * * * *", name=" "), "name must be text"),
        (lambda: Every(0), "whole seconds"),
        (lambda: Every(1.5), "whole seconds"),
        (lambda: Every(-5), "at least 0"),
        (lambda: Every("5"), "timedelta or a number"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_refused_as_it_is_declared(make: Any, match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        make()


@pytest.mark.parametrize(
    ("catch_up", "settled", "since", "now", "expected"),
    [
        ("one", 100, 90, 109, Decision(110)),
        ("one", 100, 90, 110, Decision(110)),
        ("one", 100, 105, 139, Decision(110)),  # each, for somebody was there
        ("none", 100, 105, 139, Decision(110)),
        ("none", 100, 145, 145, Decision(110, [110, 120, 130, 140])),
        ("none", 100, 125, 145, Decision(110, [110, 120])),
        ("one", 100, 145, 145, Decision(110, [110, 120, 130])),
        ("one", 130, 145, 145, Decision(140)),
        ("one", 100, 125, 145, Decision(110, [110])),
        ("all", 100, 145, 145, Decision(110)),
        ("none", 100, 110, 110, Decision(110, [110])),
    ],
)
def test_decisions(catch_up: Any, settled: float, since: float, now: float, expected: Decision) -> None:
    timing = Every(10, catch_up=catch_up)

    first, skip = decide(timing, settled_until=settled, paused=False, watched_since=since, now=now)

    assert Decision(first, list(skip)) == Decision(expected.first, list(expected.skip))


@pytest.mark.parametrize("catch_up", ["none", "one", "all"])
def test_nothing_that_is_due_while_a_schedule_is_paused_is_sent(catch_up: Any) -> None:
    timing = Every(10, catch_up=catch_up)

    decision = decide(timing, settled_until=100, paused=True, watched_since=90, now=139)

    assert decision == Decision(110, [110, 120, 130])


@pytest.mark.parametrize(
    ("missing", "statement", "expected"),
    [
        ("cronsim", "Cron('* * * * *')", "cronsim, which reads cron expressions, is not installed"),
        ("tzdata", "Cron('* * * * *', timezone='Europe/Rome')", "the data of time zones"),
        ("cronsim", "Every(5)", ""),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(missing: str, statement: str, expected: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
if {missing!r} == 'tzdata':
    import zoneinfo
    zoneinfo.reset_tzpath([])
from taskbridge import Cron, Every, NotInstalledError
try:
    {statement}
except NotInstalledError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert (expected in done.stdout) if expected else done.stdout == ""
    assert ("taskbridge-queue[cron]" in done.stdout) == bool(expected)


def test_declaring_tasks_without_schedules_loads_nothing_for_them() -> None:
    program = """
import sys
from taskbridge import Bridge
bridge = Bridge("inline://?threads=0")
@bridge.task
def plain() -> None: ...
plain.send()
print(sorted({"cronsim", "zoneinfo", "taskbridge.schedules.listing"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "[]"
