"""threadmill, a back end on Redis for the tasks of Django 6; it keeps a result of each, and has no batches."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import Any, Final

import django
from django.apps import apps
from django.utils import timezone

from benchmarks.apps import work

if not apps.ready:  # a sender; the worker has set Django up
    django.setup()

from django.tasks import task  # it reads the settings


@task()
def tick(payload: str) -> None:
    work.tick()


@task()
def mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


_tick: Final[Any] = tick
_mark: Final[Any] = mark_task


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        _tick.enqueue(payload)


def tick_batches(payload: str, size: int, times: int) -> None:
    tick_each(payload, size * times)


def mark(label: str, delay_s: float) -> None:
    run_after = timezone.now() + timedelta(seconds=delay_s) if delay_s else None
    _mark.using(run_after=run_after).enqueue(label, monotonic() + delay_s)
