"""Observers: what looks on as messages are sent, run and settled, such as metrics do. They change no outcome.

Where there is none, nothing is measured. An observer is called in the thread that sends or runs; it must be quick, wait
for nothing, and is not told of what it is not there for: health's probes, and messages that can't be read.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from taskbridge.logs import logger
from taskbridge.retry import CancelledVerdict, Dead, Discarded, Done, RunAgain

if TYPE_CHECKING:
    from taskbridge.message import Message
    from taskbridge.retry import Verdict

Outcome = Literal["done", "retried", "dead", "cancelled", "discarded", "given_back"]
"""How a run ended, as traces call it."""

OUTCOMES: Final[Mapping[type, Outcome]] = {
    Done: "done",
    RunAgain: "retried",
    Dead: "dead",
    CancelledVerdict: "cancelled",  # before what it is a kind of
    Discarded: "discarded",
}
"""By kind of verdict; one that is none of these, but of a subclass, ends no attempt."""

_log = logger("taskbridge.observers")


class Observer:
    """What is told of messages; each method does nothing until it is overridden. Put one in `Bridge.observers`."""

    def supervising(self) -> None:
        """Hear, once, in the main thread, that this process starts and watches workers, and runs no tasks."""

    def sending(self, messages: Sequence[Message]) -> None:
        """Hear that messages are about to be sent together; `sent` follows in this thread. It may add to headers."""

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        """Hear that messages were handed to the broker together, or to a store's outbox, which took so many seconds.

        With an error, some or all were not; of many, a `SendError` says which were. What is in an application's outbox
        is handed to the broker by a worker, perhaps twice; that worker hears this, and no `sending` before.
        """

    def running(self, message: Message, started_at: float) -> None:
        """Hear that a run starts, at a time in seconds since the epoch by the clock that workers share.

        `ran` follows in this thread, unless the run is interrupted outside the task.
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


def outcome_of(verdict: Verdict) -> tuple[Outcome, BaseException | None]:
    """Return how a run ended, and what it raised, if that matters: for retries, dead letters and cancelled runs."""
    for kind, outcome in OUTCOMES.items():
        if isinstance(verdict, kind):
            return outcome, getattr(verdict, "error", None)
    return "given_back", None


def tell(observers: Sequence[Observer], method: str, *facts: Any) -> None:
    """Tell observers of something; one that fails is logged, and keeps nobody else from hearing of it."""
    for each in observers:
        try:
            getattr(each, method)(*facts)
        except Exception:
            _log.exception("an observer failed (%s.%s)", type(each).__name__, method)


@contextmanager
def sending(observers: Sequence[Observer], messages: Sequence[Message]) -> Generator[None]:
    """Tell observers when the block begins, which sends messages, how long it takes, and what it raises."""
    tell(observers, "sending", messages)
    began = monotonic()
    error: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        error = exc
        raise
    finally:
        tell(observers, "sent", messages, monotonic() - began, error)
