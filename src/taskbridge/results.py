"""What becomes of messages, for whoever sent them: status, results and cancelling (rules ST, RS and CA)."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from taskbridge import codec, locks
from taskbridge.durations import Duration, seconds
from taskbridge.exceptions import (
    BrokerUnavailable,
    NoSuchRecord,
    ResultTimeout,
    StoreNotReady,
    StoreUnavailable,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    UnsupportedError,
)
from taskbridge.message import is_id
from taskbridge.retry import ErrorInfo
from taskbridge.stores.records import FINAL, AttemptRecord, Record, Records, State
from taskbridge.stores.transitions import life_of

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from taskbridge.engines.cancellations import Cancellations
    from taskbridge.settings import Settings

T = TypeVar("T")

_THREADS: Final = 4
"""How many threads ask the store for all who await."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One run of a message.

    Attributes:
        number: 1 is the first; a replay starts at 1 again.
        worker: Which process ran it, as `host:process id`.
        started_at: In UTC.
        ended_at: In UTC; None while it runs, or if its worker never told.
        error: Why it failed; None if it didn't.
    """

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What is known of a message.

    Attributes:
        id: The message's id.
        task: The task's name.
        queue: Where it was sent.
        state: `scheduled` (it waits for its time), `queued` (for a worker), `running`, `retrying` (an attempt failed,
            and the next one waits), or its end: `done`, `dead`, `discarded`, `cancelled`.
        enqueued_at: When it was sent, in UTC.
        due_at: When it starts at the earliest, in UTC, if it is `scheduled` or `retrying`.
        ended_at: When it came to its end, in UTC.
        attempts: Its runs, the earliest first; of many the latest 50.
        reason: Why it is `dead` or `discarded`.
        error: Of the last attempt that failed.
        traceback: The same, as text, if it is `dead`.
        replays: How often it was replayed from the dead letters.
        cancel_asked: Whether it was cancelled while it ran.
    """

    id: str
    task: str
    queue: str
    state: State
    enqueued_at: datetime
    due_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    reason: str = ""
    error: ErrorInfo | None = None
    traceback: str = ""
    replays: int = 0
    cancel_asked: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it is at its end, which it leaves only by a replay from the dead letters."""
        return self.state in FINAL


class Host(Protocol):
    """The bridge, as its results see it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def records(self) -> Records | None:
        """The records; None without a store."""
        ...

    def records_of(self, task: str) -> Records | None:
        """Return where a task's messages are recorded; None if they are not."""
        ...

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        ...

    def run_until(self, done: Callable[[], bool]) -> bool:
        """Run what waits, if nobody else does, until something is done; return whether nothing is left to run."""
        ...

    @property
    def cancellations(self) -> Cancellations:
        """What this process knows of cancelled messages."""
        ...


