"""What is known of a task from its decorator, whose options are read here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from inspect import BoundArguments, Parameter, Signature, iscoroutinefunction, signature
from math import inf
from os.path import abspath, basename, curdir, isfile, join, samefile, split, splitext
from typing import TYPE_CHECKING, Any, Final, cast

from taskbridge import locks
from taskbridge.durations import positive
from taskbridge.exceptions import DeclarationError, DecodeError
from taskbridge.message import Message, Priority, can_be_kept, checked_priority
from taskbridge.retry import RetryPolicy
from taskbridge.routing import check_queue_name
from taskbridge.signatures import signature_of
from taskbridge.unique import Unique, unique_of

if TYPE_CHECKING:
    from taskbridge.hints import Hints
    from taskbridge.schedules.plan import Schedule  # only here, for few tasks have one
    from taskbridge.surroundings import Surrounding


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """A task, as declared.

    Attributes:
        name: What messages call it.
        function: The user's function, or coroutine function.
        signature: The function's.
        is_coroutine: Whether calling it gives an awaitable.
        queue: What the decorator says; None leaves it to the settings.
        priority: Of its messages, unless `using` says otherwise.
        retry: Its policy; None leaves it to the settings.
        expires_s: Seconds after which a message of it no longer starts; None is never.
        time_limit_s: Seconds that a run may take; None is no limit.
        hard_time_limit_s: Seconds after which a run is ended with its process; None leaves it to the settings.
        around: What is around its runs, beside what the bridge has around all.
        schedules: When workers send messages of it by themselves.
        results: Whether its messages are recorded, where there is a store.
        unique: What makes two of its messages the same; None if nothing does.
        keeps_call: Whether the records of its messages tell their arguments and headers.
        positional: How many arguments, all of them positional, always fit the signature.
        names: Of the parameters, if each can be given by place and by name; else none.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    is_coroutine: bool
    queue: str | None = None
    priority: Priority = "normal"
    retry: RetryPolicy | None = None
    expires_s: float | None = None
    time_limit_s: float | None = None
    hard_time_limit_s: float | None = None
    around: tuple[Surrounding, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    results: bool = True
    unique: Unique | None = None
    keeps_call: bool = False
    positional: range = range(0)
    names: tuple[str, ...] = ()
    _hints: Any = field(default=None, init=False, repr=False, compare=False)

    @property
    def hints(self) -> Hints | None:
        """The classes that the type hints name; None if they name none. They are looked up when this is first asked."""
        if self._hints is None:
            with locks.no_fork():  # a child that is forked meanwhile couldn't import it
                from taskbridge.hints import hints_of  # here, for a process that only declares tasks needs none

                object.__setattr__(self, "_hints", hints_of(self) or False)
        return self._hints or None

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Return if the arguments fit the signature; else raise `TypeError`."""
        if kwargs or len(args) not in self.positional:  # else there is no need for `bind`, which takes 2 us
            self._bind(args, kwargs)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundArguments:
        try:
            return self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            parameters = [each.replace(annotation=Parameter.empty) for each in self.signature.parameters.values()]
            given = ", ".join([f"{len(args)} by position", *(f"{name}=" for name in kwargs)])
            problem = f"{self.name}{Signature(parameters)} can't be called with these arguments ({given})"
            raise TypeError(f"{problem}: {exc}") from None

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by the names of the parameters, defaults too; raises as `check`."""
        arguments = self._bind(args, kwargs)
        arguments.apply_defaults()
        return arguments.arguments

    def fitted(self, args: list[Any], kwargs: dict[str, Any], form: int) -> tuple[list[Any], dict[str, Any]]:
        """Return a message's arguments as the function gets them; `TypeError` if they don't fit signature and hints."""
        self.check(args, kwargs)
        hints = self.hints
        if hints is None and form == 1:
            return args, kwargs
        from taskbridge.hints import NO_HINTS  # here, for few messages need it

        return (hints or NO_HINTS).made(args, kwargs)

    def decoded(self, message: Message) -> tuple[list[Any], dict[str, Any]]:
        """Return a message's arguments as the function gets them; raise `DecodeError` or `TypeError` if that fails."""
        return self.fitted(*message.arguments(), message.form)

    def arguments_of(self, message: Message) -> dict[str, Any] | None:
        """Return a message's arguments by the names of the parameters; None if they don't fit."""
        try:
            return self.bound(*self.decoded(message))
        except (DecodeError, TypeError):
            return None


def positional_of(signature: Signature) -> range:
    """Return how many arguments, all of them positional, always fit a signature."""
    least = most = 0
    for parameter in signature.parameters.values():
        is_needed = parameter.default is Parameter.empty
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
            least += is_needed
            most += 1
        elif parameter.kind is Parameter.VAR_POSITIONAL:
            most = sys.maxsize - 1
        elif parameter.kind is Parameter.KEYWORD_ONLY and is_needed:
            return range(0)
    return range(least, most + 1)


def names_of(signature: Signature) -> tuple[str, ...]:
    """Return a function's parameters if each can be given by place and by name; else none."""
    is_plain = all(each.kind is Parameter.POSITIONAL_OR_KEYWORD for each in signature.parameters.values())
    return tuple(signature.parameters) if is_plain else ()


def _of_kind(kind: type, problem: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"{problem}, not {value!r}")
        return value

    return check


def _policy(value: Any) -> RetryPolicy:
    if type(value) is int:
        raise TypeError(f"for {value} retries after the first run write retry=RetryPolicy(max_attempts={value + 1})")
    policy: RetryPolicy = _of_kind(RetryPolicy, "retry must be a RetryPolicy, such as RetryPolicy.never()")(value)
    return policy


def _time_limit(value: Any, name: str = "time_limit") -> float:
    limit_s = positive(value, name=name)
    if limit_s > _A_DAY_S and not isinstance(value, timedelta):
        milliseconds = f"if {value} is in milliseconds, write {value / 1000:g}"
        raise ValueError(f"{name} is in seconds: {milliseconds}; if it is not, write timedelta(seconds={value})")
    return limit_s


_A_DAY_S: Final = 86_400.0  # no number above this is a time limit: most are milliseconds, as Dramatiq has them


def _around(functions: Any) -> tuple[Surrounding, ...]:
    from taskbridge.surroundings import surrounding  # here, for few tasks have any

    if not isinstance(functions, (list, tuple)):
        raise TypeError(f"around must be a list of generator functions, not {functions!r}")
    return tuple(map(surrounding, cast("list[Any]", functions)))


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "queue": ("queue", check_queue_name),
    "priority": ("priority", checked_priority),
    "retry": ("retry", _policy),
    "expires": ("expires_s", partial(positive, name="expires")),
    "time_limit": ("time_limit_s", _time_limit),
    "hard_time_limit": ("hard_time_limit_s", partial(_time_limit, name="hard_time_limit")),
    "around": ("around", _around),
    "results": ("results", _of_kind(bool, "results must be True or False")),
    "unique": ("unique", unique_of),
}
"""The options that are fields of a declaration: the field, and what checks the value; None leaves a field as it is."""

