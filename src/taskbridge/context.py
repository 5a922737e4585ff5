"""What a running task may know of itself: `current()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Final

from taskbridge.exceptions import NoCurrentTaskError
from taskbridge.message import Message, Priority
from taskbridge.retry import ErrorInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The run that calls `current()`.

    Attributes:
        id: The message's id, the same on every attempt.
        task: The task's name.
        queue: The queue it came from.
        priority: As it was sent.
        attempt: The number of this run; 1 is the first.
        max_attempts: Runs in total that the policy allows; None is no limit.
        enqueued_at: When the message was first sent, aware, in UTC.
        headers: What the application sent along.
        previous_error: Why the attempt before this one failed; None on the first.
        is_cancelled: What answers `cancelled`.
    """

    id: str
    task: str
    queue: str
    priority: Priority
    attempt: int
    max_attempts: int | None
    enqueued_at: datetime
    headers: Mapping[str, str]
    previous_error: ErrorInfo | None
    is_cancelled: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the message was cancelled since it started, known within a second; asking waits for nothing.

        It is for the task to look at, and to end; nothing interrupts it.
        """
        return self.is_cancelled()


running: Final[ContextVar[tuple[Message, int | None, Callable[[Message], bool]]]] = ContextVar("taskbridge_current")
"""What runs here: the message, the runs that its policy allows, and what says whether it was cancelled."""


def current() -> Context:
    """Return the context of the task that is running.

    Raises:
        NoCurrentTaskError: No task is running here.
    """
    try:
        message, max_attempts, is_cancelled = running.get()
    except LookupError:
        raise NoCurrentTaskError("current() was called outside a running task") from None
    return Context(
        id=message.id,
        task=message.task,
        queue=message.queue,
        priority=message.priority,
        attempt=message.attempt,
        max_attempts=max_attempts,
        enqueued_at=datetime.fromtimestamp(message.enqueued_at, timezone.utc),
        headers=message.headers,
        previous_error=message.error,
        is_cancelled=partial(is_cancelled, message),
    )
