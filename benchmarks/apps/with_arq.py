"""arq. It polls; the pause between looks is set to a fiftieth of its default, which is half a second."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.apps import work

_redis: Final = RedisSettings.from_dsn(work.URL or "redis://")
_loop: Final = asyncio.new_event_loop()
_pools: Final[list[Any]] = []


async def tick(context: Any, payload: str) -> None:
    work.tick()


async def mark_job(context: Any, label: str, due_at: float) -> None:
    work.mark(label, due_at)


class WorkerSettings:
    """What its worker is started with."""

    functions: Final = (tick, mark_job)
    redis_settings: Final = _redis
    max_jobs: Final = 8
    poll_delay: Final = 0.01
    keep_result: Final = 0


async def _pool() -> Any:
    if not _pools:
        _pools.append(await create_pool(_redis))
    return _pools[0]


async def tick_async(payload: str) -> None:
    await (await _pool()).enqueue_job("tick", payload)


async def _each(payload: str, count: int) -> None:
    for _ in range(count):
        await tick_async(payload)


async def _together(payload: str, size: int) -> None:
    await asyncio.gather(*[tick_async(payload) for _ in range(size)])


def tick_each(payload: str, count: int) -> None:
    _loop.run_until_complete(_each(payload, count))


def tick_batches(payload: str, size: int, times: int) -> None:
    _loop.run_until_complete(tick_async(payload))
    for _ in range(times):
        _loop.run_until_complete(_together(payload, size))


async def _mark(label: str) -> None:
    await (await _pool()).enqueue_job("mark_job", label, monotonic())


def mark(label: str, delay_s: float) -> None:
    _loop.run_until_complete(_mark(label))
