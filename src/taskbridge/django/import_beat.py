"""`manage.py taskbridge import_beat`: schedules of Celery beat become schedules that are put at run time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from django.apps.registry import Apps
from django.conf import settings
from django.db import connections, models, router
from django.utils import timezone
from django.utils.module_loading import import_string

from taskbridge.bridge import Bridge, default_bridge
from taskbridge.cli import command as cli
from taskbridge.cli.output import table
from taskbridge.schedules.from_celery import Entry, entries_of, take, what_of


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
    alias = alias or router.db_for_read(PeriodicTask)
    if PeriodicTask._meta.db_table not in connections[alias].introspection.table_names():
        return
    rows = PeriodicTask._default_manager.using(alias).select_related("interval", "crontab", "clocked")
    for row in rows.order_by("name"):
        remark = "" if row.priority is None else "without its priority: @task(priority=...)"
        yield Entry(
            name=row.name, task=row.task, read=partial(what_of, row, timezone.now()), enabled=row.enabled, remark=remark
        )
