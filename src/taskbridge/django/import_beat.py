"""`manage.py taskbridge import_beat`: schedules of Celery beat become schedules that are put at run time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
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
from taskbridge.schedules.from_celery import Entry, entries_of, take, what_of

_apps: Final = Apps()


def _table(name: str, /, **columns: Any) -> Any:
    """Return a model of a table of django-celery-beat 2.9, whether that is installed or not."""
    meta = type("Meta", (), {"app_label": "django_celery_beat", "apps": _apps, "managed": False})
    return type(name, (models.Model,), {"__module__": __name__, "Meta": meta, **columns})


_interval: Final = _table("IntervalSchedule", every=models.IntegerField(), period=models.TextField())
_crontab: Final = _table(
    "CrontabSchedule",
    **{
        name: models.TextField()
        for name in ("minute", "hour", "day_of_week", "day_of_month", "month_of_year", "timezone")
    },
)
_clocked: Final = _table("ClockedSchedule", clocked_time=models.DateTimeField())
_periodic: Final = _table(
    "PeriodicTask",
    interval=models.ForeignKey(_interval, models.DO_NOTHING, null=True),
    crontab=models.ForeignKey(_crontab, models.DO_NOTHING, null=True),
    clocked=models.ForeignKey(_clocked, models.DO_NOTHING, null=True),
    one_off=models.BooleanField(),
    enabled=models.BooleanField(),
    **{name: models.TextField() for name in ("name", "task", "args", "kwargs", "headers")},
    **{name: models.TextField(null=True) for name in ("queue", "exchange", "routing_key")},
    **{name: models.IntegerField(null=True) for name in ("priority", "expire_seconds")},
    **{name: models.DateTimeField(null=True) for name in ("expires", "start_time")},
)


def _bridge(arguments: Namespace) -> Bridge:
    bridge = default_bridge()
    return bridge if bridge.settings.store is not None else cli.checked_server(bridge, "a worker")


@cli.command(
    "take over the schedules of Celery beat",
    cli.flag("--dry-run", "say what would be done, and do nothing"),
    cli.argument(
        "--namespace", "NAMESPACE", "what the names of Celery's settings begin with; default: CELERY", default="CELERY"
    ),
    cli.argument("--celery", "APP", "the Celery app whose beat_schedule counts too, such as shop.celery.app"),
    cli.argument("--database", "ALIAS", "where the tables of django-celery-beat are; default: the routers'"),
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
    entries = {each.name: each for each in (*_of_settings(arguments), *_of_tables(arguments.database))}  # rows win
    rows = [(each.name, each.task, *take(bridge, each, dry_run=arguments.dry_run)) for each in entries.values()]
    text = table(("schedule", "task", "what", "why"), rows) if rows else "Celery beat has no schedules here"
    data = [dict(zip(("schedule", "task", "what", "why"), row, strict=True)) for row in rows]
    return cli.Output(text=text, data=data, code=int(any(row[2] == "left out" for row in rows)))


def _of_settings(arguments: Namespace) -> Iterable[Entry]:
    prefix = f"{arguments.namespace}_" if arguments.namespace else ""
    found = getattr(settings, f"{prefix}BEAT_SCHEDULE", None) or getattr(settings, "CELERYBEAT_SCHEDULE", {})
    zone = getattr(settings, f"{prefix}TIMEZONE", None)
    if arguments.celery is not None:
        celery = import_string(arguments.celery).conf
        found, zone = {**found, **celery.beat_schedule}, zone or celery.timezone
    return entries_of(found, zone)


def _of_tables(alias: str | None) -> Iterator[Entry]:
    alias = alias or router.db_for_read(_periodic)
    if _periodic._meta.db_table not in connections[alias].introspection.table_names():
        return
    rows = _periodic._default_manager.using(alias).select_related("interval", "crontab", "clocked")
    for row in rows.order_by("name"):
        remark = "" if row.priority is None else "without its priority: @task(priority=...)"
        yield Entry(
            name=row.name, task=row.task, read=partial(what_of, row, timezone.now()), enabled=row.enabled, remark=remark
        )
