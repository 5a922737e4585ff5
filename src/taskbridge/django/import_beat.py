"""`manage.py taskbridge import_beat`: schedules of Celery beat become schedules that are put at run time."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.apps.registry import Apps
from django.conf import settings
from django.db import connections, models, router
from django.utils import timezone
from django.utils.module_loading import import_string

from taskbridge.bridge import Bridge, default_bridge
from taskbridge.cli import command as cli
from taskbridge.cli.output import table
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError, UnsupportedError, nearest
from taskbridge.routing import check_known
from taskbridge.schedules.from_celery import cron_of, time_of
from taskbridge.schedules.plan import timing_of
from taskbridge.tasks import Call, SendOptions

_NEEDLESS: Final = "celery.backend_cleanup"
"""The task that beat sends by itself."""

_MOST_AHEAD: Final = timedelta(days=360)
"""How far ahead a run at one time may be: a cron expression names no year."""

_KEPT: Final = timedelta(days=300)
"""How long the message of such a run waits for a worker at most, which must be less than a year."""


class _Beat(models.Model):
    """The tables of django-celery-beat 2.9, whether it is installed or not."""

    class Meta:
        abstract = True
        app_label = "django_celery_beat"
        apps = Apps()
        managed = False


class IntervalSchedule(_Beat):
    """So many periods."""

    every: models.IntegerField[int, int] = models.IntegerField()
    period: models.TextField[str, str] = models.TextField()


class CrontabSchedule(_Beat):
    """A crontab in a zone."""

    minute: models.TextField[str, str] = models.TextField()
    hour: models.TextField[str, str] = models.TextField()
    day_of_week: models.TextField[str, str] = models.TextField()
    day_of_month: models.TextField[str, str] = models.TextField()
    month_of_year: models.TextField[str, str] = models.TextField()
    timezone: models.TextField[str, str] = models.TextField()


class ClockedSchedule(_Beat):
    """One time."""

    clocked_time: models.DateTimeField[datetime, datetime] = models.DateTimeField()


class PeriodicTask(_Beat):
    """What is sent, and by which schedule."""

    name: models.TextField[str, str] = models.TextField()
    task: models.TextField[str, str] = models.TextField()
    interval: models.ForeignKey[Any, Any] = models.ForeignKey(IntervalSchedule, models.DO_NOTHING, null=True)
    crontab: models.ForeignKey[Any, Any] = models.ForeignKey(CrontabSchedule, models.DO_NOTHING, null=True)
    clocked: models.ForeignKey[Any, Any] = models.ForeignKey(ClockedSchedule, models.DO_NOTHING, null=True)
    args: models.TextField[str, str] = models.TextField()
    kwargs: models.TextField[str, str] = models.TextField()
    headers: models.TextField[str, str] = models.TextField()
    queue: models.TextField[str | None, str | None] = models.TextField(null=True)
    exchange: models.TextField[str | None, str | None] = models.TextField(null=True)
    routing_key: models.TextField[str | None, str | None] = models.TextField(null=True)
    priority: models.IntegerField[int | None, int | None] = models.IntegerField(null=True)
    expires: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    expire_seconds: models.IntegerField[int | None, int | None] = models.IntegerField(null=True)
    one_off: models.BooleanField[bool, bool] = models.BooleanField()
    start_time: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    enabled: models.BooleanField[bool, bool] = models.BooleanField()


@dataclass(frozen=True, kw_only=True, slots=True)
class _What:
    """What a schedule sends and when, as `Schedules.put` takes it: `time` is `cron` and `timezone`, or `every`."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: SendOptions
    time: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A schedule of beat; `read` raises why it can't be taken over."""

    name: str
    task: str
    read: Callable[[], _What]
    enabled: bool = True
    remark: str = ""


def _bridge(arguments: Namespace) -> Bridge:
    bridge = default_bridge()
    return bridge if bridge.settings.store is not None else cli.checked_server(bridge, "a worker")