class Results:
    """What becomes of a bridge's messages; `Bridge.results` is one, and handles ask it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = locks.Lock()
        self._asking: tuple[int, ThreadPoolExecutor] | None = None

    # Looking

    def status(self, id: str, *, task: str = "") -> Status:
        """Return what is known of a message; see `Handle.status`."""
        return status_of(self._get(self._records("ST1", task), id), self._host.now())

    async def astatus(self, id: str, *, task: str = "") -> Status:
        """Do as `status` without blocking the event loop."""
        return await self._aside(lambda: self.status(id, task=task))

    # Waiting

    def result(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Wait for a message's end, and return what its task returned; see `Handle.result`."""
        records = self._records("RS1", task)
        deadline = _deadline(timeout)
        record = self._driven(records, id)
        return outcome_of(record if record.state in FINAL else self._awaited(records, id, deadline))

    @property
    def _drives(self) -> bool:
        """Whether waiting may run tasks."""
        return self._host.settings.url.engine == "inline"

    def _driven(self, records: Records, id: str) -> Record:
        """Return the record, after what waits has been run where nobody else would."""
        record = self._get(records, id)
        if record.state in FINAL:
            return record
        nothing_is_left = self._host.run_until(lambda: self._get(records, id).state in FINAL)
        record = self._get(records, id)
        if nothing_is_left and record.state not in FINAL:
            raise ResultTimeout(id, record.state, "and nothing is left to run")
        return record

    def _awaited(self, records: Records, id: str, deadline: float | None) -> Record:
        woken = locks.Event()
        end_watch = self._asked(lambda: records.watch(id, woken.set))
        try:
            while True:
                woken.clear()
                record = self._get(records, id)
                if record.state in FINAL:
                    return record
                if not woken.wait(_left_s(deadline)):
                    return self._at_last(records, id)
        finally:
            end_watch()

    def _at_last(self, records: Records, id: str) -> Record:
        """Return the record if it is final now that the time is over."""
        record = self._get(records, id)
        if record.state not in FINAL:
            raise ResultTimeout(id, record.state, "in time")
        return record

    async def aresult(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        deadline = _deadline(timeout)
        records = await self._aside(lambda: self._records("RS1", task))  # the first time, that imports a client
        # What runs tasks may take any time, and may be inside one: a thread of its own.
        record = await _in_thread(lambda: self._driven(records, id)) if self._drives else await self._aget(records, id)
        return outcome_of(record if record.state in FINAL else await self._aawaited(records, id, deadline))

    async def _aawaited(self, records: Records, id: str, deadline: float | None) -> Record:
        import asyncio  # here, for a program that doesn't await need not import it (30 ms)

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
                loop.call_soon_threadsafe(woken.set)

        watch = loop.run_in_executor(self._threads(), lambda: self._asked(lambda: records.watch(id, wake)))
        try:
            await asyncio.shield(watch)
            while True:
                woken.clear()
                record = await self._aget(records, id)
                if record.state in FINAL:
                    return record
                try:
                    await asyncio.wait_for(woken.wait(), _left_s(deadline))
                except asyncio.TimeoutError:
                    return await self._aside(lambda: self._at_last(records, id))
        finally:
            watch.add_done_callback(self._end_watch)  # it may still be beginning, if this task was cancelled

    def _end_watch(self, watch: asyncio.Future[Callable[[], None]]) -> None:
        """End a watch that has begun, in a thread, for it may have to tell the store."""
        if not watch.cancelled() and watch.exception() is None:
            self._threads().submit(watch.result())

    # Cancelling

    def cancel(self, id: str, *, task: str = "") -> Status:
        """Cancel a message unless it has ended, and return its status after that; see `Handle.cancel`."""
        records = self._records("CA1", task)
        _check_id(id)
        timeout_s = self._host.settings.send_timeout_s
        record = self._asked(lambda: records.cancel(id, at=self._host.now(), timeout_s=timeout_s))
        if record is None:
            raise NoSuchRecord(id)
        if record.state == "cancelled" or record.cancel_asked:
            self._host.cancellations.add(life_of(record))
        return status_of(record, self._host.now())

    async def acancel(self, id: str, *, task: str = "") -> Status:
        """Do as `cancel` without blocking the event loop."""
        return await self._aside(lambda: self.cancel(id, task=task))

    # Asking the store

    def _records(self, rule: str, task: str) -> Records:
        target = self._host.settings.url.target
        records = self._host.records
        if records is None:
            raise UnsupportedError(
                rule, target, "no store is set; set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
            )
        if self._host.records_of(task) is None:
            raise UnsupportedError(rule, target, f"task {task!r} is declared with results=False; leave that out")
        return records

    def _get(self, records: Records, id: str) -> Record:
        _check_id(id)
        timeout_s = self._host.settings.send_timeout_s
        record = self._asked(lambda: records.get(id, timeout_s=timeout_s))
        if record is None:
            raise NoSuchRecord(id)
        return record

    async def _aget(self, records: Records, id: str) -> Record:
        return await self._aside(lambda: self._get(records, id))

    async def _aside(self, ask: Callable[[], T]) -> T:
        """Ask in one of a few threads, which are not those of the event loop's own pool: others need these."""
        import asyncio  # here, for a program that doesn't await need not import it (30 ms)

        return await asyncio.get_running_loop().run_in_executor(self._threads(), ask)

    def _threads(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # here, for a program that doesn't await needs none

        with self._lock:
            if self._asking is None or self._asking[0] != os.getpid():  # forked: the threads are the parent's
                self._asking = os.getpid(), ThreadPoolExecutor(_THREADS, "taskbridge-results")
            return self._asking[1]

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except StoreNotReady:
            raise
        except BrokerUnavailable as exc:
            raise StoreUnavailable(exc.problem) from exc


def _check_id(id: str) -> None:
    if not is_id(id):  # no message has it, and not every store can be asked
        raise NoSuchRecord(id)


def outcome_of(record: Record) -> Any:
    """Return what the task of a final record returned.

    Raises:
        TaskFailed, TaskCancelled, TaskDiscarded: It did not return.
        DecodeError: A newer release wrote a value that this one can't read.
    """
    match record.state:
        case "done":
            return None if record.result_json is None else codec.loads(record.result_json)
        case "cancelled":
            raise TaskCancelled(id=record.id, task=record.task)
        case "discarded":
            raise TaskDiscarded(id=record.id, task=record.task, reason=record.reason)
        case _:
            error = record.error or ErrorInfo(type="", message="")
            raise TaskFailed(
                id=record.id,
                task=record.task,
                reason=record.reason,
                type=error.type,
                message=error.message,
                traceback=record.traceback,
            )


def status_of(record: Record, now: float) -> Status:
    """Return a record as it is shown.

    Args:
        record: The record.
        now: In seconds since the epoch. What was scheduled and is due is queued: nobody writes that down.
    """
    is_due = record.state == "scheduled" and record.due_at is not None and record.due_at <= now
    waits = record.state in ("scheduled", "retrying") and not is_due
    return Status(
        id=record.id,
        task=record.task,
        queue=record.queue,
        state="queued" if is_due else record.state,
        enqueued_at=_moment(record.enqueued_at),
        due_at=_moment_or_none(record.due_at) if waits else None,
        ended_at=_moment_or_none(record.ended_at),
        attempts=tuple(map(_attempt_of, record.attempts)),
        reason=record.reason,
        error=record.error,
        traceback=record.traceback,
        replays=record.replays,
        cancel_asked=record.cancel_asked,
    )


def _attempt_of(attempt: AttemptRecord) -> Attempt:
    return Attempt(
        number=attempt.number,
        worker=attempt.worker,
        started_at=_moment(attempt.started_at),
        ended_at=_moment_or_none(attempt.ended_at),
        error=attempt.error,
    )


def _moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, timezone.utc)


def _moment_or_none(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else _moment(timestamp)


def _deadline(timeout: Duration | None) -> float | None:
    return None if timeout is None else monotonic() + seconds(timeout, name="timeout")


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


async def _in_thread(act: Callable[[], T]) -> T:
    import asyncio  # here, for a program that doesn't await need not import it (30 ms)

    return await asyncio.to_thread(act)
