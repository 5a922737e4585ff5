"""SAQ."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final

from saq import Queue

from benchmarks.apps import work

queue: Final[Any] = Queue.from_url(work.URL or "redis://", name=work.QUEUE)
_loop: Final = asyncio.new_event_loop()
_connected: Final[list[bool]] = []


async def tick(context: Any, *, payload: str) -> None:
    work.tick()


async def mark_job(context: Any, *, label: str, due_at: float) -> None:
    work.mark(label, due_at)


settings: Final[Any] = {"queue": queue, "functions": [tick, mark_job], "concurrency": 8}


async def _connect() -> None:
    if not _connected:
        await queue.connect()
        _connected.append(True)


async def tick_async(payload: str) -> None:
    await _connect()
    await queue.enqueue("tick", payload=payload, ttl=-1)


async def _each(payload: str, count: int) -> None:
    for _ in range(count):
        await tick_async(payload)


async def _together(payload: str, size: int) -> None:
    await asyncio.gather(*[tick_async(payload) for _ in range(size)])


def tick_each(payload: str, count: int) -> None:
    _loop.run_until_complete(_each(payload, count))


def tick_batches(payload: str, size: int, times: int) -> None:
    _loop.run_until_complete(_connect())
    for _ in range(times):
        _loop.run_until_complete(_together(payload, size))


async def _mark(label: str) -> None:
    await _connect()
    await queue.enqueue("mark_job", label=label, due_at=monotonic(), ttl=-1)


def mark(label: str, delay_s: float) -> None:
    _loop.run_until_complete(_mark(label))
