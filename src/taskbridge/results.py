"""What becomes of messages, for whoever sent them: status, results and cancelling (rules ST, RS and CA)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskbridge import codec, locks
from taskbridge.durations import Duration, moment, seconds
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
from taskbridge.stores.process import PerProcess
from taskbridge.stores.records import FINAL, Record, Records, State
from taskbridge.stores.transitions import life_of

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from taskbridge.bridge import Bridge

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


class Results:
    """What becomes of a bridge's messages; `Bridge.results` is one, and handles ask it."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._threads = PerProcess(_make_threads)

    # Looking

    def status(self, id: str, *, task: str = "") -> Status:
        """Return what is known of a message; see `Handle.status`."""
        return status_of(self._get(self._records("ST1", task), id), self._bridge.now())

    async def astatus(self, id: str, *, task: str = "") -> Status:
        """Do as `status` without blocking the event loop."""
        return await self._aside(lambda: self.status(id, task=task))

    # Waiting

    def result(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Wait for a message's end, and return what its task returned; see `Handle.result`."""
        deadline = _deadline(timeout)
        records = self._records("RS1", task)
        record = self._driven(records, id)
        if record.state in FINAL:
            return outcome_of(record)
        woken = locks.Event()
        end_watch = _asked(lambda: records.watch(id, woken.set))
        try:
            while True:
                woken.clear()
                left_s = _left_s(deadline)
                record = self._get(records, id)
                if record.state in FINAL or left_s == 0:
                    return _in_time(record)
                woken.wait(left_s)
        finally:
            end_watch()

    async def aresult(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        import asyncio  # here, for a program that doesn't await need not import it (30 ms)

        deadline = _deadline(timeout)
        records = await self._aside(lambda: self._records("RS1", task))  # the first time, that imports a client
        # On inline this may run tasks, which may take any time, or be inside one: it needs a thread of its own.
        ask = asyncio.to_thread if self._bridge.settings.url.engine == "inline" else self._aside
        record = await ask(lambda: self._driven(records, id))
        if record.state in FINAL:
            return outcome_of(record)
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
                loop.call_soon_threadsafe(woken.set)

        watch = loop.run_in_executor(self._threads.get(), lambda: _asked(lambda: records.watch(id, wake)))
        try:
            await asyncio.shield(watch)
            while True:
                woken.clear()
                left_s = _left_s(deadline)
                record = await self._aside(lambda: self._get(records, id))
                if record.state in FINAL or left_s == 0:
                    return _in_time(record)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(woken.wait(), left_s)
        finally:
            watch.add_done_callback(self._end_watch)  # it may still be beginning, if this task was cancelled

    def _driven(self, records: Records, id: str) -> Record:
        """Return the record, after what waits has been run where nobody else would."""
        record = self._get(records, id)
        if record.state in FINAL or self._bridge.settings.url.engine != "inline":
            return record
        nothing_is_left = self._bridge.run_until(lambda: self._get(records, id).state in FINAL)
        record = self._get(records, id)
        if nothing_is_left and record.state not in FINAL:
            raise ResultTimeout(id, record.state, "and nothing is left to run")
        return record

    def _end_watch(self, watch: asyncio.Future[Callable[[], None]]) -> None:
        """End a watch that has begun, in a thread, for it may have to tell the store."""
        if not watch.cancelled() and watch.exception() is None:
            self._threads.get().submit(watch.result())

    # Cancelling

    def cancel(self, id: str, *, task: str = "") -> Status:
        """Cancel a message unless it has ended, and return its status after that; see `Handle.cancel`."""
        records, now = self._records("CA1", task), self._bridge.now()
        timeout_s = self._bridge.settings.send_timeout_s
        record = _found(id, lambda: records.cancel(id, at=now, timeout_s=timeout_s))
        if record.state == "cancelled" or record.cancel_asked:
            self._bridge.cancellations.add(life_of(record))
        return status_of(record, self._bridge.now())

    async def acancel(self, id: str, *, task: str = "") -> Status:
        """Do as `cancel` without blocking the event loop."""
        return await self._aside(lambda: self.cancel(id, task=task))

    # Asking the store

    def _records(self, rule: str, task: str) -> Records:
        records = self._bridge.records
        if records is None:
            problem = "no store is set; set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
        elif self._bridge.records_of(task) is None:
            problem = f"task {task!r} is declared with results=False; leave that out"
        else:
            return records
        raise UnsupportedError(rule, self._bridge.settings.url.target, problem)

    def _get(self, records: Records, id: str) -> Record:
        return _found(id, lambda: records.get(id, timeout_s=self._bridge.settings.send_timeout_s))

    async def _aside(self, ask: Callable[[], T]) -> T:
        """Ask in one of a few threads, which are not those of the event loop's own pool: others need these."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._threads.get(), ask)


def _make_threads() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # here, for a program that doesn't await needs none

    return ThreadPoolExecutor(_THREADS, "taskbridge-results")


def _found(id: str, ask: Callable[[], Record | None]) -> Record:
    """Return the record that the store tells of; raise `NoSuchRecord` if there is none."""
    record = _asked(ask) if is_id(id) else None  # no message has another id, and not every store takes it
    if record is None:
        raise NoSuchRecord(id)
    return record


def _asked(ask: Callable[[], T]) -> T:
    """Return what the store answers; raise `StoreUnavailable` if it doesn't."""
    try:
        return ask()
    except StoreNotReady:
        raise
    except BrokerUnavailable as exc:
        raise StoreUnavailable(exc.problem) from exc


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
        enqueued_at=moment(record.enqueued_at),
        due_at=moment(record.due_at) if waits else None,
        ended_at=moment(record.ended_at),
        attempts=tuple(
            Attempt(
                number=run.number,
                worker=run.worker,
                started_at=moment(run.started_at),
                ended_at=moment(run.ended_at),
                error=run.error,
            )
            for run in record.attempts
        ),
        reason=record.reason,
        error=record.error,
        traceback=record.traceback,
        replays=record.replays,
        cancel_asked=record.cancel_asked,
    )


def _in_time(record: Record) -> Any:
    """Return the outcome of a record that was waited for.

    Raises:
        ResultTimeout: It is not final.
    """
    if record.state not in FINAL:
        raise ResultTimeout(record.id, record.state, "in time")
    return outcome_of(record)


def _deadline(timeout: Duration | None) -> float | None:
    return None if timeout is None else monotonic() + seconds(timeout, name="timeout")


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())
