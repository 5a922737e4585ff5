"""What the schedules of Celery beat are here: those of its settings, and of the tables of django-celery-beat.

Celery's own are known by the names of their classes, for Celery need not be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError, UnsupportedError, nearest
from taskbridge.routing import check_known
from taskbridge.schedules.plan import timing_of
from taskbridge.schedules.stored import using_of
from taskbridge.tasks import Call, SendOptions

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

_NEEDLESS: Final = "celery.backend_cleanup"
"""The task that beat sends by itself."""

_MOST_AHEAD: Final = timedelta(days=360)
"""How far ahead a run at one time may be: a cron expression names no year."""

_KEPT: Final = timedelta(days=300)
"""How long the message of such a run waits for a worker at most, which must be less than a year."""


@dataclass(frozen=True, kw_only=True, slots=True)
class What:
    """What a schedule sends and when, as `Schedules.put` takes it: `time` is `cron` and `timezone`, or `every`."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: SendOptions
    time: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A schedule of beat; `read` raises why it can't be taken over."""

    name: str
    task: str
    read: Callable[[], What]
    enabled: bool = True
    remark: str = ""


# Times


def time_of(schedule: Any, zone: str | None) -> dict[str, Any]:
    """Return the options `cron` and `timezone`, or `every`, for an entry of Celery's `beat_schedule`.

    Args:
        schedule: Its schedule: a `crontab`, a `schedule`, a `timedelta` or a number of seconds.
        zone: Celery's own time zone, in which it reads a `crontab`; None is UTC.

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
        return time_of(schedule.run_every, zone)
    if kind != "crontab":
        raise ValueError(f"a schedule of the kind {kind!r} has no equivalent")
    minute, hour, weekday, day, month = schedule.__reduce__()[1]  # as they were given
    where = {} if zone is None else {"timezone": str(zone)}
    return {"cron": cron_of(minute, hour, day, month, weekday), **where}


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
    texts: list[Any] = [*given] if isinstance(given, list | tuple | set | frozenset) else [given]
    parts = ",".join(map(str, texts)).replace(" ", "").split(",")
    return ",".join(re.sub("[A-Za-z]+", lambda name: name[0][:3], each) for each in parts)


def _minute(at: datetime) -> datetime:
    """Return when the minute begins that begins at a time or next after it."""
    return (at + timedelta(minutes=1) - timedelta.resolution).replace(second=0, microsecond=0)


def _once(at: datetime, now: datetime) -> dict[str, Any]:
    """Return the expression of the minute that begins at a time or next after it; raise `ValueError` if it can't be."""
    if at <= now:
        raise ValueError(f"its only time is over, {at.isoformat()}")
    if at > now + _MOST_AHEAD:
        raise ValueError(f"its only time is too far ahead, {at.isoformat()}: a cron expression names no year")
    begins = _minute(at).astimezone(timezone.utc)
    return {"cron": f"{begins.minute} {begins.hour} {begins.day} {begins.month} *", "timezone": "UTC"}


# Where they come from


def entries_of(beat_schedule: Mapping[str, Mapping[str, Any]], zone: str | None) -> Iterator[Entry]:
    """Yield the entries of Celery's setting `beat_schedule`; `zone` is its setting `timezone`."""
    for name, entry in beat_schedule.items():
        given = dict(entry.get("options") or {})
        options = {key: given.pop(key) for key in ("queue", "expires", "headers") if given.get(key) is not None}

        def read(entry: Mapping[str, Any] = entry, options: dict[str, Any] = options) -> What:
            args, kwargs = entry.get("args") or (), dict[str, Any](entry.get("kwargs") or ())
            time = time_of(entry["schedule"], zone)
            return What(args=args, kwargs=kwargs, options=SendOptions(**options), time=time)

        remark = f"without {', '.join(sorted(given))}" if given else ""
        yield Entry(name=name, task=entry["task"], read=read, remark=remark)


def what_of(row: Any, now: datetime) -> What:
    """Return what a `PeriodicTask` of django-celery-beat sends; raise `ValueError` if that can't be taken over."""
    expires = row.expires or row.expire_seconds
    if (row.exchange or row.routing_key) and not row.queue:
        raise ValueError("it is routed by an exchange or a routing key: give it a queue")
    if row.start_time is not None and row.start_time > now:
        raise ValueError(f"it begins later, at {row.start_time.isoformat()}: put it then")
    if row.expires is not None and row.expires <= now:
        raise ValueError(f"it has expired, at {row.expires.isoformat()}")
    if row.clocked is not None:
        time = _once(row.clocked.clocked_time, now)
        after = _KEPT if row.expire_seconds is None else min(_KEPT, timedelta(seconds=row.expire_seconds))
        limit = _minute(row.clocked.clocked_time) + after  # an instant: else it would run again in a year
        expires = limit if row.expires is None else min(limit, row.expires)
    elif row.one_off:
        raise ValueError("it runs once, at a time that only beat knows: send it with schedule(when, ...)")
    elif row.interval is not None:
        time = time_of(timedelta(**{row.interval.period: row.interval.every}), None)
    elif row.crontab is not None:
        each = row.crontab
        cron = cron_of(each.minute, each.hour, each.day_of_month, each.month_of_year, each.day_of_week)
        time = {"cron": cron, "timezone": each.timezone}
    else:
        raise ValueError("a time by the sun has no equivalent")
    args, kwargs, headers = map(json.loads, (row.args or "[]", row.kwargs or "{}", row.headers or "{}"))
    if (type(args), type(kwargs), type(headers)) != (list, dict, dict):
        raise ValueError("its arguments and headers must be a JSON array and objects")
    options = SendOptions(queue=row.queue or None, expires=expires, headers=headers)
    return What(args=args, kwargs=kwargs, options=options, time=time)


# Putting


def take(bridge: Bridge, entry: Entry, *, dry_run: bool) -> tuple[str, str]:
    """Put a schedule of beat, unless it is there as it would be put, and return what was done, and why.

    `Bridge.schedules` has to know what is there. What can't be put is `left out`; with `dry_run` all is checked, and
    nothing put. Raises `UnsupportedError` and `StoreUnavailable` as `Schedules.put`.
    """
    if entry.task == _NEEDLESS:
        return "needless", "records go by themselves when their time is over"
    schedules = bridge.schedules
    try:
        declaration = bridge.declaration_of(entry.task)
        if declaration is None:
            known = [each.name for each in bridge.declarations()]
            raise ValueError(f"there is no task {entry.task!r}{nearest(entry.task, known)}")
        if entry.name in schedules.declared():
            raise ValueError("the code or the settings have a schedule of this name")
        what = entry.read()
        declaration.check(what.args, what.kwargs)
        if what.options.queue is not None:
            check_known(what.options.queue, bridge.queues())
        call: Call[Any] = Call(declaration=declaration, args=tuple(what.args), kwargs=what.kwargs, options=what.options)
        new = entry.task, timing_of(name=entry.name, **what.time), using_of(what.options), call.encoded()
        old = schedules.planned().get(entry.name)
        if old is not None and new == (old.task, old.timing, old.using, old.encoded):
            return "as before", entry.remark
        if not dry_run:
            schedules.put(entry.name, call, **what.time, enabled=entry.enabled)
        return "to be put" if dry_run else "put", entry.remark
    except (BrokerUnavailable, UnsupportedError):
        raise
    except (TaskBridgeError, TypeError, ValueError) as exc:
        return "left out", str(exc)
