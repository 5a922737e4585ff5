"""What an application makes flows of: `then`, `group`, `on_failure`, `on_end` and `become` (rule W1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import formatannotation, unwrap
from itertools import chain, islice
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from taskbridge.context import running
from taskbridge.exceptions import NoCurrentTaskError, TaskBridgeError
from taskbridge.flows.plan import LONGEST_FLOW_ID
from taskbridge.flows.results import Results
from taskbridge.flows.states import FlowEnd, OnError, Outcome
from taskbridge.message import is_id
from taskbridge.retry import Become
from taskbridge.tasks import Call, Sendable, Steps, checked_when

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.declaration import Declaration
    from taskbridge.durations import When
    from taskbridge.flows.handle import FlowHandle
    from taskbridge.sending import Sending

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_MOST_HINTS: Final = 1000  # of how many functions the type hints are kept


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A part of a flow that starts when the part before it has ended well.

    Attributes:
        call: The call, if it is a single step.
        members: The calls of a group; those of a generator can be read once.
        at_once: How many members are with the broker at a time, at most; None is no limit.
        on_error: What the first member does that ends badly.
        takes_result: Whether the single step gets the result of the stage before as its first argument.
    """

    call: Call[Any] | None
    members: Iterable[Call[Any]] | None = None
    at_once: int | None = None
    on_error: OnError = "fail"
    takes_result: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Flow(Steps[R_co]):
    """Steps that follow one another, made of calls; its type says what the last step returns. Immutable.

    Attributes:
        stages: The steps and groups, in order.
        failure: What `on_failure` calls, without the `FlowEnd`.
        end: What `on_end` calls, without the `FlowEnd`.
        id: The flow's id, if it was given one.
        sender: Who sends it; None for an empty group by itself, which belongs to the default bridge.
    """

    stages: tuple[Stage, ...]
    failure: Call[Any] | None = None
    end: Call[Any] | None = None
    id: str | None = None
    sender: Sending | None = None

    def __repr__(self) -> str:
        names = ("group" if each.call is None else each.call.declaration.name for each in self.stages)
        return f"<Flow of {', '.join(names)}>"

    def followed(self, word: str, by: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}) -> Flow[Any]:
        """Return this flow with what `then`, `then_call`, `on_failure` or `on_end` adds to it."""
        old = cast("Flow[Any]", self)
        if word == "then_call":
            other = flow_of(by)
            if other.failure is not None or other.end is not None or other.id is not None:
                problem = "a flow that goes on with another one has one id and one set of callbacks"
                raise ValueError(
                    f"{problem}: give them to the whole, or have a task return become(...) that other flow"
                )
            _check_bridges(old.sender, other.sender)
            return replace(old, stages=(*old.stages, *other.stages), sender=old.sender or other.sender)
        last = old.stages[-1].call
        result = Results if last is None else _hint(last.declaration, "return")
        call = _call_after(old.sender, word, by, args, kwargs, result if word == "then" else FlowEnd)
        if word == "then":
            return replace(old, stages=(*old.stages, Stage(call, takes_result=True)), sender=call.sender)
        if (old.failure if word == "on_failure" else old.end) is not None:
            raise ValueError(f"a flow has one {word}: have that one send the others")
        added: Any = {word.removeprefix("on_"): call}
        return replace(old, **added, sender=call.sender)

    def using(self, *, id: str) -> Flow[R_co]:
        """Return the same flow with an id of the caller's choice, such as `nightly-2026-11-28`.

        As long as a flow of this id is kept (`result_ttl` after its end, and 7 days at least), the same flow is not
        sent again, and another one is an `IdempotencyConflict` (rule W2).
        """
        if not is_id(id) or len(id.encode()) > LONGEST_FLOW_ID:
            problem = f"a flow's id is text of 1 to {LONGEST_FLOW_ID} bytes without control characters"
            raise ValueError(f"{problem}, not {id!r}")
        return replace(self, id=id)

    def send(self) -> FlowHandle[R_co]:
        """Send the flow; returns when it is known, and its first steps are with the broker or soon will be (rule W2).

        Raises:
            EncodeError: An argument can't be put in a message.
            UnknownQueue, MessageTooLarge: As for a message of its own.
            IdempotencyConflict: There is another flow of its id.
            UnsupportedError: The bridge has no store (rule W15).
            StoreUnavailable, BrokerUnavailable: It was not taken within `send_timeout`.
            TypeError: A generator of a group gives what is no call.
            TaskBridgeError: A generator of a group was read already, as the flow was sent.
        """
        return self._bridge.flows.send(self)

    async def asend(self) -> FlowHandle[R_co]:
        """Do as `send` without blocking the event loop."""
        return await self._bridge.flows.asend(self)

    def schedule(self, when: When) -> FlowHandle[R_co]:
        """Send the flow so that its first stage starts later; raises as `send`, and as `Task.schedule` for the time."""
        return self._bridge.flows.send(self, when=checked_when(when))

    async def aschedule(self, when: When) -> FlowHandle[R_co]:
        """Do as `schedule` without blocking the event loop."""
        return await self._bridge.flows.asend(self, when=checked_when(when))

    @property
    def _bridge(self) -> Bridge:
        if self.sender is not None:
            return self.sender.bridge
        from taskbridge import default_bridge  # here, for the bridge's module imports this one

        return default_bridge()


