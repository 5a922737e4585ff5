"""Coroutines on the process's loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from taskbridge import TimeLimitExceeded
from taskbridge.coroutines import run
from taskbridge.timelimit import limited, raise_in_thread


def test_a_coroutine_over_its_limit_has_ended_when_its_run_has() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            ended.append("cleaned up")

    with pytest.raises(TimeLimitExceeded), limited(0.1):
        run(slow())
    assert ended == ["cleaned up"]


def test_a_coroutine_that_is_interrupted_again_as_it_cleans_up_has_ended_when_its_run_has() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.2)
                ended.append("cleaned up")

    with pytest.raises(TimeLimitExceeded), limited(0.5), limited(0.1):
        run(slow())
    assert ended == ["cleaned up"]


class First(BaseException):
    """Interrupts a run."""


class Second(Exception):
    """Interrupts what the run does about that."""


@pytest.mark.parametrize(("second", "raised"), [(Second, First), (KeyboardInterrupt, KeyboardInterrupt)])
def test_what_interrupts_a_coroutine_first_ends_its_run(
    second: type[BaseException], raised: type[BaseException]
) -> None:
    ended: list[str] = []
    thread_id = threading.get_ident()

    def interrupt(error: type[BaseException]) -> None:
        threading.Thread(target=raise_in_thread, args=(thread_id, error)).start()

    async def slow() -> None:
        interrupt(First)
        try:
            await asyncio.sleep(30)
        finally:
            interrupt(second)
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.2)
                ended.append("cleaned up")

    with pytest.raises(raised):
        run(slow())
    assert ended == ["cleaned up"]


def test_a_coroutine_that_never_began_has_ended_too() -> None:
    begun: list[str] = []
    blocked = threading.Event()

    async def block() -> None:
        blocked.set()
        time.sleep(0.5)  # as it should not

    async def begin() -> None:
        begun.append("it did")

    blocking = threading.Thread(target=run, args=(block(),))
    blocking.start()
    blocked.wait()
    with pytest.raises(TimeLimitExceeded), limited(0.1):
        run(begin())
    blocking.join()
    assert begun == []


def test_the_loop_goes_on_whenever_a_coroutine_is_interrupted() -> None:
    """What is raised in the thread that waits must not arrive while that holds a lock which the loop needs."""

    async def short(number: int) -> int:
        await asyncio.sleep(0)
        return number

    interrupted = 0
    for number in range(400):
        try:
            with limited(0.0002 + number % 20 * 0.00005):
                run(short(number))
        except TimeLimitExceeded:
            interrupted += 1
    assert interrupted
    assert run(short(7)) == 7
