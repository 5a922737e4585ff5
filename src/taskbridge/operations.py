"""What goes on in all workers of a bridge, as the broker and the store tell it: nothing is asked of a worker.

Each call takes a fixed number of commands, whatever is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.pauses import Pause
    from taskbridge.retry import ErrorInfo
    from taskbridge.stores.states import State, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueNow:
    """A known queue.

    Attributes:
        name: Its name.
        engine: The engine whose workers consume it now; empty if none does, both by comma during a switch.
        waiting: How many messages wait in it.
        delayed: How many wait for their time, or their next attempt; None if that is known of all queues together only.
        dead: How many of its messages are dead letters; None if that is known of all queues together only.
        oldest_s: For how many seconds its oldest message has waited; None if none does, or without `listing`.
        running: How many of its messages run; None without a store.
        paused: Its pause; None if it has none.
    """

    name: str
    engine: str
    waiting: int
    delayed: int | None = None
    dead: int | None = None
    oldest_s: float | None = None
    running: int | None = None
    paused: Pause | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How many runs ended in each of the last 60 minutes, the earliest first; the last one is not over.

    Attributes:
        started_at: When the first of these minutes began, in UTC.
        done: Runs that returned.
        retried: Runs that failed, and another attempt follows.
        dead: Messages that are dead.
        discarded: Messages that expired or were dropped.
        by_task: By task, how many were done, retried and dead in all 60 minutes.
    """

    started_at: datetime
    done: tuple[int, ...]
    retried: tuple[int, ...]
    dead: tuple[int, ...]
    discarded: tuple[int, ...]
    by_task: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A run that goes on.

    Attributes:
        task: The task's name.
        id: The message's id.
        queue: Where the message was.
        attempt: 1 is the first.
        since: When it started, in UTC.
        worker: Which process runs it, as `host:process id`.
    """

    task: str
    id: str
    queue: str
    attempt: int
    since: datetime
    worker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Failed attempts of a task in the last 24 hours whose errors are equal.

    Attributes:
        task: The task's name.
        error: The exception's type and text.
        count: How many failed.
        first_at: When the first one failed, in UTC.
        last_at: When the last one failed, in UTC.
        last_id: The id of the last message.
        is_dead_count: After how many of them the message was dead.
    """

    task: str
    error: ErrorInfo
    count: int
    first_at: datetime
    last_at: datetime
    last_id: str
    is_dead_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A process that runs tasks.

    Attributes:
        name: `host:process id`.
        engine: `celery`, `dramatiq` or `inline`.
        version: The release of taskbridge.
        queues: What it consumes.
        slots: How many tasks it runs at a time.
        busy: How many it runs now.
        seen_at: When it told that last, in UTC.
        started_at: When it started, in UTC.
    """

    name: str
    engine: str
    version: str
    queues: tuple[str, ...]
    slots: int
    busy: int
    seen_at: datetime
    started_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class MessagesPage:
    """Messages, the latest first.

    Attributes:
        items: What is known of each. There may be fewer than were asked for, even none, though more follow.
        cursor: What to ask for the next ones with; empty if there are no more.
    """

    items: tuple[Status, ...]
    cursor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """What somebody should look at.

    Attributes:
        text: One sentence.
        level: How bad it is.
        queue: The queue that it is about; None if it is about none.
    """

    text: str
    level: Literal["warning", "error"]
    queue: str | None = None


class Operations:
    """What goes on; `Bridge.operations`.

    Calls raise `BrokerUnavailable` or `StoreUnavailable` if these don't answer, and `UnsupportedError` where something
    is missing: all but `queues` and `alarms` need a store, and `messages` the setting `listing`.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def queues(self) -> tuple[QueueNow, ...]:
        """Return the known queues, the default one first."""
        raise NotImplementedError

    def rates(self) -> Rates:
        """Return how many runs ended in each of the last 60 minutes."""
        raise NotImplementedError

    def running(self) -> tuple[Running, ...]:
        """Return what runs now, the earliest first; of each process at most 100 runs."""
        raise NotImplementedError

    def failures(self) -> tuple[Failures, ...]:
        """Return the failures of the last 24 hours, equal ones together, the latest first; at most 200."""
        raise NotImplementedError

    def workers(self) -> tuple[Worker, ...]:
        """Return the processes that run tasks, by name."""
        raise NotImplementedError

    def messages(
        self,
        *,
        task: str = "*",
        queue: str | None = None,
        state: State | None = None,
        since: datetime | None = None,
        cursor: str = "",
        most: int = 50,
    ) -> MessagesPage:
        """Return messages, the latest first; those that a state lists late may be missing.

        Args:
            task: A glob of task names.
            queue: None is all.
            state: None is all.
            since: When they came to their state at the earliest; None is ever.
            cursor: Of the page before; empty for the first.
            most: How many are returned at most, up to 500.
        """
        raise NotImplementedError

    def alarms(self) -> tuple[Alarm, ...]:
        """Return what somebody should look at, the worst first."""
        raise NotImplementedError
