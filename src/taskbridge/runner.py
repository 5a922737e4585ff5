"""Runs one message and says what becomes of it: the only caller of user code, the same on every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskbridge import codec
from taskbridge.context import running
from taskbridge.declaration import Declaration
from taskbridge.exceptions import DecodeError, EncodeError, ResultTooLarge, WorkerLost
from taskbridge.hooks import Event, Hooks
from taskbridge.message import Message
from taskbridge.retry import Dead, Discarded, Done, RetryPolicy, Verdict, judge
from taskbridge.timelimit import limited


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runner:
    """Runs the messages of one task in the thread that calls it.

    Attributes:
        declaration: The task; None if it is not declared here (rule S9).
        policy: Its retry policy.
        hooks: Told before each run.
        now: Returns the time, in seconds since the epoch.
        most_bytes: How large an encoded result may be; None if results are not recorded.
        is_cancelled: Returns whether a message that runs was cancelled.
    """

    declaration: Declaration | None
    policy: RetryPolicy
    hooks: Hooks
    now: Callable[[], float]
    most_bytes: int | None
    is_cancelled: Callable[[Message], bool]

    @property
    def limit_s(self) -> float | None:
        """How long a run may take; None is for ever."""
        return None if self.declaration is None else self.declaration.time_limit_s

    def run(self, message: Message) -> Verdict:
        """Run a message's task once, if it may still start, and return the verdict; raises nothing."""
        declaration = self.declaration
        if declaration is None:
            return Dead("unknown_task")
        if message.expires_at is not None and self.now() > message.expires_at:
            return Discarded("expired")
        try:
            args, kwargs = message.arguments()
            if kwargs or len(args) not in declaration.positional:
                declaration.check(args, kwargs)
        except DecodeError as exc:
            return Dead("undecodable", exc)
        except TypeError as exc:
            return Dead("bad_arguments", exc)
        token = running.set((message, self.policy.max_attempts, self.is_cancelled))
        try:
            if self.hooks.of["before_run"]:
                self.hooks.call(Event(name="before_run", message=message))
            value = _call(declaration, args, kwargs)
            return Done(value, _result_json(declaration, value, self.most_bytes))
        except BaseException as exc:  # SystemExit and its like are the task's failures too (rule R2)
            return judge(self.policy, attempt=message.attempt, message_id=message.id, error=exc)
        finally:
            running.reset(token)

    def judge_lost(self, message: Message) -> Verdict:
        """Return what becomes of a message whose attempt died with its worker (rule A5)."""
        if self.declaration is None:
            return Dead("unknown_task")
        error = WorkerLost(f"the worker that ran attempt {message.attempt} is gone")
        return judge(self.policy, attempt=message.attempt, message_id=message.id, error=error)


def _call(declaration: Declaration, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if declaration.is_coroutine:
        from taskbridge import coroutines  # here, for it imports asyncio

        return coroutines.run(declaration.function(*args, **kwargs), limit_s=declaration.time_limit_s)
    if declaration.time_limit_s is None:
        return declaration.function(*args, **kwargs)
    with limited(declaration.time_limit_s):
        return declaration.function(*args, **kwargs)


def _result_json(declaration: Declaration, value: object, most_bytes: int | None) -> str | None:
    """Return a result as it is recorded; None if it isn't to be.

    Raises:
        EncodeError: It can't be.
        ResultTooLarge: It is over the limit.
    """
    if most_bytes is None:
        return None
    if value is None:
        return "null"
    try:
        encoded = codec.dumps(value, "result")
    except EncodeError as exc:
        remedy = "return something that can be, or declare the task with results=False"
        raise EncodeError(exc.path, f"{exc.problem}, nor recorded: {remedy}") from None
    if len(encoded) > most_bytes:
        raise ResultTooLarge(declaration.name, len(encoded), most_bytes)
    return encoded
