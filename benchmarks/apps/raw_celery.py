"""Celery alone, set to keep what taskbridge promises: late acknowledgement, fair prefetch, confirms on RabbitMQ."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from celery import Celery, chord, group

from benchmarks.apps import work

app: Final[Any] = Celery("bench", broker=work.URL, backend=work.URL if work.RESULTS else None)
app.conf.update(
    task_ignore_result=not work.RESULTS,
    task_acks_late=not work.EARLY,
    worker_prefetch_multiplier=4 if work.EARLY else 1,
    task_default_queue=work.QUEUE,
    broker_connection_retry_on_startup=True,
)
if work.URL.startswith("amqp"):
    app.conf.broker_transport_options = {"confirm_publish": work.CONFIRMS}
if work.TRACED:
    work.trace()


@app.task(name="tick")
def tick(payload: str) -> None:
    work.tick()


@app.task(name="mark")
def mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


@app.task(name="stamp")
def stamp() -> float:
    return monotonic()


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        tick.delay(payload)


def tick_batches(payload: str, size: int, times: int) -> None:
    ways = {"group": _as_group, "producer": _with_one_producer}
    send = ways.get(work.OPTION, tick_each)
    for _ in range(times):
        send(payload, size)


def _as_group(payload: str, size: int) -> None:
    group([tick.s(payload) for _ in range(size)]).apply_async()


def _with_one_producer(payload: str, size: int) -> None:
    with app.producer_or_acquire() as producer:
        for _ in range(size):
            tick.apply_async((payload,), producer=producer)


@app.task(name="tick.last")
def last_tick(payload: str) -> None:
    work.tick_last()


@app.task(name="followed")
def followed() -> None:
    work.followed()


def tick_group(payload: str, count: int) -> None:
    chord(last_tick.si(payload) for _ in range(count))(followed.si())


def mark(label: str, delay_s: float) -> None:
    mark_task.apply_async((label, monotonic() + delay_s), countdown=delay_s or None)


def tick_later(payload: str, count: int, delay_s: float) -> None:
    for _ in range(count):
        tick.apply_async((payload,), countdown=delay_s)


def wait_for_stamp() -> float:
    done_at: float = stamp.delay().get(timeout=work.WAIT_S)
    return monotonic() - done_at


async def tick_async(payload: str) -> None:
    tick.delay(payload)  # Celery has no other way: it blocks the loop
