"""Tasks: what the decorator makes of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import update_wrapper
from inspect import Signature, iscoroutinefunction, signature
from os.path import basename, splitext
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast

from taskbridge.declaration import Declaration, positional_of
from taskbridge.durations import Duration, When, seconds, timestamp
from taskbridge.exceptions import DeclarationError, nearest
from taskbridge.handle import Handle
from taskbridge.ids import can_be_kept
from taskbridge.message import PRIORITIES, Priority
from taskbridge.retry import RetryPolicy
from taskbridge.routing import check_queue_name

if TYPE_CHECKING:
    from typing_extensions import Self  # only here, for it takes 5 ms to import

    from taskbridge.schedules import CatchUp, Overlap, Schedule, Timing

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SendOptions:
    """What `using` says of one message; None leaves it to the task and the settings."""

    queue: str | None = None
    priority: Priority | None = None
    expires: Duration | datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[R_co]):
    """One call for `send_many`: made by `Task.call`, sent by nothing else."""

    declaration: Declaration
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: SendOptions


class Sender(Protocol):
    """The bridge, as its tasks see it."""

    def send_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Send one call, now or later."""
        ...

    async def asend_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Do as `send_call` without blocking the event loop."""
        ...

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Send any number of calls."""
        ...

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        ...


class Sendable(Generic[P, R]):
    """What all tasks have in common: they can be sent. Immutable."""

    def __init__(self, sender: Sender, declaration: Declaration, options: SendOptions) -> None:
        self._sender = sender
        self._declaration = declaration
        self._options = options
        update_wrapper(cast(Any, self), declaration.function)

    @property
    def name(self) -> str:
        """The task's name, as messages call it."""
        return self._declaration.name

    @property
    def declaration(self) -> Declaration:
        """All that the decorator says."""
        return self._declaration

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def using(
        self,
        *,
        queue: str | None = None,
        priority: Priority | None = None,
        expires: Duration | datetime | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the same task with options for what is sent through it; None leaves an option as it was.

        Args:
            queue: Where to send it, over routes and the decorator (rule Q1).
            priority: `low`, `normal`, `high` or `critical`.
            expires: It does not start later than this: a time from the moment of sending, or an aware datetime.
            headers: Text that travels along, added to what was given before.

        Raises:
            ValueError: A naive datetime, a wrong priority, queue name or duration.
            TypeError: A header that isn't text.
        """
        changes: dict[str, Any] = {}
        if queue is not None:
            changes["queue"] = check_queue_name(queue)
        if priority is not None:
            changes["priority"] = _checked_priority(priority)
        if expires is not None:
            changes["expires"] = _checked_expires(expires)
        if headers is not None:
            changes["headers"] = {**self._options.headers, **_checked_headers(headers)}
        return type(self)(self._sender, self._declaration, replace(self._options, **changes))

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a call to be sent with `send_many`.

        Raises:
            TypeError: The arguments don't fit the function.
        """
        self._declaration.check(args, kwargs)
        return Call(declaration=self._declaration, args=args, kwargs=kwargs, options=self._options)

    def send(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Send the task to its queue; returns when the broker has it (rule S1).

        Raises:
            TypeError: The arguments don't fit the function.
            EncodeError: An argument can't be put in a message.
            UnknownQueue: There is no such queue.
            MessageTooLarge: The message is over `max_message_bytes`.
            BrokerUnavailable: The broker didn't take it within `send_timeout`.
        """
        return self._sender.send_call(self.call(*args, **kwargs), when=None)

    def schedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Send the task so that it starts later: after a time, or at an aware datetime (rules D).

        Raises:
            ValueError: `when` is a naive datetime, negative, or more than 8 years ahead.
            TypeError, EncodeError, UnknownQueue, MessageTooLarge, BrokerUnavailable: As `send` does.
        """
        return self._sender.send_call(self.call(*args, **kwargs), when=when)

    async def asend(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Do as `send` without blocking the event loop."""
        return await self._sender.asend_call(self.call(*args, **kwargs), when=None)

    async def aschedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Do as `schedule` without blocking the event loop."""
        return await self._sender.asend_call(self.call(*args, **kwargs), when=when)

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Send any number of calls in pipelined batches, and return their handles in order (rule S5).

        Raises:
            SendError: Some were not sent; it says which.
            EncodeError, UnknownQueue, MessageTooLarge: As `send` does; then nothing was sent.
        """
        return self._sender.send_many(calls)

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        return await self._sender.asend_many(calls)


class Task(Sendable[P, R]):
    """A task made of a function. Calling it is a plain call: no queue, no retry."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself."""
        result: R = self._declaration.function(*args, **kwargs)
        return result


class AsyncTask(Sendable[P, R]):
    """A task made of a coroutine function. Calling it is a plain call, to be awaited."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the coroutine function itself."""
        coroutine: Coroutine[Any, Any, R] = self._declaration.function(*args, **kwargs)
        return coroutine


OPTIONS = (
    *("name", "queue", "priority", "retry", "expires", "time_limit", "results"),
    *("cron", "every", "timezone", "schedules", "catch_up", "overlap"),
)
"""The options of the decorator; the set is closed."""


def declare(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    queue: str | None = None,
    priority: Priority = "normal",
    retry: RetryPolicy | None = None,
    expires: Duration | None = None,
    time_limit: Duration | None = None,
    cron: str | None = None,
    every: Duration | None = None,
    timezone: str | None = None,
    schedules: Sequence[Timing] = (),
    catch_up: CatchUp | None = None,
    overlap: Overlap | None = None,
    results: bool = True,
    **unknown: object,
) -> Declaration:
    """Return the declaration of a task.

    Raises:
        DeclarationError: An option is unknown or has a wrong value, or the function can't be a task.
    """
    for option in unknown:
        raise DeclarationError(f"task option {option!r} is unknown{nearest(option, OPTIONS)}")
    if not callable(function) or isinstance(function, type):
        raise DeclarationError(f"a task is made of a function, not of {function!r}")
    task_name = default_name(function) if name is None else name
    if not isinstance(task_name, str) or not task_name.strip() or len(task_name) > 255:
        raise DeclarationError(f"a task's name must be text of up to 255 characters, not {task_name!r}")
    if not can_be_kept(task_name):
        raise DeclarationError(f"a task's name must be text that UTF-8 can hold, without NUL, not {task_name!r}")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise DeclarationError(f"task {task_name!r}: retry must be a RetryPolicy, not {retry!r}")
    if not isinstance(results, bool):
        raise DeclarationError(f"task {task_name!r}: results must be True or False, not {results!r}")
    try:
        bound = _signature(function)
        periodic = (cron, every, timezone, catch_up, overlap)
        return Declaration(
            name=task_name,
            function=function,
            signature=bound,
            positional=positional_of(bound),
            is_coroutine=iscoroutinefunction(function),
            queue=None if queue is None else check_queue_name(queue),
            priority=_checked_priority(priority),
            retry=retry,
            expires_s=None if expires is None else _positive(expires, name="expires"),
            time_limit_s=None if time_limit is None else _positive(time_limit, name="time_limit"),
            schedules=()
            if schedules == () and all(option is None for option in periodic)
            else _schedules(task_name, bound, results, schedules, *periodic),
            results=results,
        )
    except (TypeError, ValueError) as exc:
        raise DeclarationError(f"task {task_name!r}: {exc}") from exc


def _schedules(
    task: str,
    of: Signature,
    results: bool,
    timings: Any,
    cron: str | None,
    every: Duration | None,
    timezone: str | None,
    catch_up: CatchUp | None,
    overlap: Overlap | None,
) -> tuple[Schedule, ...]:
    """Return the schedules of a task: the one of the short options has the task's own name."""
    from taskbridge import schedules  # here, for few tasks have one

    short = schedules.timing_of(cron=cron, every=every, timezone=timezone, catch_up=catch_up, overlap=overlap)
    found = [] if short is None else [schedules.named(task, task, short)]
    found += [schedules.named(None, task, timing) for timing in schedules.checked_timings(timings)]
    schedules.check_recorded([schedule.timing for schedule in found], results=results)
    try:
        of.bind()
    except TypeError as exc:
        raise DeclarationError(
            f"it is sent without arguments by its schedule, but needs some ({exc}); "
            "give them with bridge.periodic(task.call(...), cron=...)"
        ) from exc
    return tuple(found)


def default_name(function: Callable[..., Any]) -> str:
    """Return `module.qualname`; a script's own module has the name by which a worker would import it."""
    module = getattr(function, "__module__", None) or "?"
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else splitext(basename(path))[0] if path else module
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"


def same_place(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether two functions come from the same lines of the same file: a module imported twice."""
    codes = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if codes[0] is None or codes[1] is None:
        return one is other
    return (codes[0].co_filename, codes[0].co_firstlineno) == (codes[1].co_filename, codes[1].co_firstlineno)


def _signature(function: Callable[..., Any]) -> Signature:
    try:
        return signature(function)
    except ValueError as exc:
        raise TypeError(f"its signature can't be had: {exc}") from exc


def _positive(duration: Duration, *, name: str) -> float:
    value = seconds(duration, name=name)
    if value == 0:
        raise ValueError(f"{name} must be more than 0")
    return value


def _checked_priority(priority: Any) -> Priority:
    if priority not in PRIORITIES:
        hint = nearest(priority, PRIORITIES) if isinstance(priority, str) else ""
        raise ValueError(f"priority {priority!r} is not one of {', '.join(PRIORITIES)}{hint}")
    checked: Priority = priority
    return checked


def _checked_expires(expires: Duration | datetime) -> Duration | datetime:
    if isinstance(expires, datetime):
        timestamp(expires, name="expires")
    else:
        _positive(expires, name="expires")
    return expires


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"headers must be text by name, not {key!r}: {value!r}")
    return headers
