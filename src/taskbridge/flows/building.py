"""What an application makes flows of: `then`, `group`, `on_failure`, `on_end` and `become` (rule W1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import unwrap
from itertools import chain
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, Literal, ParamSpec, TypeVar, cast, get_args
from typing import get_origin, get_type_hints, overload

from taskbridge.context import running
from taskbridge.exceptions import NoCurrentTaskError
from taskbridge.flows.results import Results
from taskbridge.flows.states import FlowEnd, OnError, Outcome
from taskbridge.message import LONGEST_ID, is_id
from taskbridge.tasks import Call, Sendable, checked_when

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.declaration import Declaration
    from taskbridge.durations import When
    from taskbridge.flows.handle import FlowHandle
    from taskbridge.sending import Sending

P = ParamSpec("P")
R = TypeVar("R")
R2 = TypeVar("R2")
R_co = TypeVar("R_co", covariant=True)


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
class Flow(Generic[R_co]):
    """Steps that follow one another, made of calls; its type says what the last step returns. Immutable.

    Each method but the sending ones returns a new flow. All raise `TypeError` for what is no task or call, for arguments
    that don't fit, and for a result of a class that the task after it does not take; and `ValueError` for calls of two
    bridges, of unique tasks, with an id or a `commit`.

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

    @overload
    def then(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload] - the narrower case
        self, task: Callable[Concatenate[R_co, P], Coroutine[Any, Any, R2]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R2]: ...

    @overload
    def then(self, task: Callable[Concatenate[R_co, P], R2], /, *args: P.args, **kwargs: P.kwargs) -> Flow[R2]: ...

    def then(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Have a task run when all before it ended well, with its result as the first argument, before these.

        A group's result is a `Results`.
        """
        last = self.stages[-1]
        given = Results if last.call is None else _hint(last.call.declaration, "return")
        call = _call_after(self.sender, "then", task, args, kwargs, given)
        return self._with(Stage(call, takes_result=True), sender=call.sender)

    def then_call(self, call: Call[R2] | Flow[R2], /) -> Flow[R2]:
        """Have a call, or the stages of a flow, run when all before it ended well; the result goes nowhere."""
        if isinstance(call, Call):
            return cast("Flow[R2]", self._with(Stage(_step(call, self.sender)), sender=call.sender))
        if not isinstance(call, Flow):
            raise TypeError(f"then_call takes what task.call(...) or group(...) returns, not {call!r}; for a task: then")
        if call.failure is not None or call.end is not None or call.id is not None:
            raise ValueError(
                "a flow that goes on with another one has one id and one set of callbacks: give them to the whole, or "
                "have a task return become(...) that other flow"
            )
        _check_bridges(self.sender, call.sender)
        return cast("Flow[R2]", self._with(*call.stages, sender=self.sender or call.sender))

    @overload
    def on_failure(
        self, task: Callable[Concatenate[FlowEnd, P], Coroutine[Any, Any, Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R_co]: ...

    @overload
    def on_failure(
        self, task: Callable[Concatenate[FlowEnd, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R_co]: ...

    def on_failure(self, task: Any, /, *args: Any, **kwargs: Any) -> Flow[R_co]:
        """Have a task run once if the flow fails or is cancelled: with a `FlowEnd` as the first argument."""
        if self.failure is not None:
            raise ValueError("a flow has one on_failure: have that one send the others")
        call = _call_after(self.sender, "on_failure", task, args, kwargs, FlowEnd)
        return replace(self, failure=call, sender=call.sender)

    @overload
    def on_end(
        self, task: Callable[Concatenate[FlowEnd, P], Coroutine[Any, Any, Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R_co]: ...

    @overload
    def on_end(
        self, task: Callable[Concatenate[FlowEnd, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R_co]: ...

    def on_end(self, task: Any, /, *args: Any, **kwargs: Any) -> Flow[R_co]:
        """Have a task run once, last of all, however the flow ends: with a `FlowEnd` as the first argument."""
        if self.end is not None:
            raise ValueError("a flow has one on_end: have that one send the others")
        call = _call_after(self.sender, "on_end", task, args, kwargs, FlowEnd)
        return replace(self, end=call, sender=call.sender)

    def using(self, *, id: str) -> Flow[R_co]:
        """Return the same flow with an id of the caller's choice, such as `nightly-2026-11-28`.

        As long as a flow of this id is kept, the same flow is not sent again, and another one is an
        `IdempotencyConflict` (rule W2).
        """
        if not is_id(id):
            raise ValueError(f"an id is text of 1 to {LONGEST_ID} bytes without control characters, not {id!r}")
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

    def _with(self, *stages: Stage, sender: Sending | None) -> Flow[Any]:
        return replace(cast("Flow[Any]", self), stages=(*self.stages, *stages), sender=sender)
