"""What goes on in all workers of a bridge, as the broker and the store tell it: nothing is asked of a worker.

Each call takes a fixed number of commands, whatever is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from taskbridge.durations import moment, timestamp
from taskbridge.exceptions import UnsupportedError
from taskbridge.results import shown
from taskbridge.retry import ErrorInfo
from taskbridge.stores.backend import Listed
from taskbridge.stores.base import Store
from taskbridge.stores.states import WAITING, State, Status
from taskbridge.vitals import AHEAD_S, MINUTES, Running, Tally, Worker, read

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.brokers import base
    from taskbridge.flows.states import FlowState, FlowStatus
    from taskbridge.pauses import Pause

__all__ = ["Alarm", "Failures", "FlowsPage", "MessagesPage", "Operations", "QueueNow", "Rates", "Running", "Worker"]

ALIVE_S: Final = 20.0
"""For how long after it was last heard of a process counts as alive; it tells of itself every 5 s."""

LATE_S: Final = 60.0
"""After how long a waiting message is an alarm."""

_MOST_GROUPS: Final = 200
_MOST_A_PAGE: Final = 500
_ROUNDS: Final = 4  # how often the list is read for one page
_READ: Final = 100  # how much of it at least at a time
_LOOKED_AT: Final = 20  # of each queue's list, for the oldest message that waits
_SETTLED_S: Final = 60.0  # after how long a list that says something else than the record is wrong, and not early

_Told = tuple[Sequence[tuple[Worker, tuple[Running, ...]]], Tally]
_States = tuple[State, ...]
_STATES: Final[_States] = get_args(State)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueNow:
    """A known queue.

    Attributes:
        name: Its name.
        engine: The engine whose workers consume it now; empty if none does, both by comma during a switch.
        waiting: How many messages wait in it.
        oldest_s: For how many seconds its oldest message has waited; None if none does, or without `listing`.
        running: How many of its messages run; None without a store.
        paused: Its pause; None if it has none.
    """

    name: str
    engine: str
    waiting: int
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
        dead: Messages that are dead, but for those that can't be read.
        discarded: Messages that expired or were dropped.
        by_task: By task, how many were done, retried and dead in the last 60 to 65 minutes.
    """

    started_at: datetime
    done: tuple[int, ...]
    retried: tuple[int, ...]
    dead: tuple[int, ...]
    discarded: tuple[int, ...]
    by_task: Mapping[str, tuple[int, int, int]]


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
class MessagesPage:
    """Messages, the latest first.

    Attributes:
        items: What is known of each. There may be fewer than were asked for, even none, though more follow.
        cursor: What to ask for the next ones with; empty if there are no more.
    """

    items: tuple[Status, ...]
    cursor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowsPage:
    """Flows, the latest first.

    Attributes:
        items: What is known of each.
        cursor: What to ask for the next ones with; empty if there are no more.
    """

    items: tuple[FlowStatus, ...]
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

    def __init__(self, bridge: Bridge, told: _Told | None = None) -> None:
        self._bridge = bridge
        self._told = told

    def snapshot(self) -> Operations:
        """Return operations for which what workers do was read now, once for all calls; it needs a store."""
        return Operations(self._bridge, self._vitals())

    def queues(self, counts: base.Counts | None = None) -> tuple[QueueNow, ...]:
        """Return the known queues, the default one first.

        Args:
            counts: What `Bridge.counts` has returned just now, if it was asked anyway.
        """
        bridge, waiting = self._bridge, (self._bridge.counts() if counts is None else counts).waiting
        if bridge.store is None:
            return tuple(QueueNow(name=name, engine="", waiting=count) for name, count in waiting.items())
        told, _ = self._vitals()
        oldest = self._oldest(tuple(waiting)) if bridge.settings.listing else {}
        paused = {each.queue: each for each in bridge.paused()}
        return tuple(
            QueueNow(
                name=name,
                engine=", ".join(sorted({worker.engine for worker, _ in told if name in worker.queues})),
                waiting=count,
                oldest_s=oldest.get(name),
                running=sum(each.queue == name for _, running in told for each in running),
                paused=paused.get(name),
            )
            for name, count in waiting.items()
        )

    def rates(self) -> Rates:
        """Return how many runs ended in each of the last 60 minutes."""
        _, tally = self._vitals()
        now = self._bridge.now()
        first = int(now // 60) - MINUTES + 1
        of_all = tally.counts.get("", {})
        minutes = [of_all.get(slot, [0, 0, 0, 0]) for slot in range(first, first + MINUTES)]
        done, retried, dead, discarded = (tuple(column) for column in zip(*minutes, strict=True))
        sums = {
            task: [sum(column) for column in zip(*slots.values(), strict=True)] for task, slots in tally.counts.items()
        }
        by_task = {task: (each[0], each[1], each[2]) for task, each in sorted(sums.items()) if task}
        return Rates(
            started_at=moment(first * 60),
            done=done,
            retried=retried,
            dead=dead,
            discarded=discarded,
            by_task=by_task,
        )

    def running(self) -> tuple[Running, ...]:
        """Return what runs now, the earliest first; of each process at most 100 runs."""
        told, _ = self._vitals()
        return tuple(sorted((each for _, running in told for each in running), key=lambda each: each.since))

    def failures(self) -> tuple[Failures, ...]:
        """Return the failures of the last 24 hours, equal ones together, the latest first; at most 200.

        Two are equal if task, exception type and the first 300 characters of its text are.
        """
        _, tally = self._vitals()
        found = [
            Failures(
                task=task,
                error=ErrorInfo(type=kind, message=said),
                count=count,
                first_at=moment(first),
                last_at=moment(last),
                last_id=last_id,
                is_dead_count=deaths,
            )
            for (task, kind, said), (count, deaths, first, last, last_id) in tally.failures.items()
        ]
        return tuple(reversed(found))

    def workers(self) -> tuple[Worker, ...]:
        """Return the processes that run tasks, by name."""
        return tuple(sorted((worker for worker, _ in self._vitals()[0]), key=lambda each: each.name))

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
        """Return messages, the latest first, by when they came to their state, or are due.

        Args:
            task: A glob of task names.
            queue: None is all.
            state: None is all.
            since: When they came to their state, or are due, at the earliest; None is ever.
            cursor: Of the page before; empty for the first. One that no page had is a `ValueError`.
            most: How many are returned at most, from 1 to 500.
        """
        store, now = self._store("messages"), self._bridge.now()
        if not self._bridge.settings.listing:
            raise UnsupportedError("V6", self._bridge.settings.url.target, "messages are listed with listing=True only")
        states: _States = _STATES if state is None else ("queued", "scheduled") if state == "queued" else (state,)
        from_s = -inf if since is None else timestamp(since, name="since")
        before, most, items = _before(cursor), max(1, min(most, _MOST_A_PAGE)), list[Status]()
        for _ in range(_ROUNDS):
            listed = self._listed(store, states, before, max(most, _READ))
            for at, message_id, record in listed:
                if at < from_s:
                    return MessagesPage(items=tuple(items), cursor="")
                before = at, message_id
                found = None if record is None else shown(record, now)
                if found is not None and fnmatchcase(found.task, task) and queue in (None, found.queue):
                    items += [found] if state in (None, found.state) else []
                if len(items) == most:
                    return MessagesPage(items=tuple(items), cursor=f"{at!r} {message_id}")
            if len(listed) < max(most, _READ):
                return MessagesPage(items=tuple(items), cursor="")
        return MessagesPage(items=tuple(items), cursor=f"{before[0]!r} {before[1]}")

    def flows(
        self, *, state: FlowState | Literal["stalled"] | None = None, cursor: str = "", most: int = 50
    ) -> FlowsPage:
        """Return flows, the latest first, by when they ended, or were sent.

        Args:
            state: None is all. Of those that are `stalled`, there is one page.
            cursor: Of the page before; empty for the first. One that no page had is a `ValueError`.
            most: How many are returned at most, from 1 to 500.
        """
        flows, most = self._bridge.flows, max(1, min(most, _MOST_A_PAGE))
        if state == "stalled":
            return FlowsPage(items=tuple(flows.stalled(most=most)), cursor="")
        items = tuple(flows.list(state=state, before=_before(cursor), most=most))
        if len(items) < most:
            return FlowsPage(items=items, cursor="")
        last = items[-1]
        return FlowsPage(items=items, cursor=f"{(last.ended_at or last.created_at).timestamp()!r} {last.id}")

    def alarms(self, *, queues: Sequence[QueueNow] | None = None, rates: Rates | None = None) -> tuple[Alarm, ...]:
        """Return what somebody should look at, the worst first.

        Args:
            queues: What `queues` has returned; None is to ask.
            rates: What `rates` has returned; None is to ask.
        """
        found, bridge = list[Alarm](), self._bridge
        for each in self.queues() if queues is None else queues:
            name = each.name
            if each.waiting and not each.engine and bridge.store is not None:
                text = f"{each.waiting} messages wait in queue {name}, and no worker consumes it"
                found.append(Alarm(text=text, level="error", queue=name))
            if each.oldest_s is not None and each.oldest_s > LATE_S:
                text = f"a message has waited for {each.oldest_s:.0f} s in queue {name}"
                found.append(Alarm(text=text, level="warning", queue=name))
            if each.paused is not None:
                found.append(Alarm(text=f"queue {name} is paused", level="warning", queue=name))
        if bridge.store is not None:
            globs = [each.task for each in bridge.paused() if each.task is not None]
            found += [Alarm(text=f"tasks {glob} are paused", level="warning") for glob in globs]
            if dead := sum((self.rates() if rates is None else rates).dead):
                found.append(Alarm(text=f"{dead} messages died in the last hour", level="error"))
            for schedule in bridge.schedules.list():
                if schedule.missed:
                    text = f"schedule {schedule.name} has missed {schedule.missed} ticks in all"
                    found.append(Alarm(text=text, level="warning"))
            if stalled := bridge.flows.counts()["stalled"]:
                what = "1 flow is" if stalled == 1 else f"{stalled} flows are"
                found.append(Alarm(text=f"{what} stalled", level="error"))
        return tuple(sorted(found, key=lambda each: each.level))

    # What the store tells

    def _store(self, what: str) -> Store:
        store = self._bridge.store
        if store is None:
            remedy = "needs a store; set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
            raise UnsupportedError("V6", self._bridge.settings.url.target, f"{what} {remedy}")
        return store

    @property
    def _timeout_s(self) -> float:
        return self._bridge.settings.send_timeout_s

    def _vitals(self) -> _Told:
        """Return what living processes do, and the counts of all that were alive lately."""
        if self._told is not None:
            return self._told
        store = self._store("what workers do")
        if self._bridge.settings.url.engine == "inline":
            engine: Any = self._bridge.engine
            engine.tell()
        told, tally = read(store.backend, timeout_s=self._timeout_s)
        now = self._bridge.now()
        tally.trim(now, most_failures=_MOST_GROUPS)
        alive = [each for each in told if -AHEAD_S < now - each[0].seen_at.timestamp() < ALIVE_S]
        return [each for each in alive if each[0].slots], tally  # the main process of Celery's children has none

    def _listed(
        self, store: Store, states: _States, before: tuple[float, str], most: int
    ) -> list[tuple[float, str, Status | None]]:
        """Return the latest messages of lists, each with its record, or None if that says something else."""
        found = store.backend.listed("state", states, before=before, most=most, timeout_s=self._timeout_s)
        of_all = [(at, key, state) for state, each in zip(states, found, strict=True) for key, at in each]
        latest = sorted(of_all, reverse=True)[:most]
        records = store.records.find([key for _, key, _ in latest], timeout_s=self._timeout_s)
        listed: list[tuple[float, str, Status | None]] = []
        wrong: list[tuple[str, float, tuple[str, ...]]] = []
        for (at, key, state), record in zip(latest, records, strict=True):
            is_sound = record is not None and record.state == state
            listed.append((at, key, record if is_sound else None))
            wrong += [] if is_sound else [(key, at, (state,))]
        self._unlist(store, wrong)
        return listed

    def _oldest(self, queues: Sequence[str]) -> dict[str, float]:
        """Return for how long the oldest message of each queue has waited, where one does."""
        store, now = self._store("waiting times"), self._bridge.now()
        found = store.backend.listed("queue", queues, before=(inf, ""), most=_LOOKED_AT, timeout_s=self._timeout_s)
        ids = [key for each in found for key, _ in each]
        records = dict(zip(ids, store.records.find(ids, timeout_s=self._timeout_s), strict=True))
        oldest = dict[str, float]()
        for queue, each in zip(queues, found, strict=True):
            waits = {key for key, _ in each if (record := records[key]) and record.state in WAITING}
            since = next((at for key, at in each if key in waits), inf)
            if since <= now:
                oldest[queue] = now - since
            self._unlist(store, [(key, at, WAITING) for key, at in each if key not in waits], queue)
        return oldest

    def _unlist(self, store: Store, wrong: Sequence[tuple[str, float, tuple[str, ...]]], queue: str = "") -> None:
        """Take messages out of lists that say something else than their records, unless these are only later."""
        now = self._bridge.now()
        old = [Listed(key, formers=states, freed=queue) for key, at, states in wrong if now - at > _SETTLED_S]
        if old:
            store.backend.list_soon(old)


def _before(cursor: str) -> tuple[float, str]:
    """Return the time and the id that a cursor names."""
    at, _, message_id = cursor.partition(" ")
    if not cursor:
        return inf, ""
    with suppress(ValueError):
        if isfinite(place := float(at)):
            return place, message_id
    raise ValueError(f"there is no page with the cursor {cursor!r}")