_SCHEDULE_OPTIONS: Final = ("cron", "every", "timezone", "schedules", "catch_up", "overlap")
OPTIONS: Final = ("name", *_FIELDS, *_SCHEDULE_OPTIONS)  # the options of the decorator; the set is closed


def declare(function: Callable[..., Any], *, keeps_call: bool = False, **options: Any) -> Declaration:
    """Return the declaration of a function as a task, with the options of `Bridge.task`; else `DeclarationError`.

    `keeps_call` is for what stands between an application and the bridge, and is no option of `@task`.
    """
    for option in options:
        if option not in OPTIONS:
            from taskbridge import remedies  # here, for only errors need it

            hint = remedies.instead(option, remedies.OPTIONS, OPTIONS)
            raise DeclarationError(f"task option {option!r} is unknown{hint}")
    if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
        raise DeclarationError(f"a task is made of a function, not of {function!r}")
    given = {option: value for option, value in options.items() if value is not None}
    name = checked_name(given.get("name", default_name(function)))
    try:
        fields: dict[str, Any] = {
            field: check(given[option]) for option, (field, check) in _FIELDS.items() if option in given
        }
        hard_s, limit_s = fields.get("hard_time_limit_s"), fields.get("time_limit_s", inf)
        if hard_s is not None and hard_s <= limit_s:
            raise ValueError("hard_time_limit must be longer than time_limit, which it needs")
        found = signature_of(function)
        if is_method(function, found):
            raise DeclarationError("a method can't be a task: declare a function, which makes the object or loads it")
        if (unique := fields.get("unique")) is not None:
            unique.check(found)
            if not fields.get("results", True):
                raise ValueError(
                    "unique needs the records of its messages, which free their keys: leave out results=False"
                )
        periodic = {option: given[option] for option in _SCHEDULE_OPTIONS if given.get(option, ()) != ()}
        if periodic:
            fields["schedules"] = _schedules(name, found, fields.get("results", True), periodic)
        return Declaration(
            name=name,
            function=function,
            signature=found,
            positional=positional_of(found),
            names=names_of(found),
            is_coroutine=iscoroutinefunction(function),
            keeps_call=keeps_call,
            **fields,
        )
    except (TypeError, ValueError) as exc:
        raise DeclarationError(f"task {name!r}: {exc}") from exc


