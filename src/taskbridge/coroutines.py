"""One event loop a process, in a thread of its own, for `async def` tasks (rule C).

Only the runner imports this module, and only when the first coroutine runs: asyncio takes 30 ms to import.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import copy_context
from time import monotonic
from typing import Any

from taskbridge.exceptions import TimeLimitExceeded

_SLICE_S = 0.1
"""How long a waiting thread sleeps at a time: an exception raised in it from outside is seen only in between."""

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def run(coroutine: Coroutine[Any, Any, Any], *, limit_s: float | None) -> Any:
    """Run a coroutine on the process's loop, in a copy of this thread's context, and return its result.

    Args:
        coroutine: The user's; its own exceptions are raised here.
        limit_s: Seconds after which it is cancelled; None is no limit.

    Raises:
        TimeLimitExceeded: It took longer than that.
    """
    loop = _loop()
    outcome: Future[Any] = Future()
    started: list[asyncio.Task[Any]] = []

    def start() -> None:
        task = loop.create_task(coroutine)  # inherits the context that this callback runs in
        started.append(task)
        task.add_done_callback(lambda done: _finish(done, outcome))

    loop.call_soon_threadsafe(start, context=copy_context())
    try:
        return _wait(outcome, limit_s)
    except FutureTimeoutError:
        raise TimeLimitExceeded(f"it ran longer than {limit_s:g} s") from None
    finally:
        if not outcome.done():
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])


def _finish(task: asyncio.Task[Any], outcome: Future[Any]) -> None:
    if outcome.done():
        return
    if task.cancelled():
        outcome.set_exception(asyncio.CancelledError("the task cancelled itself"))
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


def _wait(outcome: Future[Any], limit_s: float | None) -> Any:
    deadline = None if limit_s is None else monotonic() + limit_s
    while True:
        left_s = _SLICE_S if deadline is None else min(_SLICE_S, deadline - monotonic())
        try:
            return outcome.result(timeout=max(0.0, left_s))
        except FutureTimeoutError:
            if outcome.done():  # the user's own TimeoutError, the same class since Python 3.11
                return outcome.result()
            if deadline is not None and monotonic() >= deadline:
                raise


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())  # a forked child needs a loop, and a thread, of its own
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="taskbridge-loop", daemon=True).start()
        return loop
