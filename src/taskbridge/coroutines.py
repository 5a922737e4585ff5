"""One event loop a process, in a thread of its own, for `async def` tasks (rule C).

Only the runner imports this module, and only when the first coroutine runs: asyncio takes 30 ms to import.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import Any, Final

from taskbridge.background import has_come
from taskbridge.exceptions import TimeLimitExceeded
from taskbridge.locks import PerProcess


def run(coroutine: Coroutine[Any, Any, Any], *, limit_s: float | None) -> Any:
    """Run a coroutine on the process's loop, in a copy of this thread's context, and return its result.

    Args:
        coroutine: The user's; its own exceptions are raised here.
        limit_s: Seconds after which it is cancelled; None is no limit.

    Raises:
        TimeLimitExceeded: It took longer than that. It has ended by now: what it does about its being cancelled, as in
            a `finally`, is part of the run.
    """
    loop = _loop.get()
    outcome: Future[Any] = Future()
    started: list[asyncio.Task[Any]] = []

    def start() -> None:
        task = loop.create_task(_capture(coroutine, outcome))  # inherits the context of this callback
        task.add_done_callback(lambda _: _end_unstarted(coroutine, outcome))
        started.append(task)

    def cancel() -> None:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])

    deadline = inf if limit_s is None else monotonic() + limit_s
    loop.call_soon_threadsafe(start, context=copy_context())
    try:
        if not has_come(outcome, lambda: deadline - monotonic()):
            cancel()
            has_come(outcome, lambda: inf)
            raise TimeLimitExceeded(f"it ran longer than {limit_s:g} s")
        return outcome.result()
    finally:
        if not outcome.done():  # something was raised in this thread: the worker stops
            cancel()
            has_come(outcome, lambda: inf)


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
