"""Programs: what a contract task is told to do, attempt by attempt; and plans: how one is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, cast

from typing_extensions import Self

from taskbridge import Priority, RetryPolicy, WorkerLost


class PermanentError(Exception):
    """An error that some policies give up on."""


class TransientError(ConnectionError):
    """An error that every policy retries."""


class Abort(BaseException):
    """An error that is no `Exception`, like `SystemExit`."""


ERRORS: Final[Mapping[str, type[BaseException]]] = {
    "ValueError": ValueError,
    "KeyError": KeyError,
    "IndexError": IndexError,
    "PermanentError": PermanentError,
    "TransientError": TransientError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "Abort": Abort,
}
"""What a step may raise, by name."""

WORKER_LOST: Final = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"
"""How a task is told of a run that was lost with its worker."""

POLICIES: Final[Mapping[str, RetryPolicy]] = {
    "standard": RetryPolicy(max_attempts=5, min_delay=0.2, factor=2),
    "exact": RetryPolicy(max_attempts=4, min_delay=0.3, factor=1.5, jitter=0),
    "listed": RetryPolicy(max_attempts=4, delays=[0.1, 0.6], jitter=0),
    "capped": RetryPolicy(max_attempts=4, min_delay=0.2, factor=10, max_delay=0.5, jitter=0.2),
    "once": RetryPolicy.never(),
    "twice": RetryPolicy(max_attempts=2, min_delay=0.1),
    "unlimited": RetryPolicy(max_attempts=None, min_delay=0.05, factor=1),
    "selective": RetryPolicy(max_attempts=3, min_delay=0.1, retry_on=(ConnectionError, LookupError)),
    "giving_up": RetryPolicy(
        max_attempts=3, min_delay=0.1, retry_on=LookupError, give_up_on=(PermanentError, KeyError)
    ),
    "anything": RetryPolicy(max_attempts=3, min_delay=0.1, retry_on=BaseException),
    "instant": RetryPolicy(max_attempts=4, min_delay=0),
}
"""The policies that a program may be sent under, by name; the suite declares one task for each."""


class Brief:
    """Shows of a dataclass what is not as it is by default; first its mark, if it has one."""

    __slots__ = ()

    def __repr__(self) -> str:
        own = [(each.name, getattr(self, each.name), each.default) for each in fields(cast("Any", self))]
        shown = [f"{name}={value!r}" for name, value, usual in own if value != usual and name != "mark"]
        return f"{getattr(self, 'mark', type(self).__name__)}({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Step(Brief):
    """What one attempt does: it waits, if it is told to, and then it ends in one way.

    Attributes:
        outcome: `return`, `raise`, `retry` (ask for it) or `discard`.
        error: What is raised, by its name in `ERRORS`, or in `ODD_ERRORS`.
        after_s: The delay that a retry asks for; None leaves it to the policy.
        cause: The error that a retry is raised from, by its name in `ERRORS`; empty for none.
        gate: The name of a gate that has to be opened first; empty for none.
        sleep_s: How long it sleeps, in slices.
        spin_s: How long it computes, in pure Python.
        stuck: `sleep` or `search`: it is in one call into C for longer than any scenario waits; a search keeps the
            interpreter's lock as well.
        free: The name of a gate; while it is open, `stuck` has no effect.
        kill: Whether it kills the process that it runs in.
        until_cancelled: Whether it first waits until it sees that it was cancelled.
        until_stopping: Whether it first waits until it sees that its worker was told to stop.
        cleanup_s: How long it goes on after that, whatever it ends with.
    """

    outcome: Literal["return", "raise", "retry", "discard"] = "return"
    error: str = "ValueError"
    after_s: float | None = None
    cause: str = ""
    gate: str = ""
    sleep_s: float = 0.0
    spin_s: float = 0.0
    stuck: Literal["", "sleep", "search"] = ""
    free: str = ""
    kill: bool = False
    until_cancelled: bool = False
    until_stopping: bool = False
    cleanup_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return the step as it travels in a message."""
        return asdict(self)

    @classmethod
    def of(cls, steps: Sequence[Mapping[str, Any]], attempt: int) -> Self:
        """Return the step of an attempt; the last one is repeated."""
        return cls(**steps[min(attempt, len(steps)) - 1])


RETURN: Final = Step()
ASK: Final = Step(outcome="retry")
KILL: Final = Step(kill=True)
DISCARD: Final = Step(outcome="discard")


def fail(error: str = "ValueError") -> Step:
    """Return a step that raises an error of this name."""
    if error not in ERRORS:
        raise ValueError(f"there is no error {error!r} among {', '.join(ERRORS)}")
    return Step(outcome="raise", error=error)


def ask(after_s: float, *, cause: str = "") -> Step:
    """Return a step that asks for a retry after so many seconds, because of an error of this name if there is one."""
    return Step(outcome="retry", after_s=after_s, cause=cause)


def hold(gate: str) -> Step:
    """Return a step that returns when a gate is opened."""
    return Step(gate=gate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A program and how it is sent.

    Attributes:
        steps: What the attempts do; the last step is repeated.
        policy: The name of a policy in `POLICIES`.
        queue: Where it is sent; None leaves it to the bridge.
        priority: None leaves it to the task, whose priority is `normal`.
        delay_s: How long after sending it is due.
        expires_s: How long after sending it expires; None is never.
        headers: What travels along.
    """

    steps: tuple[Step, ...]
    policy: str = "standard"
    queue: str | None = None
    priority: Priority | None = None
    delay_s: float = 0.0
    expires_s: float | None = None
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def step(self, attempt: int) -> Step:
        """Return what an attempt does."""
        return self.steps[min(attempt, len(self.steps)) - 1]

    def plain_steps(self) -> list[dict[str, Any]]:
        """Return the steps as they travel in a message."""
        return [step.plain() for step in self.steps]
