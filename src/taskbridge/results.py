"""What becomes of messages, for whoever sent them: status, results and cancelling (rules ST, RS and CA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from random import uniform
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from taskbridge import codec, exceptions, locks
from taskbridge.context import running
from taskbridge.durations import Duration, seconds
from taskbridge.flows.results import read_by
from taskbridge.locks import PerProcess
from taskbridge.logs import logger
from taskbridge.message import is_id
from taskbridge.retry import ErrorInfo
from taskbridge.stores.records import FINAL, Records, Status
from taskbridge.stores.transitions import life_of

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from taskbridge.bridge import Bridge
    from taskbridge.declaration import Declaration

T = TypeVar("T")

_log = logger("taskbridge.results")

_THREADS: Final = 4  # how many threads ask the store for all who await
_WARNS_AFTER_S: Final = 10.0  # whoever waits for a result is told then that no worker consumes a queue
_WARNS_AGAIN_S: Final = 60.0  # and not again for so long

_LOOK_AGAIN_S: Final = (5.0, 8.0)
"""After how long at least, and at most, whoever waits looks for the record, though nobody woke them.

A record may be gone (evicted, or lost with its server), and so may the word that it is final.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Awaited(Generic[T]):
    """A message or a flow that somebody waits for until it is final.

    Attributes:
        id: Its id.
        kind: Which of the two it is.
        get: Asks the store what is known of it.
        doing: Returns its state; None if that is final.
        watch: Has a function called when it may be final; returns what ends that.
        pauses: For how many seconds to wait before each look, though nobody has told.
    """

    id: str
    kind: Literal["message", "flow"] = "message"
    get: Callable[[], T]
    doing: Callable[[T], str | None]
    watch: Callable[[Callable[[], None]], Callable[[], None]]
    pauses: Iterator[float]

    def again(self, deadline: float) -> T | None:
        """Return what is known if it is final, or no time is left; None if there is more to wait for."""
        left_s = _left_s(deadline)
        try:
            found = self.get()
        except exceptions.StoreUnavailable:
            if _left_s(deadline) == 0:
                raise
            return None
        return found if left_s == 0 or self.doing(found) is None else None


