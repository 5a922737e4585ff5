"""Observers: what looks on as messages are sent, run and settled, such as metrics do. They change nothing.

Where there is none, nothing is measured. An observer is called in the thread that sends or runs; it must be quick, wait
for nothing, and is not told of what it is not there for: health's probes, and messages that can't be read.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.message import Message
    from taskbridge.retry import Verdict

_log = logger("taskbridge.observers")


class Observer:
    """What is told of messages; each method does nothing until it is overridden. Put one in `Bridge.observers`."""

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        """Hear that messages were handed to the broker together, or to an outbox, which took so many seconds.

        With an error, some or all were not; of many, a `SendError` says which were.
        """

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        """Hear that a run has ended and what that makes of its message, before that is carried out.

        Args:
            message: The attempt that ran.
            verdict: What becomes of it; another one may be carried out, as when it was cancelled meanwhile.
            started_at: When it started, in seconds since the epoch, by the clock that workers share.
            seconds: How long it took.
        """

    def settled(self, message: Message, verdict: Verdict) -> None:
        """Hear that a verdict was carried out: the message has ended, waits for its next attempt, or was given back."""


def tell(observers: Sequence[Observer], method: str, *facts: Any) -> None:
    """Tell observers of something; one that fails is logged, and keeps nobody else from hearing of it."""
    for each in tuple(observers):
        try:
            getattr(each, method)(*facts)
        except Exception:
            _log.exception("an observer failed (%s.%s)", type(each).__name__, method)


@contextmanager
def sending(observers: Sequence[Observer], messages: Sequence[Message]) -> Generator[None]:
    """Tell observers how long the block takes, which sends messages, and what it raises."""
    began = monotonic()
    error: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        error = exc
        raise
    finally:
        tell(observers, "sent", messages, monotonic() - began, error)
