"""RQ."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from redis import Redis
from rq import Queue

from benchmarks.apps import work

queue: Final[Any] = Queue(work.QUEUE, connection=Redis.from_url(work.URL))


def tick(payload: str) -> None:
    work.tick()


def mark_job(label: str, due_at: float) -> None:
    work.mark(label, due_at)


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        queue.enqueue(tick, payload, result_ttl=0)


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        queue.enqueue_many([Queue.prepare_data(tick, (payload,), result_ttl=0) for _ in range(size)])


def mark(label: str, delay_s: float) -> None:
    queue.enqueue(mark_job, label, monotonic(), result_ttl=0)
