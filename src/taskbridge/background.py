"""Threads beside those that run tasks: those that a process keeps, and those that act for an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from taskbridge import locks

T = TypeVar("T")


async def in_thread(act: Callable[[], T]) -> T:
    """Return what an act returns, without blocking the event loop."""
    import asyncio  # here, for a program that doesn't await need not import it (30 ms)

    return await asyncio.to_thread(act)


class Background:
    """A daemon thread, from `start` to `stop`; it may be started again then.

    Args:
        name: What the thread is called, after `taskbridge-`.
        join_s: How long `stop` waits for it at most.
    """

    def __init__(self, name: str, *, join_s: float) -> None:
        self._name = f"taskbridge-{name}"
        self._join_s = join_s
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None

    def run(self, stop: threading.Event) -> None:
        """Do the work of the thread until `stop` is set; a subclass says what that is."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        if self._thread is None:
            self._stop = locks.Event()
            self._thread = threading.Thread(target=self.run, args=(self._stop,), name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._join_s)
            self._thread = None
