"""The office's tasks, which the admin shows and schedules send."""

from __future__ import annotations

import time
from datetime import timedelta

from taskbridge import RetryPolicy, current, task

reported: list[tuple[int, str]] = []


@task(cron="0 3 * * *")
def tidy() -> None:
    """It has nothing to tidy up."""


@task
def report(number: int, *, title: str = "") -> str:
    reported.append((number, title))
    return f"report {number}"


@task
def remind(wait: timedelta) -> None:
    """It takes what JSON has not."""


@task(retry=RetryPolicy.never())
def fail(text: str) -> None:
    raise ValueError(text)


@task
def linger() -> None:
    while not current().cancelled:
        time.sleep(0.02)
