"""A task as a worker runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from taskbridge.brokers.base import Broker
from taskbridge.declaration import Declaration
from taskbridge.engines.cancellations import Cancellations
from taskbridge.hooks import Hooks
from taskbridge.message import Message
from taskbridge.runner import Runner
from taskbridge.settings import Settings
from taskbridge.stores.base import Marks
from taskbridge.stores.records import Records


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoundTask:
    """All that a run of a task needs, and all that settling it needs; made once a task, by `Bridge.bound`.

    Attributes:
        runner: Runs its messages, and judges those whose worker is gone.
        settings: The checked settings.
        hooks: The application's hooks.
        broker: The connection to the broker.
        marks: The attempt marks; None without a store.
        records: Where its messages are recorded; None without a store, and with `results=False`.
        cancellations: What is known of cancelled messages.
        stopping: Set once this process's worker stops.
        now: Returns the time, in seconds since the epoch.
    """

    runner: Runner
    settings: Settings
    hooks: Hooks
    broker: Broker
    marks: Marks | None
    records: Records | None
    cancellations: Cancellations
    stopping: threading.Event
    now: Callable[[], float]

    def was_cancelled(self, message: Message) -> bool:
        """Return whether a message that is about to start was cancelled, a second ago at the latest.

        Raises:
            BrokerUnavailable: That can't be known, for the store doesn't answer.
        """
        return self.records is not None and self.cancellations.has(message)


class Source(Protocol):
    """The bridge, as tasks are bound to it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def hooks(self) -> Hooks:
        """The application's hooks."""
        ...

    @property
    def broker(self) -> Broker:
        """The connection to the broker."""
        ...

    @property
    def marks(self) -> Marks | None:
        """The attempt marks; None without a store."""
        ...

    @property
    def stopping(self) -> threading.Event:
        """Set once this process's worker stops."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time, in seconds since the epoch."""
        ...

    def declaration_of(self, task: str) -> Declaration | None:
        """Return a task's declaration; None if it is not declared."""
        ...

    def records_of(self, task: str) -> Records | None:
        """Return where a task's messages are recorded; None if they are not."""
        ...


def bind(source: Source, cancellations: Cancellations, task: str) -> BoundTask:
    """Return a task as workers run it.

    Args:
        source: The bridge.
        cancellations: What is known of cancelled messages.
        task: The task's name, which may not be declared.
    """
    settings, broker, records = source.settings, source.broker, source.records_of(task)
    declaration = source.declaration_of(task)
    runner = Runner(
        declaration,
        policy=settings.retry if declaration is None or declaration.retry is None else declaration.retry,
        hooks=source.hooks,
        now=source.clock,
        most_bytes=None if records is None else settings.max_message_bytes,
        is_cancelled=_never if records is None else cancellations.knows,
    )
    return BoundTask(
        runner=runner,
        settings=settings,
        hooks=source.hooks,
        broker=broker,
        marks=source.marks,
        records=records,
        cancellations=cancellations,
        stopping=source.stopping,
        now=source.clock,
    )


def _never(_: Message) -> bool:
    return False