@cli.command(
    "import_beat",
    "take over the schedules of Celery beat",
    cli.argument("--dry-run", action="store_true", help="say what would be done, and do nothing"),
    cli.argument(
        "--namespace", default="CELERY", help="what the names of Celery's settings begin with; default: CELERY"
    ),
    cli.argument(
        "--celery", metavar="APP", help="the Celery app whose beat_schedule counts too, such as shop.celery.app"
    ),
    cli.argument(
        "--database", metavar="ALIAS", help="where the tables of django-celery-beat are; default: the routers'"
    ),
    cli.JSON,
    opens=_bridge,
)
def import_beat(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Put the schedules of django-celery-beat's tables and of CELERY_BEAT_SCHEDULE as schedules of taskbridge.

    Each keeps its name, task, arguments, queue, expiry and whether it is enabled. What can't be taken over stays where
    it is, with a reason, and the exit code is 1. What is there already as it would be put is left alone, so that a
    second run changes nothing.

      python manage.py taskbridge import_beat --dry-run
      python manage.py taskbridge import_beat

    An interval is counted from 1970, and not from the last run.
    """
    bridge.schedules.follow(at_once=True)
    entries = [*_of_settings(arguments), *_of_tables(arguments.database)]
    rows = [(entry.name, entry.task, *_taken(bridge, entry, arguments.dry_run)) for entry in entries]
    text = table(("schedule", "task", "what", "why"), rows) if rows else "Celery beat has no schedules here"
    data = [dict(zip(("schedule", "task", "what", "why"), row, strict=True)) for row in rows]
    return cli.Output(text=text, data=data, code=int(any(row[2] == "left out" for row in rows)))


def _taken(bridge: Bridge, entry: _Entry, is_dry: bool) -> tuple[str, str]:
    """Take a schedule over, and return what was done, and why or what else is to be known."""
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
        new = entry.task, timing_of(name=entry.name, **what.time), asdict(what.options), call.encoded()
        old = schedules.planned().get(entry.name)
        if old is not None and new == (old.task, old.timing, old.using, old.encoded):
            return "as before", entry.remark
        if not is_dry:
            schedules.put(entry.name, call, **what.time, enabled=entry.enabled)
        return "to be put" if is_dry else "put", entry.remark
    except (BrokerUnavailable, UnsupportedError):
        raise
    except (TaskBridgeError, TypeError, ValueError) as exc:
        return "left out", str(exc)


def _of_settings(arguments: Namespace) -> Iterator[_Entry]:
    prefix = f"{arguments.namespace}_" if arguments.namespace else ""
    found = getattr(settings, f"{prefix}BEAT_SCHEDULE", None) or getattr(settings, "CELERYBEAT_SCHEDULE", {})
    zone = getattr(settings, f"{prefix}TIMEZONE", None)
    if arguments.celery is not None:
        celery = import_string(arguments.celery).conf
        found, zone = {**found, **celery.beat_schedule}, zone or celery.timezone
    for name, entry in found.items():
        given = dict(entry.get("options") or {})
        options = {key: given.pop(key) for key in ("queue", "expires", "headers") if given.get(key) is not None}

        def read(entry: Mapping[str, Any] = entry, options: dict[str, Any] = options) -> _What:
            args, kwargs = entry.get("args") or (), entry.get("kwargs") or {}
            time = time_of(entry["schedule"], zone)
            return _What(args=args, kwargs=kwargs, options=SendOptions(**options), time=time)

        remark = f"without {', '.join(sorted(given))}" if given else ""
        yield _Entry(name=name, task=entry["task"], read=read, remark=remark)


def _of_tables(alias: str | None) -> Iterator[_Entry]:
    alias = alias or router.db_for_read(PeriodicTask)
    if PeriodicTask._meta.db_table not in connections[alias].introspection.table_names():
        return
    rows = PeriodicTask._default_manager.using(alias).select_related("interval", "crontab", "clocked")
    for row in rows.order_by("name"):
        remark = "" if row.priority is None else "without its priority: @task(priority=...)"
        yield _Entry(name=row.name, task=row.task, read=partial(_what, row), enabled=row.enabled, remark=remark)


def _what(row: PeriodicTask) -> _What:
    now, expires = timezone.now(), row.expires or row.expire_seconds
    if (row.exchange or row.routing_key) and not row.queue:
        raise ValueError("it is routed by an exchange or a routing key: give it a queue")
    if row.start_time is not None and row.start_time > now:
        raise ValueError(f"it begins later, at {row.start_time.isoformat()}: put it then")
    if row.expires is not None and row.expires <= now:
        raise ValueError(f"it has expired, at {row.expires.isoformat()}")
    if row.clocked is not None:
        time = _once(row.clocked.clocked_time, now)
        expires = expires or row.clocked.clocked_time + _KEPT  # else it would run again in a year
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
    args, kwargs, headers = (
        json.loads(row.args or "[]"),
        json.loads(row.kwargs or "{}"),
        json.loads(row.headers or "{}"),
    )
    if (type(args), type(kwargs), type(headers)) != (list, dict, dict):
        raise ValueError("its arguments and headers must be a JSON array and objects")
    options = SendOptions(queue=row.queue or None, expires=expires, headers=headers)
    return _What(args=args, kwargs=kwargs, options=options, time=time)


def _once(at: datetime, now: datetime) -> dict[str, Any]:
    """Return the expression of the minute that begins at a time or next after it; raise `ValueError` if it can't be."""
    if at <= now:
        raise ValueError(f"its only time is over, {at.isoformat()}")
    if at > now + _MOST_AHEAD:
        raise ValueError(f"its only time is too far ahead, {at.isoformat()}: a cron expression names no year")
    begins = (at + timedelta(minutes=1) - timedelta.resolution).astimezone(timezone.get_fixed_timezone(0))
    return {"cron": f"{begins.minute} {begins.hour} {begins.day} {begins.month} *", "timezone": "UTC"}
