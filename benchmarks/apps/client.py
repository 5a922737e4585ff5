"""What the module of each contender can do."""

from __future__ import annotations

from collections.abc import Coroutine
from importlib import import_module
from typing import Any, Protocol, cast


class App(Protocol):
    """A contender's application. Its task `tick(payload)` does nothing; `mark(label, due_at)` writes how late it is."""

    def tick_each(self, payload: str, count: int) -> None:
        """Send `tick` so many times, one after another."""
        ...

    def tick_batches(self, payload: str, size: int, times: int) -> None:
        """Send `tick` in so many batches of this size, in the way that this contender has for many messages."""
        ...

    def mark(self, label: str, delay_s: float) -> None:
        """Send `mark`, to be run now (0) or after so many seconds."""
        ...

    def tick_later(self, payload: str, count: int, delay_s: float) -> None:
        """Send `tick` so many times, each to be run after so many seconds."""
        ...

    def wait_for_stamp(self) -> float:
        """Send `stamp`, which returns the time, wait for its result, and return how old that is, in seconds."""
        ...

    def tick_async(self, payload: str) -> Coroutine[Any, Any, object]:
        """Send `tick` once, from an event loop."""
        ...


def load(name: str) -> App:
    """Return the application of a contender."""
    return cast("App", import_module(f"benchmarks.apps.{name}"))
