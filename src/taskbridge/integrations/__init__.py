"""Ties to libraries that nothing else needs: a module for each, imported by the applications that have the library.

What stands here is for those that tell tools of sends and runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from taskbridge import locks

T = TypeVar("T")

TOGETHER: Final = "messaging.batch.message_count"
"""The attribute that says how many messages one span is about; both tools use OpenTelemetry's names."""

BAGGAGE: Final = "baggage"
SYSTEMS: Final = {"amqp": "rabbitmq"}
"""What both call the brokers that have another name in URLs."""


class Open(Generic[T]):
    """The spans that each thread has open, the innermost last.

    If a run is interrupted outside the task, nobody is told of its end: its span is closed with the one around it.

    Args:
        close: Ends a span that has no outcome.
    """

    def __init__(self, close: Callable[[T], object]) -> None:
        self._close = close
        self._local = locks.Local()

    def _stack(self) -> list[tuple[object, T]]:
        found: list[tuple[object, T]] = vars(self._local).setdefault("stack", [])
        return found

    def push(self, subject: object, span: T) -> None:
        """Note the span of messages or of a run that begins."""
        self._stack().append((subject, span))

    def pop(self, subject: object) -> T | None:
        """Return the span that was opened for the same object; None if there is none."""
        stack = self._stack()
        if stack and stack[-1][0] is not subject and any(each is subject for each, _ in stack):
            while stack[-1][0] is not subject:
                self._close(stack.pop()[1])
        return stack.pop()[1] if stack and stack[-1][0] is subject else None


def add_baggage(headers: dict[str, Any], baggage: str) -> None:
    """Add entries of W3C baggage to those that the headers of a message have; other tools put theirs there, too."""
    former = headers.get(BAGGAGE)
    if not isinstance(former, str) or not former:
        headers[BAGGAGE] = baggage
    elif f",{baggage}," not in f",{former},":
        headers[BAGGAGE] = f"{former},{baggage}"