def is_method(function: Callable[..., Any], of: Signature) -> bool:
    """Return whether a function is defined in the body of a class, and is to be called on an object or the class."""
    outer, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    first = next(iter(of.parameters), "")
    return first in ("self", "cls") and bool(outer) and not outer.endswith("<locals>")


def checked_name(name: Any) -> str:
    """Return a task's name if it is one; else raise `DeclarationError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > 255 or not can_be_kept(name):
        problem = "text of up to 255 characters that UTF-8 can hold, without control characters"
        raise DeclarationError(f"a task's name must be {problem}, not {name!r}")
    return name


def undeclared(name: str) -> Declaration:
    """Return what stands for a task that another process declares: it can be sent with any arguments."""

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        """Stand for a function that is not here."""
        raise TypeError(f"task {name!r} is not declared in this process, so it can only be sent")

    return Declaration(
        name=checked_name(name),
        function=elsewhere,
        signature=signature(elsewhere),
        positional=range(sys.maxsize),
        is_coroutine=False,
    )


def _schedules(task: str, of: Signature, results: bool, options: dict[str, Any]) -> tuple[Schedule, ...]:
    """Return the schedules of a task: the one of the short options has the task's own name."""
    from taskbridge.schedules import plan  # here, for few tasks have one

    timings = plan.checked_timings(options.pop("schedules", ()))
    short = plan.timing_of(**options)
    found = [] if short is None else [plan.named(task, task, short, results=results)]
    found += [plan.named(None, task, timing, results=results) for timing in timings]
    try:
        of.bind()
    except TypeError as exc:
        raise DeclarationError(
            f"it is sent without arguments by its schedule, but needs some ({exc}); "
            "give them with bridge.periodic(task.call(...), cron=...)"
        ) from exc
    return tuple(found)


_MAIN: Final = ("__main__", "__mp_main__")  # a script's own module: in the process, and in those of `multiprocessing`


def default_name(function: Callable[..., Any]) -> str:
    """Return `module.qualname`; a script's own module has the name by which a worker would import it."""
    module = getattr(function, "__module__", None) or "?"
    if module in _MAIN:
        module = _name_of_script(module)
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"


def _name_of_script(module: str) -> str:
    """Return the name of a script's own module: its file's, after those of its packages, up to the current folder."""
    main = sys.modules.get(module)
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name not in _MAIN:  # `python -m` knows it
        return str(spec.name)
    if path is None:
        return module
    folder, name = split(splitext(abspath(str(path)))[0])
    while basename(folder) and isfile(join(folder, "__init__.py")) and not samefile(folder, curdir):  # up to the root
        folder, package = split(folder)
        name = f"{package}.{name}"
    return name


def place_of(function: Callable[..., Any]) -> str:
    """Return where a function is defined, as `file:line`, the same for a module imported twice; else what it is."""
    code = getattr(function, "__code__", None)
    return f"{function!r} ({id(function):#x})" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
