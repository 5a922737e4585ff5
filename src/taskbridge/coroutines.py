"""One event loop a process, in a thread of its own, for `async def` tasks and what is asynchronous around others.

Only the runner imports this module, and only when the first coroutine runs: asyncio takes 30 ms to import.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import Context, copy_context
from math import inf
from typing import Any, Final

from taskbridge.background import has_come
from taskbridge.locks import PerProcess
from taskbridge.timelimit import taken_by_hand


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the process's loop, in a copy of this thread's context, and return its result.

    What is raised in this thread meanwhile (for the run takes too long, is cancelled, or its worker stops) cancels it,
    and is raised when it has ended: what it does about its being cancelled, as in a `finally`, is part of the run.
    """
    with _started(coroutine) as outcome:
        _wait(outcome)
    return outcome.result()


@contextmanager
def entered(manager: AbstractAsyncContextManager[Any]) -> Generator[None]:
    """Enter an asynchronous context manager around a block in this thread, and leave it, in one task of the loop.

    The context variables that it sets are set in this thread for the block. The block's error is raised in it, too.
    """
    inside: Future[Context] = Future()
    ended: Future[BaseException | None] = Future()

    async def hold() -> None:
        async with manager:
            inside.set_result(copy_context())
            if (error := await asyncio.wrap_future(ended)) is not None:
                raise error

    def never_inside(outcome: Future[Any]) -> None:
        if not inside.done():
            inside.set_exception(outcome.exception())

    with _started(hold()) as outcome:
        outcome.add_done_callback(never_inside)
        _wait(inside)
        found = [(each, value) for each, value in inside.result().items() if each.get(_UNSET) is not value]
        tokens = [(each, each.set(value)) for each, value in found]
        try:
            yield
        except BaseException as exc:
            ended.set_result(exc)
        else:
            ended.set_result(None)
        finally:
            for variable, token in tokens:
                variable.reset(token)
        _wait(outcome)
    outcome.result()


_UNSET: Final[Any] = object()


@contextmanager
def _started(coroutine: Coroutine[Any, Any, Any]) -> Generator[Future[Any]]:
    """Start a coroutine on the loop, and give its outcome; if it has not ended with the block, it is cancelled.

    That is so if something was raised in this thread, which is raised when it has ended.
    """
    outcome: Future[Any] = Future()
    tasks: list[asyncio.Task[Any]] = []
    begun_on: asyncio.AbstractEventLoop | None = None

    def start() -> None:
        task = asyncio.get_running_loop().create_task(_capture(coroutine, outcome))  # has this callback's context
        task.add_done_callback(lambda _: _end_unstarted(coroutine, outcome))
        tasks.append(task)

    try:
        with taken_by_hand():  # a loop half made would be left behind, and so would a coroutine begun unseen
            loop = _loop.get()
            loop.call_soon_threadsafe(start, context=copy_context())
            begun_on = loop
        yield outcome
    except BaseException:
        if begun_on is None:
            coroutine.close()
        else:
            _end(outcome, begun_on, lambda: [task.cancel() for task in tasks])
        raise


def _end(outcome: Future[Any], loop: asyncio.AbstractEventLoop, cancel: Callable[[], object]) -> None:
    """Cancel what has not ended, once more for each exception that is raised here until it has.

    These are dropped, for what was raised first says why it is to end; but for one that is to end the program.
    """
    ends_program: BaseException | None = None
    while not outcome.done() and not loop.is_closed():
        try:
            loop.call_soon_threadsafe(cancel)
            _wait(outcome)
        except BaseException as exc:
            ends_program = exc if isinstance(exc, (KeyboardInterrupt, SystemExit)) else ends_program
    if ends_program is not None:
        raise ends_program


def _wait(outcome: Future[Any]) -> None:
    """Wait for an outcome, unless something is raised in this thread meanwhile."""

    def left_s() -> float:
        look()
        return inf

    with taken_by_hand() as look:
        has_come(outcome, left_s)


async def _capture(coroutine: Coroutine[Any, Any, Any], outcome: Future[Any]) -> None:
    """Await a coroutine and keep its outcome, whatever it is: a SystemExit that gets out ends the loop."""
    try:
        result = await coroutine
    except BaseException as exc:
        outcome.set_exception(exc)
    else:
        outcome.set_result(result)


def _end_unstarted(coroutine: Coroutine[Any, Any, Any], outcome: Future[Any]) -> None:
    """Set the outcome of a coroutine that was cancelled before its first step, which nobody else does."""
    if not outcome.done():
        coroutine.close()
        outcome.set_exception(asyncio.CancelledError())


def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="taskbridge-loop", daemon=True).start()
    return loop


_loop: Final = PerProcess(_started_loop)
