"""What Celery's own schedules are here. They are known by the names of their classes, for Celery need not be there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any


def time_of(schedule: Any, timezone: str | None) -> dict[str, Any]:
    """Return the options `cron` and `timezone`, or `every`, for an entry of Celery's `beat_schedule`.

    Args:
        schedule: Its schedule: a `crontab`, a `schedule`, a `timedelta` or a number of seconds.
        timezone: Celery's own time zone, in which it reads a `crontab`; None is UTC.

    Raises:
        ValueError: There is no equivalent; the text says why.
    """
    if isinstance(schedule, timedelta):
        schedule = schedule.total_seconds()
    if isinstance(schedule, int | float):
        if schedule < 1 or schedule != int(schedule):
            raise ValueError(f"an interval is whole seconds, at least 1, not {schedule:g}")
        return {"every": int(schedule)}
    kind = type(schedule).__name__
    if kind == "schedule":
        return time_of(schedule.run_every, timezone)
    if kind != "crontab":
        raise ValueError(f"a schedule of the kind {kind!r} has no equivalent")
    minute, hour, weekday, day, month = schedule.__reduce__()[1]  # as they were given
    zone = {} if timezone is None else {"timezone": str(timezone)}
    return {"cron": cron_of(minute, hour, day, month, weekday), **zone}


def cron_of(minute: Any, hour: Any, day: Any, month: Any, weekday: Any) -> str:
    """Return a cron expression for what Celery's `crontab` is given, each text, a number or several of them.

    Raises `ValueError` where cron would mean something else: Celery's is due on days that both fields name, and cron's
    on days that either names, unless one of them begins with a star.
    """
    fields = [_field(each) for each in (minute, hour, day, month, weekday)]
    if not any(each.startswith("*") for each in (fields[2], fields[4])):
        raise ValueError("it names days of the month and of the week: write two schedules, or test one in the task")
    return " ".join(fields)


def _field(given: Any) -> str:
    """Return a field with names of three letters, as cron has them."""
    texts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else given
    parts = ",".join(map(str, texts)).replace(" ", "").split(",")
    return ",".join("-".join(word[:3] if word[:1].isalpha() else word for word in each.split("-")) for each in parts)