class _Once:
    """The calls of a generator, which are checked as they are read, and read once."""

    def __init__(self, calls: Iterator[Any], sender: Sending | None) -> None:
        self._calls: Iterator[Any] | None = calls
        self._sender = sender

    def __iter__(self) -> Iterator[Call[Any]]:
        calls, self._calls = self._calls, None
        if calls is None:
            raise TaskBridgeError(
                "the calls of this group come from a generator, which was read as the flow was sent: make the flow anew"
            )
        return (_step(call, self._sender) for call in calls)


@overload
def group(
    calls: Iterable[Call[R]], *, at_once: int | None = None, on_error: Literal["fail", "wait"] = "fail"
) -> Flow[Results[R]]: ...


@overload
def group(
    calls: Iterable[Call[R]], *, at_once: int | None = None, on_error: Literal["collect"]
) -> Flow[Results[Outcome[R]]]: ...


def group(calls: Iterable[Call[Any]], *, at_once: int | None = None, on_error: OnError = "fail") -> Flow[Any]:
    """Return a flow of calls that run side by side; its result is that of each, in order.

    Args:
        calls: Any number of calls. A generator is read once, as the flow is sent, and never held as a whole; none but
            its first call is drawn before. A group of no calls is done at once.
        at_once: How many of them are with the broker at a time, at most; None is no limit.
        on_error: What happens if one ends badly: `fail` lets no further one start and ends the flow as failed, `wait`
            does so when all have ended, and `collect` gives what follows an `Outcome` of each.

    Raises:
        TypeError: What is given is no iterable of calls; for a generator the send raises it.
        ValueError: `at_once` is less than 1, or there is no such `on_error`; or as for any flow.
    """
    if at_once is not None and (not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1):
        raise ValueError(f"at_once must be a whole number of at least 1, or None, not {at_once!r}")
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}, not {on_error!r}")
    if not isinstance(calls, Iterable):
        raise TypeError(f"group takes calls, such as group(resize.call(i) for i in ids), not {calls!r}")
    rest = iter(calls)
    drawn = [*calls] if isinstance(calls, Collection) else [*islice(rest, 1)]
    sender = _step(drawn[0], None).sender if drawn else None
    checked = [_step(call, sender) for call in drawn]
    members = tuple(checked) if isinstance(calls, Collection) else _Once(chain(checked, rest), sender)
    return Flow((Stage(None, members, at_once, on_error),), sender=sender)


