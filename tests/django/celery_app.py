"""A Celery app with a schedule of its own, as a project has one that moves."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.schedules import crontab

app: Final[Any] = Celery("before", set_as_current=False)
app.conf.timezone = "Asia/Tokyo"
app.conf.beat_schedule = {
    "of-app": {"task": "tests.django.site.office.tasks.report", "schedule": crontab(hour=8, minute=0), "args": (7,)}
}
