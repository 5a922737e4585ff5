"""Retry policies, the exceptions that ask for a verdict, and `judge`, which decides.

Everything here is pure: no clock, no input or output, no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from taskbridge import failures
from taskbridge.durations import Duration, seconds
from taskbridge.exceptions import Cancelled

ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]

DEFAULT_MAX_ATTEMPTS: Final = 5
DEFAULT_MAX_DELAY: Final = timedelta(minutes=10)


class Retry(failures.Portable):
    """Raise it in a task to ask for another attempt (rule R7); it uses up an attempt like any failure.

    `raise Retry(...) from error` keeps that error: record, hooks and a dead letter name it in the place of `Retry`.

    Args:
        after: The time until the next attempt, which `max_delay` does not cap and jitter does not change;
            the policy's own delay if None.
        reason: Kept as the attempt's error.
    """

    def __init__(self, *, after: Duration | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.after_s: float | None = None if after is None else seconds(after, name="after")
        self.reason = reason


class Discard(Exception):
    """Raise it in a task to end it: no further attempt, no dead letter."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Become:
    """What a task returns, by `become`, to say that it ends as a flow does."""

    flow: Any


@dataclass(frozen=True, kw_only=True, init=False, slots=True)
class RetryPolicy:
    """How often a task is tried, and how long it waits in between (rules R1 to R3).

    Args:
        max_attempts: Runs in total, the first included, at least 1; None is no limit.
        min_delay: The delay after the first attempt.
        factor: What each delay is multiplied by to give the next, at least 1.
        max_delay: No delay is longer; 10 minutes by default, or `min_delay` if that is longer.
        jitter: The largest part of a delay that may be taken off it, from 0 (none) to 1. How much is taken off is
            drawn from a hash of the message's id and the attempt, so it is the same on every target.
        delays: The delay after the first attempt, the second, ...; the last one repeats. Given instead of
            `min_delay`, `factor` and `max_delay`; jitter applies.
        retry_on: The exceptions that are retried.
        give_up_on: The exceptions that are not, even if they are in `retry_on`.

    Raises:
        ValueError: A value is out of its bounds.
    """

    max_attempts: int | None
    min_delay: timedelta
    factor: float
    max_delay: timedelta
    jitter: float
    delays: tuple[timedelta, ...] | None
    retry_on: tuple[type[BaseException], ...]
    give_up_on: tuple[type[BaseException], ...]

    def __init__(
        self,
        *,
        max_attempts: int | None = DEFAULT_MAX_ATTEMPTS,
        min_delay: Duration = 1,
        factor: float = 2,
        max_delay: Duration | None = None,
        jitter: float = 0.5,
        delays: Sequence[Duration] | None = None,
        retry_on: ExceptionTypes = Exception,
        give_up_on: ExceptionTypes = (),
    ) -> None:
        is_count = isinstance(max_attempts, int) and not isinstance(max_attempts, bool) and max_attempts >= 1
        if max_attempts is not None and not is_count:
            raise ValueError(f"max_attempts must be a whole number of at least 1, or None, not {max_attempts!r}")
        if not (isinstance(factor, (int, float)) and 1 <= factor < float("inf")):
            raise ValueError(f"factor must be a number of at least 1, not {factor!r}")
        if not (isinstance(jitter, (int, float)) and 0 <= jitter <= 1):
            raise ValueError(f"jitter must be a number from 0 to 1, not {jitter!r}")
        if delays is not None and not delays:
            raise ValueError("delays must hold at least one delay")
        shortest = _span(min_delay, "min_delay")
        longest = max(shortest, DEFAULT_MAX_DELAY) if max_delay is None else _span(max_delay, "max_delay")
        if delays is None and longest < shortest:
            raise ValueError(f"max_delay ({longest}) is shorter than min_delay ({shortest})")
        fixed = None if delays is None else tuple(_span(each, f"delays[{at}]") for at, each in enumerate(delays))
        fields = {
            "max_attempts": max_attempts,
            "min_delay": shortest,
            "factor": float(factor),
            "max_delay": longest,
            "jitter": float(jitter),
            "delays": fixed,
            "retry_on": _exception_types(retry_on, name="retry_on"),
            "give_up_on": _exception_types(give_up_on, name="give_up_on"),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def never(cls) -> RetryPolicy:
        """Return the policy of a task that is run once and never retried."""
        return cls(max_attempts=1)

    def wait_s(self, attempt: int, *, message_id: str) -> float:
        """Return the seconds between the attempt that failed (1 is the first run) and the next.

        At least 0, at most `max_delay`, or the longest of `delays`; jitter is drawn from the id and the attempt.
        """
        return self._base_s(attempt) * (1 - self.jitter * _draw(message_id, attempt))

    def retries(self, error: BaseException) -> bool:
        """Return whether this error is one that is tried again, attempts permitting."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def _base_s(self, attempt: int) -> float:
        if self.delays is not None:
            return self.delays[min(attempt, len(self.delays)) - 1].total_seconds()
        longest_s = self.max_delay.total_seconds()
        try:
            return min(longest_s, self.min_delay.total_seconds() * self.factor ** (attempt - 1))
        except OverflowError:
            return longest_s


def _span(duration: Duration, name: str) -> timedelta:
    return timedelta(seconds=seconds(duration, name=name))


def _exception_types(given: ExceptionTypes, *, name: str) -> tuple[type[BaseException], ...]:
    types = given if isinstance(given, tuple) else (given,)
    for item in types:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(f"{name} must hold exception classes, not {item!r}")
    return types


def _draw(message_id: str, attempt: int) -> float:
    """Return a number in [0, 1), the same wherever it is drawn for this message and attempt."""
    from hashlib import blake2b  # here, for it loads OpenSSL, and a process that only sends draws nothing

    digest = blake2b(f"{message_id}:{attempt}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorInfo:
    """An exception, as it travels in a message: `type` is its qualified name, `message` its text."""

    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Return what is kept of an exception; of its text at most 2,000 characters. Never raises."""
        return cls(type=failures.type_of(type(error)), message=failures.text_of(error))


@dataclass(frozen=True, slots=True)
class Done:
    """The task returned.

    `value` is what it returned, and `result_json` the same in the codec's form; None if it is not to be recorded, or
    can't be, for the reason that `problem` tells.
    """

    value: object = None
    result_json: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunAgain:
    """The attempt failed, and the next one is due `after_s` seconds from now."""

    after_s: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Dead:
    """The message failed for good.

    `reason` is one of `exhausted`, `gave_up`, `bad_arguments`, `undecodable`, `unknown_task`, `internal_error`.
    """

    reason: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Discarded:
    """The message ends without a result and without a dead letter; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class CancelledVerdict(Discarded):
    """The message was cancelled, and does not start again; `error` is what its last run raised, if that ended now."""

    reason: str = "cancelled"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A shutdown interrupted the run: the message goes back as it came, and no attempt is used up (rule R8)."""


Verdict = Done | RunAgain | Dead | Discarded | GivenBack


class Interrupted(BaseException):
    """Raised in a task's thread when its worker stops and the grace is over; never an attempt (rule R8)."""


def judge(policy: RetryPolicy, *, attempt: int, message_id: str, error: BaseException) -> Verdict:
    """Return what becomes of a message whose attempt failed (rule R2), by the policy declared where it ran."""
    if isinstance(error, Interrupted):
        return GivenBack()
    if isinstance(error, Cancelled):
        return CancelledVerdict(error=error)
    if isinstance(error, Discard):
        return Discarded(failures.clipped(error.reason))
    asked = isinstance(error, Retry)
    if not asked and not policy.retries(error):
        return Dead("gave_up", error)
    cause = failures.cause_of(error) if asked else None
    told = error if cause is None else cause
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return Dead("exhausted", told)
    if isinstance(error, Retry) and error.after_s is not None:
        return RunAgain(error.after_s, told)
    return RunAgain(policy.wait_s(attempt, message_id=message_id), told)
