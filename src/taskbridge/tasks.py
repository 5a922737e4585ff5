"""Tasks: what the decorator makes of a function."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

from taskbridge import codec
from taskbridge.declaration import Declaration
from taskbridge.durations import Duration, When, positive, timestamp
from taskbridge.handle import Handle
from taskbridge.message import FLOW_FORM, LONGEST_ID, TYPED_FORM, Priority, checked_priority, is_id
from taskbridge.routing import check_queue_name

if TYPE_CHECKING:
    from types import EllipsisType

    from typing_extensions import Self  # only here, for it takes 5 ms to import

    from taskbridge.flows.building import Flow
    from taskbridge.flows.states import FlowEnd
    from taskbridge.sending import Sending
    from taskbridge.transactions import Commit, Committing

P = ParamSpec("P")
R = TypeVar("R")
R2 = TypeVar("R2")
R_co = TypeVar("R_co", covariant=True)

Header: TypeAlias = str | int | bool | None
"""What a header may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SendOptions:
    """What `using` says of one message; None leaves it to the task and the settings, and so does `commit=...`."""

    queue: str | None = None
    priority: Priority | None = None
    expires: Duration | datetime | None = None
    headers: Mapping[str, Header] = field(default_factory=dict[str, Any])
    id: str | None = None
    commit: Committing = ...

    def __post_init__(self) -> None:
        """Check what is given; raises as `Sendable.using`."""
        if self.queue is not None:
            check_queue_name(self.queue)
        if self.priority is not None:
            checked_priority(self.priority)
        if isinstance(self.expires, datetime):
            timestamp(self.expires, name="expires")
        elif self.expires is not None:
            positive(self.expires, name="expires")
        for key, value in self.headers.items():
            if not isinstance(key, str) or not isinstance(value, str | int | None):
                raise TypeError(f"headers must be text, whole numbers, bools or None by name, not {key!r}: {value!r}")
        if self.id is not None and not is_id(self.id):
            raise ValueError(f"an id is text of 1 to {LONGEST_ID} bytes without control characters, not {self.id!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[R_co]):
    """A call that is not sent yet, made by `Task.call`: for `send_many`, for schedules, and a flow of one step.

    `then`, `then_call`, `on_failure` and `on_end` make a `Flow` of it, whose methods of these names say more (rules W).
    """

    declaration: Declaration
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: SendOptions
    sender: Sending = field(default=cast("Sending", None), compare=False, repr=False)  # of those that tasks make

    @overload
    def then(
        self, task: Callable[Concatenate[R_co, P], Coroutine[Any, Any, R2]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R2]: ...

    @overload
    def then(self, task: Callable[Concatenate[R_co, P], R2], /, *args: P.args, **kwargs: P.kwargs) -> Flow[R2]: ...

    def then(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Have a task run when this call ended well, with its result as the first argument, before these."""
        return self._flow().then(task, *args, **kwargs)

    def then_call(self, call: Call[R2] | Flow[R2], /) -> Flow[R2]:
        """Have a call, or the stages of a flow, run when this call ended well; the result goes nowhere."""
        return self._flow().then_call(call)

    def on_failure(
        self, task: Callable[Concatenate[FlowEnd, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[R_co]:
        """Have a task run once if this call ends badly, with a `FlowEnd` as the first argument."""
        return self._flow().on_failure(task, *args, **kwargs)

    def on_end(self, task: Callable[Concatenate[FlowEnd, P], Any], /, *args: P.args, **kwargs: P.kwargs) -> Flow[R_co]:
        """Have a task run once, however this call ends, with a `FlowEnd` as the first argument."""
        return self._flow().on_end(task, *args, **kwargs)

    def _flow(self) -> Flow[R_co]:
        return self.sender.flow_of(self)

    def send(self) -> Handle[R_co]:
        """Send the call, as one message; see `Task.send`."""
        return self.sender.send_call(self, when=None)

    async def asend(self) -> Handle[R_co]:
        """Do as `send` without blocking the event loop."""
        return await self.sender.asend_call(self, when=None)

    def schedule(self, when: When) -> Handle[R_co]:
        """Send the call so that it starts later; see `Task.schedule`."""
        return self.sender.send_call(self, when=checked_when(when))

    async def aschedule(self, when: When) -> Handle[R_co]:
        """Do as `schedule` without blocking the event loop."""
        return await self.sender.asend_call(self, when=checked_when(when))

    def encoded(self) -> tuple[str, str, int]:
        """Return `Message.args_json`, `kwargs_json` and `form`, which they need; raises `EncodeError`."""
        hints, form = self.declaration.hints, 1
        args, kwargs = (self.args, self.kwargs) if hints is None else hints.lowered(self.args, self.kwargs)
        args_json = codec.dumps_array(args, "args")
        kwargs_json = codec.dumps_object(kwargs, "kwargs") if kwargs else "{}"
        if codec.TAGGED in args_json or codec.TAGGED in kwargs_json:  # most hold none
            texts = args_json, kwargs_json
            if any(tag in text for tag in codec.OF_FLOWS for text in texts):
                form = FLOW_FORM
            elif any(codec.TYPED in text for text in texts):
                form = TYPED_FORM
        return args_json, kwargs_json, form


def checked_when(when: When | None) -> When:
    """Return a time that was given; raise `TypeError` for None."""
    if when is None:
        raise TypeError("when must be a timedelta, a number of seconds or an aware datetime, not None: send is for now")
    return when


_AS_DECLARED: Final = SendOptions()


class Sendable(Generic[P, R]):
    """What all tasks have in common: they can be sent. Immutable."""

    def __init__(self, sender: Sending, declaration: Declaration, options: SendOptions = _AS_DECLARED) -> None:
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

    if not TYPE_CHECKING:  # to which everything would be an attribute

        def __getattr__(self, name: str) -> Any:
            from taskbridge.remedies import METHODS, instead  # here, for only errors need it

            raise AttributeError(f"a task has no {name!r}{instead(name, METHODS)}", name=name, obj=self)

    def using(
        self,
        *,
        queue: str | None = None,
        priority: Priority | None = None,
        expires: Duration | datetime | None = None,
        headers: Mapping[str, Header] | None = None,
        id: str | None = None,
        commit: str | Sequence[str] | Commit | EllipsisType | None = ...,
    ) -> Self:
        """Return the same task with options for what is sent through it; None leaves an option as it was.

        Args:
            queue: Where to send it, over routes and the decorator (rule Q1).
            priority: `low`, `normal`, `high` or `critical`.
            expires: It does not start later than this: a time from the moment of sending, or an aware datetime.
            headers: Text, whole numbers, bools and None that travel along, added to what was given before.
            id: The message's id, of the caller's choice, such as `invoice-42`: as long as a message of this id has a
                record, the same call is not sent again, and another one is an `IdempotencyConflict` (rule U6).
            commit: The database whose transaction is to be committed before it is sent, if one is open, or several; or
                `outbox`, to put it into the application's own database; or a session's transaction, by
                `taskbridge.integrations.sqlalchemy`. None sends at once, and `...` leaves it as it was.

        Raises:
            ValueError: A naive datetime, a wrong priority, queue name, duration, id or commit.
            TypeError: A header of another type.
        """
        now = self._options
        its_commit = now.commit
        if commit is not ...:
            from taskbridge.transactions import Commit, checked_commit  # here, for few applications have transactions

            its_commit = commit if isinstance(commit, Commit) else checked_commit(commit)
        options = SendOptions(
            queue=now.queue if queue is None else queue,
            priority=now.priority if priority is None else priority,
            expires=now.expires if expires is None else expires,
            headers=now.headers if headers is None else {**now.headers, **headers},
            id=now.id if id is None else id,
            commit=its_commit,
        )
        return type(self)(self._sender, self._declaration, options)

    @property
    def on_commit(self) -> Self:
        """The same task, sent when the open transaction of the database `default` is committed; at once if none is.

        It is `using(commit="default")` for short. If the transaction is rolled back, nothing is sent.
        """
        return self.using(commit="default")

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a call that is not sent yet; raise `TypeError` if the arguments don't fit the function."""
        self._declaration.check(args, kwargs)
        return Call(declaration=self._declaration, args=args, kwargs=kwargs, options=self._options, sender=self._sender)

    def send(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Send the task to its queue; returns when the broker has it (rule S1).

        Raises:
            TypeError: The arguments don't fit the function.
            EncodeError: An argument can't be put in a message.
            UnknownQueue: There is no such queue.
            MessageTooLarge: The message is over `max_message_bytes`.
            BrokerUnavailable: The broker didn't take it within `send_timeout`.
            UniqueConflict, IdempotencyConflict: Another message holds its unique key, or its id.
            UnsupportedError: It has a unique key, or an id of the caller's, and the bridge has no store; or a `commit`,
                and the bridge knows no transactions.
        """
        return self._sender.send_call(self.call(*args, **kwargs), when=None)

    def schedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Send the task so that it starts later: after a time, or at an aware datetime (rules D).

        Raises what `send` raises, `ValueError` if `when` is a naive datetime, negative, or more than 8 years ahead, and
        `TypeError` if it is no time.
        """
        return self._sender.send_call(self.call(*args, **kwargs), when=checked_when(when))

    async def asend(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Do as `send` without blocking the event loop."""
        call = self.call(*args, **kwargs)
        return await self._sender.asend_call(call, when=None)

    async def aschedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Do as `schedule` without blocking the event loop."""
        call = self.call(*args, **kwargs)
        return await self._sender.asend_call(call, when=checked_when(when))

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Send any number of calls in pipelined batches, and return their handles in order (rule S5).

        Calls that say nothing of `commit` are sent as this task says, all that wait for a transaction together. It
        raises `SendError`, which says which were not sent; and `EncodeError`, `UnknownQueue` and `MessageTooLarge`, as
        `send` does, before anything is sent.
        """
        return self._sender.send_many(calls, commit=self._options.commit)

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        return await self._sender.asend_many(calls, commit=self._options.commit)


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
