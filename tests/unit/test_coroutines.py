"""Coroutines on the process's loop."""

from __future__ import annotations

import asyncio
import errno
import inspect
import threading
import time
from typing import Any

import pytest

from taskbridge import TimeLimitExceeded, coroutines
from taskbridge.coroutines import run
from taskbridge.locks import PerProcess
from taskbridge.timelimit import limited, raise_in_thread

BEGUN_S = 2.0
"""A limit that is over long after a coroutine has begun, also on a machine that has much else to do."""


def test_a_coroutine_over_its_limit_has_ended_when_its_run_has() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            ended.append("cleaned up")

    with pytest.raises(TimeLimitExceeded), limited(BEGUN_S):
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

    with pytest.raises(TimeLimitExceeded), limited(2 * BEGUN_S), limited(BEGUN_S):
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


def test_a_loop_is_made_whole_though_its_first_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[asyncio.AbstractEventLoop] = []
    new_event_loop, thread_id = asyncio.new_event_loop, threading.get_ident()

    def interrupted_loop() -> asyncio.AbstractEventLoop:
        raise_in_thread(thread_id, First)
        made.append(new_event_loop())
        return made[-1]

    async def own_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    monkeypatch.setattr(coroutines, "_loop", PerProcess(coroutines._started_loop))
    monkeypatch.setattr(asyncio, "new_event_loop", interrupted_loop)
    with pytest.raises(First):
        run(own_loop())
    assert [run(own_loop())] == made
    end(made[0])


def end(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        time.sleep(0.01)
    loop.close()


def test_a_coroutine_is_closed_where_no_loop_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop() -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(coroutines, "_loop", PerProcess(coroutines._started_loop))
    monkeypatch.setattr(asyncio, "new_event_loop", no_loop)
    coroutine = asyncio.sleep(0)
    with pytest.raises(OSError, match="Too many open files"):
        run(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_a_coroutine_that_never_began_has_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    told: list[Any] = []
    blocked, go = threading.Event(), threading.Event()
    monkeypatch.setattr(coroutines, "_loop", PerProcess(coroutines._started_loop))
    loop = coroutines._loop.get()
    call_soon = loop.call_soon_threadsafe

    async def block() -> None:
        blocked.set()
        go.wait(60)  # as it should not

    async def begin() -> None:
        begun.append("it did")

    def noted(callback: Any, *args: Any, **options: Any) -> Any:
        handle = call_soon(callback, *args, **options)
        told.append(callback)
        if len(told) == 2:  # it was told to begin, and to be cancelled
            go.set()
        return handle

    blocking = threading.Thread(target=run, args=(block(),))
    blocking.start()
    blocked.wait()
    with monkeypatch.context() as noting:
        noting.setattr(loop, "call_soon_threadsafe", noted)
        with pytest.raises(TimeLimitExceeded), limited(BEGUN_S):
            run(begin())
    blocking.join()
    assert begun == []
    end(loop)


def test_the_loop_goes_on_whenever_a_coroutine_is_interrupted() -> None:
    """What is raised in the thread that waits must not arrive while that holds a lock which the loop needs."""

    async def short(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        return number

    interrupted = 0
    for number in range(400):
        coroutine = short(number // 20 if number % 10 else 10**9)  # most end about then, a few would never
        try:
            with limited(0.0002 + number % 20 * 0.00005):
                run(coroutine)
        except TimeLimitExceeded:
            interrupted += 1
            coroutine.close()  # for it may have been raised before the call
    assert interrupted >= 40
    assert run(short(7)) == 7
