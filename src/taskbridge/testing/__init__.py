"""For the tests of applications: run tasks in the test, look at what was sent, call a function that asks `current()`.

The pytest plugin `taskbridge.testing.plugin` has fixtures that do the same.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, ParamSpec, cast

from taskbridge.bridge import Bridge, default_bridge
from taskbridge.brokers.base import Broker
from taskbridge.context import Context, current, entered
from taskbridge.durations import moment
from taskbridge.hooks import Event, Hooks
from taskbridge.message import Message, Priority, new_id
from taskbridge.retry import ErrorInfo, RetryPolicy
from taskbridge.runner import Runner
from taskbridge.tasks import Header, Sendable

P = ParamSpec("P")


@contextmanager
def inline(bridge: Bridge | None = None, *, at_send: bool | Literal["raise"] = False) -> Generator[Bridge, None, None]:
    """Have a bridge's messages run in this process while the block runs, with nothing left of them afterwards.

    Args:
        bridge: The bridge; the default one if None.
        at_send: Whether `send` runs messages itself; "raise" to raise the error of one that died, too. Else they wait
            for `run_until_idle`.
    """
    of = default_bridge() if bridge is None else bridge
    option = f"at_send={'raise' if at_send == 'raise' else 1}" if at_send else "threads=0"
    with of.temporarily(url=f"inline://?{option}", store="memory://"):
        yield of


@dataclass(frozen=True, kw_only=True, slots=True)
class SentMessage:
    """A message as it was sent.

    Attributes:
        task: The task's name.
        args: The positional arguments, as the task would get them.
        kwargs: The keyword arguments.
        queue: The queue it was sent to.
        priority: Its priority.
        delay_s: How long it was to wait, in seconds.
        expires_at: When it expires, in UTC; None is never.
        headers: What was sent along.
        id: Its id.
    """

    task: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    queue: str
    priority: Priority
    delay_s: float
    expires_at: datetime | None
    headers: Mapping[str, Any]
    id: str = field(compare=False)


class Sent(list[SentMessage]):
    """What was sent, in order."""

    def of(self, task: Sendable[..., Any]) -> list[SentMessage]:
        """Return the messages of one task."""
        return [message for message in self if message.task == task.name]

    def assert_sent(self, task: Sendable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> SentMessage:
        """Return the first message of a task with these arguments, however they were passed.

        Raises:
            AssertionError: There is none; it says what was sent.
        """
        bound = task.declaration.bound
        wanted = bound(args, kwargs)
        for message in self.of(task):
            if bound(message.args, message.kwargs) == wanted:
                return message
        shown = "".join(f"\n  {each.task} {each.args} {dict(each.kwargs)}" for each in self) or " nothing"
        raise AssertionError(f"{task.name} {args} {kwargs} was not sent; sent was:{shown}")


def _seen(bridge: Bridge, message: Message, delay_s: float) -> SentMessage:
    declaration = bridge.declaration_of(message.task)
    args, kwargs = message.arguments() if declaration is None else declaration.decoded(message)
    return SentMessage(
        task=message.task,
        args=tuple(args),
        kwargs=kwargs,
        queue=message.queue,
        priority=message.priority,
        delay_s=delay_s,
        expires_at=moment(message.expires_at),
        headers=message.headers,
        id=message.id,
    )


class _Capture:
    """Takes messages in the place of a broker."""

    def __init__(self, bridge: Bridge, sent: Sent) -> None:
        self._bridge = bridge
        self._sent = sent

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        self.park([(message, 0.0) for message in messages], timeout_s=timeout_s)

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        self._sent += [_seen(self._bridge, message, delay_s) for message, delay_s in messages]


@contextmanager
def capture_sent(bridge: Bridge | None = None) -> Generator[Sent, None, None]:
    """Keep what is sent while the block runs, and send none of it: no broker and no store is needed.

    Args:
        bridge: Whose messages; the default one's if None.
    """
    sent, of = Sent(), default_bridge() if bridge is None else bridge
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no url is set, none is needed
        _ = of.settings
    with of.divert(cast("Broker", _Capture(of, sent))):
        yield sent


@contextmanager
def watch_sent(bridge: Bridge | None = None) -> Generator[Sent, None, None]:
    """Keep what is sent while the block runs, and send it: within `inline`, say, so that it can also be run.

    Args:
        bridge: Whose messages; the default one's if None.
    """
    sent, of = Sent(), default_bridge() if bridge is None else bridge

    def keep(event: Event) -> None:
        if event.message is not None:
            sent.append(_seen(of, event.message, event.delay_s))

    with of.hooks.added("after_send", keep):
        yield sent


@contextmanager
def fake_run(
    task: Sendable[..., Any] | None = None,
    *,
    attempt: int = 1,
    max_attempts: int | None = 5,
    id: str | None = None,
    queue: str = "default",
    priority: Priority = "normal",
    headers: Mapping[str, Header] | None = None,
    previous_error: BaseException | None = None,
    cancelled: bool = False,
    stopping: bool = False,
) -> Generator[Context, None, None]:
    """Let `current()` answer while the block runs, so that a function that asks it can be called.

    What is given is what `current()` tells; it is a run of `task`, and the message's id is a new one if None.
    """
    message = Message(
        id=new_id() if id is None else id,
        task="fake" if task is None else task.name,
        queue=queue,
        priority=priority,
        args_json="[]",
        kwargs_json="{}",
        attempt=attempt,
        enqueued_at=time.time(),
        headers=dict(headers or {}),
        error=None if previous_error is None else ErrorInfo.of(previous_error),
    )
    runner = Runner(
        declaration=None if task is None else task.declaration,
        policy=RetryPolicy(max_attempts=max_attempts),
        hooks=Hooks(),
        now=time.time,
        most_bytes=None,
        is_cancelled=lambda _: cancelled,
        is_stopping=lambda: stopping,
    )
    with entered(message, runner):
        yield current()
