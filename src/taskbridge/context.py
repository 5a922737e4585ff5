"""What a running task may know of itself, and tell of itself: `current()`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from taskbridge.exceptions import NoCurrentTaskError
from taskbridge.failures import clipped
from taskbridge.message import Message, Priority
from taskbridge.retry import ErrorInfo

if TYPE_CHECKING:
    from taskbridge.runner import Runner

LONGEST_NOTE: Final = 200  # how many characters of a progress's note are kept
MOST_PROGRESS: Final = 1e300  # how much can be done, or to do


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
        headers: What the application sent along: text, whole numbers, True, False and None by name.
        previous_error: Why the attempt before this one failed; None on the first.
        message: The message itself.
        runner: What runs it, and answers what changes while it runs.
    """

    id: str
    task: str
    queue: str
    priority: Priority
    attempt: int
    max_attempts: int | None
    enqueued_at: datetime
    headers: Mapping[str, Any]
    previous_error: ErrorInfo | None
    message: Message = field(repr=False, compare=False)
    runner: Runner = field(repr=False, compare=False)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The task's arguments by its parameters' names, with defaults: decoded anew each time it is asked for."""
        declaration = self.runner.declaration
        return {} if declaration is None else declaration.arguments_of(self.message) or {}

    @property
    def cancelled(self) -> bool:
        """Whether the message was cancelled since it started, known within a second; asking waits for nothing.

        It is for the task to look at, and to end; only `cancel(interrupt=True)` interrupts it.
        """
        return self.runner.is_cancelled(self.message)

    @property
    def stopping(self) -> bool:
        """Whether the worker was told to stop: the run has the rest of the setting `grace`, and is interrupted then.

        A task that takes longer may note how far it has come, and end itself. Asking waits for nothing.
        """
        return self.runner.is_stopping()

    def progress(self, *, done: float, total: float | None = None, note: str = "") -> None:
        """Tell how far the run has come; `Handle.status().progress` shows it within 2 s.

        It waits for nothing: a thread writes the latest of it, once a second at most. `done` and `total` are in any one
        unit, from 0 to 1e300, else this raises `ValueError`; a `total` of None is not known. The note says what is
        being done, for people; 200 characters of it are kept. If the message is not recorded, for there is no store or
        the task has `results=False`, this raises `UnsupportedError`.
        """
        for name, value in (("done", done), ("total", 0 if total is None else total)):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= MOST_PROGRESS:
                raise ValueError(f"progress: {name} must be a number of at least 0, not {value!r}")
        self.runner.report(self.message, done, total, clipped(note, LONGEST_NOTE))


running: Final[ContextVar[tuple[Message, Runner] | None]] = ContextVar("taskbridge_current", default=None)
"""What runs here: the message, and what runs it; None if nothing does."""


@contextmanager
def entered(message: Message, runner: Runner) -> Generator[None]:
    """Have `current()` tell of a message while the block runs."""
    token = running.set((message, runner))
    try:
        yield
    finally:
        running.reset(token)


def current() -> Context:
    """Return the context of the task that is running; raise `NoCurrentTaskError` if none is running here."""
    if (found := running.get()) is None:
        raise NoCurrentTaskError("current() was called outside a running task")
    message, runner = found
    return Context(
        id=message.id,
        task=message.task,
        queue=message.queue,
        priority=message.priority,
        attempt=message.attempt,
        max_attempts=runner.policy.max_attempts,
        enqueued_at=datetime.fromtimestamp(message.enqueued_at, timezone.utc),
        headers=message.headers,
        previous_error=message.error,
        message=message,
        runner=runner,
    )
