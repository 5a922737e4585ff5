"""Huey; its blocking Redis storage, without results. It does not acknowledge: a crash loses what a worker has."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from huey import RedisHuey

from benchmarks.apps import work

huey: Final[Any] = RedisHuey(work.QUEUE, url=work.URL, results=False)


@huey.task()
def tick(payload: str) -> None:
    work.tick()


@huey.task()
def mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        tick(payload)


def tick_batches(payload: str, size: int, times: int) -> None:
    tick_each(payload, size * times)  # it has no other way


def mark(label: str, delay_s: float) -> None:
    mark_task(label, monotonic())
