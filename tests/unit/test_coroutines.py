"""Coroutines on the process's loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from taskbridge import TimeLimitExceeded
from taskbridge.coroutines import run


def test_a_coroutine_over_its_limit_has_ended_when_its_run_has() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            ended.append("cleaned up")

    with pytest.raises(TimeLimitExceeded):
        run(slow(), limit_s=0.1)
    assert ended == ["cleaned up"]


def test_a_coroutine_that_never_began_has_ended_too() -> None:
    begun: list[str] = []
    blocked = threading.Event()

    async def block() -> None:
        blocked.set()
        time.sleep(0.5)  # as it should not

    async def begin() -> None:
        begun.append("it did")

    blocking = threading.Thread(target=run, args=(block(),), kwargs={"limit_s": None})
    blocking.start()
    blocked.wait()
    with pytest.raises(TimeLimitExceeded):
        run(begin(), limit_s=0.1)
    blocking.join()
    assert begun == []