class MessageResults:
    """What becomes of a bridge's messages; `Bridge.results` is one, and handles ask it."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._threads = PerProcess(_make_threads)
        self._looks_next: dict[str, float] = {}
        self._looking = locks.Lock()  # held by the thread that looks for workers

    # Looking

    def status(self, id: str, *, task: str = "") -> Status:
        """Return what is known of a message; see `Handle.status`."""
        return shown(self._get(self._bridge.recording(task, "ST1"), id), self._bridge.now())

    # Waiting

    def result(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Wait for a message's end, and return what its task returned; see `Handle.result`."""
        return self._outcome(self.ended(partial(self._awaited, id, task), timeout))

    async def aresult(self, id: str, *, task: str = "", timeout: Duration | None = None) -> Any:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        return self._outcome(await self.aended(partial(self._awaited, id, task), timeout))

    def _awaited(self, id: str, task: str) -> Awaited[Status]:
        records = self._bridge.recording(task, "RS1")
        return Awaited(
            id=id,
            get=lambda: self._get(records, id),
            doing=lambda record: None if record.state in FINAL else record.state,
            watch=partial(records.watch, id),
            pauses=self._pauses(records, id),
        )

    def ended(self, make: Callable[[], Awaited[T]], timeout: Duration | None) -> T:
        """Wait until something is final, and return it; if it is not in time, as it is then."""
        deadline = deadline_of(timeout)
        awaited = make()
        if awaited.doing(found := self._driven(awaited)) is None:
            return found
        woken = locks.Event()
        end_watch = awaited.watch(woken.set)
        try:
            while True:
                woken.clear()
                if (last := awaited.again(deadline)) is not None:
                    return last
                woken.wait(min(_left_s(deadline), next(awaited.pauses)))
        finally:
            end_watch()

    async def aended(self, make: Callable[[], Awaited[T]], timeout: Duration | None) -> T:
        """Do as `ended` without blocking the event loop, and without holding a thread while it waits."""
        import asyncio  # here, for a program that doesn't await need not import it (30 ms)

        deadline = deadline_of(timeout)
        awaited = await self.aside(make)  # the first time, that imports a client
        # On inline this may run tasks, which may take any time, or be inside one: it needs a thread of its own.
        ask = asyncio.to_thread if self._bridge.settings.url.engine == "inline" else self.aside
        if awaited.doing(found := await ask(lambda: self._driven(awaited))) is None:
            return found
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
                loop.call_soon_threadsafe(woken.set)

        watch = loop.run_in_executor(self._threads.get(), awaited.watch, wake)
        try:
            await asyncio.shield(watch)
            while True:
                woken.clear()
                if (last := await self.aside(partial(awaited.again, deadline))) is not None:
                    return last
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(woken.wait(), min(_left_s(deadline), next(awaited.pauses)))
        finally:
            watch.add_done_callback(self._end_watch)  # it may still be beginning, if this task was cancelled

    def _pauses(self, records: Records, id: str) -> Iterator[float]:
        """Yield how long to wait before each look; after a while, see whether anybody consumes the message's queue."""
        warns_at = monotonic() + _WARNS_AFTER_S
        while (left_s := _left_s(warns_at)) > 0:
            yield min(left_s, uniform(*_LOOK_AGAIN_S))
        while not self._looking.acquire(blocking=False):
            yield uniform(*_LOOK_AGAIN_S)
        try:
            look = partial(self._look_for_workers, records, id)
            Thread(target=look, name="taskbridge-results-look", daemon=True).start()
        except RuntimeError:  # there are too many threads, or the interpreter ends
            self._looking.release()
        while True:
            yield uniform(*_LOOK_AGAIN_S)

    def _look_for_workers(self, records: Records, id: str) -> None:
        """Warn if a message waits in a queue that no worker consumes; of many that wait there, the first looks."""
        try:
            record, now = self._get(records, id), monotonic()
            if record.state != "queued" or now < self._looks_next.get(record.queue, 0.0):
                return
            self._looks_next[record.queue] = now + _WARNS_AGAIN_S
            if not self._bridge.health(record.queue).is_well:
                text = "the result of message %s is waited for, and no worker consumes its queue %r: start one for it"
                _log.warning(text, id, record.queue)
        except exceptions.TaskBridgeError:
            return  # there will be others who wait
        finally:
            self._looking.release()

    def _outcome(self, record: Status) -> Any:
        """Return the outcome of a record; raise `ResultTimeout` if it is not final."""
        if record.state not in FINAL:
            raise exceptions.ResultTimeout(record.id, record.state, "in time")
        with read_by(self._members):
            return outcome_of(record, self._bridge.declaration_of(record.task))

    def _members(self, *part: Any) -> Sequence[Any]:
        return self._bridge.flows.members(*part)  # imported only if a result is one of a group

    def _driven(self, awaited: Awaited[T]) -> T:
        """Return what is awaited, after what waits has been run where nobody else would."""
        found, drives = awaited.get(), self._bridge.settings.url.engine == "inline"
        if awaited.doing(found) is None or not drives or running.get() is not None:
            return found
        nothing_is_left = self._bridge.run_until(lambda: awaited.doing(awaited.get()) is None)
        if (state := awaited.doing(found := awaited.get())) is not None and nothing_is_left:
            raise exceptions.ResultTimeout(awaited.id, state, "and nothing is left to run", kind=awaited.kind)
        return found

    def _end_watch(self, watch: asyncio.Future[Callable[[], None]]) -> None:
        """End a watch that has begun, in a thread, for it may have to tell the store."""
        if not watch.cancelled() and watch.exception() is None:
            self._threads.get().submit(watch.result())

    # Cancelling

    def cancel(self, id: str, *, task: str = "", interrupt: bool = False) -> Status:
        """Cancel a message unless it has ended, and return its status after that; see `Handle.cancel`."""
        records, now = self._bridge.recording(task, "CA1"), self._bridge.now()
        timeout_s = self._bridge.settings.send_timeout_s
        record = _found(id, lambda: records.cancel(id, at=now, interrupt=interrupt, timeout_s=timeout_s))
        if records.flows_due:
            self._bridge.flows.advance_due()
        if record.became and not record.is_final:
            with suppress(exceptions.NoSuchRecord, exceptions.DecodeError):  # the flow is gone
                self._bridge.flows.cancel(record.became)
        if record.state == "cancelled" or record.cancel_asked:
            self._bridge.cancellations.add(life_of(record), interrupt=interrupt)
        return shown(record, self._bridge.now())

    # Asking the store

    def _get(self, records: Records, id: str) -> Status:
        return _found(id, lambda: records.get(id, timeout_s=self._bridge.settings.send_timeout_s))

    async def aside(self, ask: Callable[[], T]) -> T:
        """Ask in one of a few threads, which are not those of the event loop's own pool: others need these."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._threads.get(), ask)


def _make_threads() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # here, for a program that doesn't await needs none

    return ThreadPoolExecutor(_THREADS, "taskbridge-results")


def _found(id: str, ask: Callable[[], Status | None]) -> Status:
    """Return the record that the store tells of; raise `NoSuchRecord` if there is none."""
    record = ask() if is_id(id) else None  # no message has another id, and not every store takes it
    if record is None:
        raise exceptions.NoSuchRecord(id)
    return record


def outcome_of(record: Status, declaration: Declaration | None) -> Any:
    """Return what the task of a final record returned; its declaration says of which classes that may be.

    Raises as `Handle.result`, and `DecodeError` for a newer release's value, or one whose class is not known here.
    """
    match record.state:
        case "done" if record.reason:
            raise exceptions.ResultNotEncodable(id=record.id, task=record.task, problem=record.reason)
        case "done":
            return None if record.result_json is None else value_of(record.task, record.result_json, declaration)
        case "cancelled":
            raise exceptions.TaskCancelled(id=record.id, task=record.task)
        case "discarded":
            raise exceptions.TaskDiscarded(id=record.id, task=record.task, reason=record.reason)
        case _:
            error = record.error or ErrorInfo(type="", message="")
            told = {"type": error.type, "message": error.message, "traceback": record.traceback}
            raise exceptions.TaskFailed(id=record.id, task=record.task, reason=record.reason, **told)


def shown(record: Status, now: float) -> Status:
    """Return a record as it is shown: what was scheduled and is due by now is queued, which nobody writes down."""
    if record.state == "scheduled" and record.due_at is not None and record.due_at.timestamp() <= now:
        return replace(record, state="queued", due_at=None)
    return record


def value_of(task: str, text: str, declaration: Declaration | None) -> Any:
    """Return what a task returned, of JSON; raise `DecodeError` if the classes are not known of which it is."""
    value = codec.loads(text)
    if codec.TYPED not in text and codec.RESULTS not in text:
        return value
    from taskbridge.hints import NO_HINTS  # here, for few results are of a class

    if declaration is None and codec.TYPED in text:
        remedy = "import the module that declares it, whose type hints say how to make it"
        problem = f"the result of task {task!r} is of a class, and the task is not known here"
        raise exceptions.DecodeError(f"{problem}: {remedy}")
    try:
        hints = None if declaration is None else declaration.hints
        return (hints or NO_HINTS).result.received(value, "result")
    except TypeError as exc:
        raise exceptions.DecodeError(str(exc)) from exc


def deadline_of(timeout: Duration | None) -> float:
    """Return until when to wait, by the monotonic clock; raise `ResultInTask` if a task asks, and would wait."""
    wait_s = inf if timeout is None else seconds(timeout, name="timeout")
    if wait_s > 0 and (task := running.get()) is not None:
        raise exceptions.ResultInTask(task[0].task)
    return monotonic() + wait_s


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - monotonic())