def become(flow: Flow[R] | Call[R], /) -> R:
    """Have the running task end as a flow does: it returns what this returns (rule W14).

    Such as `return become(group(load.call(i) for i in ids).then(count))`. The flow begins in the act that ends the run.
    Until it ends, the message is `running`, and then it is done with the flow's result, or dead, or cancelled. A plain
    call of the task's function sends nothing: it returns an object whose `flow` is the flow.

    Raises:
        NoCurrentTaskError: No task is running here.
        TypeError: It is neither a flow nor a call.
    """
    if running.get() is None:
        raise NoCurrentTaskError("become() was called outside a running task: send the flow instead")
    return cast("R", Become(flow_of(flow)))


def flow_of(flow: Flow[R] | Call[R]) -> Flow[R]:
    """Return a call as a flow of one step, and a flow itself; raise `TypeError` for anything else."""
    if isinstance(flow, Call):
        return Flow((Stage(_step(flow, None)),), sender=flow.sender)
    if not isinstance(flow, Flow):
        raise TypeError(f"a flow is what group(...), task.call(...) and their methods return, not {flow!r}")
    return flow


# What is checked


def _step(call: Call[Any], sender: Sending | None) -> Call[Any]:
    """Return a call if it can be a step of a flow, with what that sender sends if it is known."""
    if not isinstance(call, Call):
        raise TypeError(f"a flow is made of what task.call(...) returns, not of {call!r}")
    task, options = call.declaration, call.options
    if task.unique is not None:
        raise ValueError(f"task {task.name!r} is unique, and a step of a flow is not: make a task without unique of it")
    if options.id is not None:
        raise ValueError(f"the flow gives its steps their ids: leave {options.id!r} out, and use flow.using(id=...)")
    if options.commit is not ... and options.commit is not None:
        raise ValueError(
            "no step waits for a commit by itself: leave that out, and use transaction.on_commit(flow.send)"
        )
    _check_bridges(sender, call.sender)
    return call


def _check_bridges(one: Sending | None, other: Sending | None) -> None:
    if one is not None and other is not None and one is not other:
        raise ValueError("the steps of a flow are tasks of one bridge, and these are of two")


def _call_after(
    sender: Sending | None, word: str, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Any
) -> Call[Any]:
    """Return the call of a task whose first argument, a value of a class, comes later."""
    if isinstance(task, Call):
        remedy = f"write {word}({task.declaration.name}, ...), or then_call for a call that gets no result"
        raise TypeError(f"{word} takes a task and its other arguments, not a call: {remedy}")
    if not isinstance(task, Sendable):
        raise TypeError(f"{word} takes a task and its other arguments, not {task!r}: is it a @task?")
    call: Call[Any] = cast("Sendable[..., Any]", task).call(given, *args, **kwargs)
    wanted = _hint(call.declaration, next(iter(call.declaration.signature.parameters)))
    if not _may_fit(given, wanted):
        takes, gets = formatannotation(wanted), formatannotation(given)
        raise TypeError(f"task {task.name!r} takes {takes} first, and {word} gives it {gets}, as type hints say")
    return _step(replace(call, args=tuple(args)), sender)


@lru_cache(_MOST_HINTS)  # for chains are made anew for each send
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(unwrap(function))


def _hint(task: Declaration, name: str) -> Any:
    """Return what a task's type hint says of a parameter, or of what it returns; `Any` if that is not known."""
    try:
        return _hints(task.function).get(name, Any)
    except Exception:  # whatever the evaluation of somebody's text raises
        return Any


_WIDER: Final[dict[Any, Any]] = {float: (int, float), complex: (int, float, complex)}


def _may_fit(given: Any, wanted: Any) -> bool:
    """Return whether a value that one hint tells of may be one that the other tells of; True if that is not clear."""
    one, other = (get_origin(hint) or hint for hint in (given, wanted))
    kinds = one, other
    if Any in kinds or UnionType in kinds or not all(isinstance(kind, type) for kind in kinds):  # `Union` is no type
        return True
    try:
        return issubclass(one, _WIDER.get(other, other)) or issubclass(other, one)
    except TypeError:  # a protocol, say
        return True
