"""Declaring: the table of a bridge's tasks, what the decorator's options say, and which queues there are (rules Q)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Signature, iscoroutinefunction, signature
from os.path import basename, splitext
from typing import TYPE_CHECKING, Any

from taskbridge.declaration import Declaration, positional_of
from taskbridge.durations import Duration, positive
from taskbridge.exceptions import DeclarationError, nearest
from taskbridge.ids import can_be_kept
from taskbridge.message import Priority
from taskbridge.probe import PROBE
from taskbridge.retry import RetryPolicy
from taskbridge.routing import Routing, check_queue_name
from taskbridge.tasks import checked_priority

if TYPE_CHECKING:
    from taskbridge.schedules.plan import CatchUp, Overlap, Schedule, Timing


class Declarations:
    """The tasks of a bridge, by name, and its queues. The bridge's lock guards changes; threads may look any time."""

    def __init__(self, routing: Callable[[], Routing]) -> None:
        self._routing = routing
        self._tasks: dict[str, Declaration] = {}
        self._queues: tuple[str, ...] | None = None

    def checked(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Declaration:
        """Return the declaration of a task that may be added.

        Raises:
            DeclarationError: An option is unknown or wrong, or there is a task of this name already.
        """
        declaration = declare(function, **options)
        if declaration.name == PROBE:
            raise DeclarationError(f"a task can't be called {PROBE!r}: that is what workers are probed with")
        former = self._tasks.get(declaration.name)
        if former is not None and not same_place(former.function, function):
            raise DeclarationError(
                f"there is a task {declaration.name!r} already, declared by {former.function!r}; "
                "give one of them another name"
            )
        return declaration

    def add(self, declaration: Declaration) -> None:
        """Take a task, in the place of a former one of its name."""
        self._tasks[declaration.name] = declaration
        self._queues = None

    def forget_queues(self) -> None:
        """Learn anew which queues there are: the settings have changed."""
        self._queues = None

    def all(self) -> Sequence[Declaration]:
        """Return all tasks declared so far."""
        return tuple(self._tasks.values())

    def names(self) -> list[str]:
        """Return the names of all tasks declared so far."""
        return list(self._tasks)

    def find(self, task: str) -> Declaration | None:
        """Return a task's declaration by its exact name; None if it is not declared (rule S9)."""
        return self._tasks.get(task)

    def queues(self) -> Sequence[str]:
        """Return the names of the known queues, the default one first (rule Q2)."""
        known = self._queues
        if known is None:
            known = self._routing().known(declaration.queue for declaration in self.all())
            self._queues = known
        return known

    def queue_of(self, task: str) -> str:
        """Return the queue that a task's messages go to, unless `using(queue=)` says otherwise (rule Q1)."""
        declaration = self.find(task)
        return self._routing().queue_of(task, asked=None, on_task=declaration.queue if declaration else None)


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
            priority=checked_priority(priority),
            retry=retry,
            expires_s=None if expires is None else positive(expires, name="expires"),
            time_limit_s=None if time_limit is None else positive(time_limit, name="time_limit"),
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
    from taskbridge.schedules import plan as schedules  # here, for few tasks have one

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
