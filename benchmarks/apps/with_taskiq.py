"""taskiq, on a Redis stream: of its Redis brokers the one that acknowledges."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final

from taskiq_redis import RedisStreamBroker

from benchmarks.apps import work

broker: Final[Any] = RedisStreamBroker(work.URL or "redis://", queue_name=work.QUEUE)
_loop: Final = asyncio.new_event_loop()
_started: Final[list[bool]] = []


async def _tick(payload: str) -> None:
    work.tick()


async def _mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


tick: Final[Any] = broker.task(task_name="tick")(_tick)
mark_task: Final[Any] = broker.task(task_name="mark")(_mark_task)


async def _start() -> None:
    if not _started:
        await broker.startup()
        _started.append(True)


async def tick_async(payload: str) -> None:
    await _start()
    await tick.kiq(payload)


async def _each(payload: str, count: int) -> None:
    for _ in range(count):
        await tick_async(payload)


async def _together(payload: str, size: int) -> None:
    await asyncio.gather(*[tick_async(payload) for _ in range(size)])


def tick_each(payload: str, count: int) -> None:
    _loop.run_until_complete(_each(payload, count))


def tick_batches(payload: str, size: int, times: int) -> None:
    _loop.run_until_complete(_start())
    for _ in range(times):
        _loop.run_until_complete(_together(payload, size))


async def _mark(label: str) -> None:
    await _start()
    await mark_task.kiq(label, monotonic())


def mark(label: str, delay_s: float) -> None:
    _loop.run_until_complete(_mark(label))
