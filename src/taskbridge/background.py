"""Threads beside those that run tasks: those that a process keeps, and those that act for who must not be held up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskbridge import locks

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

_SLICE_S: Final = 0.1  # how long a thread sleeps at a time while it waits: only in between, exceptions are raised in it


async def in_thread(act: Callable[[], T]) -> T:
    """Return what an act returns, without blocking the event loop."""
    import asyncio  # here, for a program that doesn't await need not import it (30 ms)

    return await asyncio.to_thread(act)


def in_time(name: str, act: Callable[[], T], discard: Callable[[T], object], *, left_s: Callable[[], float]) -> T:
    """Return what an act returns, done by a thread, so that no part of it holds the caller up for longer than allowed.

    What it raises is raised here, and `TimeoutError` if it takes longer.

    Args:
        name: What the thread is called, after `taskbridge-`.
        act: What to do, such as to look a name up and connect; it may never end.
        discard: Is given what the act returns if that is not wanted any more; it may be called in either thread.
        left_s: Returns how many more seconds the act may take. It is called at least every 0.1 s, and may raise.
    """
    with locks.no_fork():
        from concurrent.futures import Future  # here, for a process that only declares tasks needs none

    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = act()
        except BaseException as exc:
            outcome.set_exception(exc)
        else:
            outcome.set_result(result)

    def drop(late: Future[T]) -> None:
        if late.exception() is None:
            discard(late.result())

    try:
        threading.Thread(target=run, name=f"taskbridge-{name}", daemon=True).start()
    except RuntimeError:  # no thread is to be had, as when the interpreter ends
        run()
    try:
        if not has_come(outcome, left_s):
            raise TimeoutError(f"{name} took too long")
        return outcome.result()
    except BaseException:
        outcome.add_done_callback(drop)
        raise


def has_come(outcome: Future[Any], left_s: Callable[[], float]) -> bool:
    """Wait for an outcome, in which exceptions can be raised from outside; return whether it came while time was left.

    `left_s` is called at least every 0.1 s, and may raise.
    """
    from concurrent.futures import wait  # as in `in_time`

    while not outcome.done():
        left = left_s()
        if left <= 0:
            return False
        wait([outcome], min(left, _SLICE_S))
    return True


class Background:
    """A daemon thread `taskbridge-NAME` from `start` to `stop`, which waits `join_s` at most; it may start again."""

    def __init__(self, name: str, *, join_s: float) -> None:
        self._name = f"taskbridge-{name}"
        self._join_s = join_s
        self._starting = locks.Lock()
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None

    def run(self, stop: threading.Event) -> None:
        """Do the work of the thread until `stop` is set; a subclass says what that is."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread, unless it runs; in a forked child it doesn't."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._stop = locks.Event()
                thread = threading.Thread(target=self.run, args=(self._stop,), name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._join_s)
            self._thread = None
