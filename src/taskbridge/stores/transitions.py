"""What a write makes of a record; pure. Every store writes what is decided here, and decides nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from taskbridge.message import Message
from taskbridge.stores.records import CANCEL_KNOWN_S, FINAL, MOST_ATTEMPTS, AttemptRecord, Ending, Record, State

UNENDED_KEPT_S: Final = 30 * 86400.0
"""How long a record is kept at least, past its due time, if nothing is heard of its message."""

CANCELLATION_KEPT_S: Final = 7 * 86400.0
"""How long a cancellation is kept at least, past its message's due time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that a process knows of, for it has started it."""

    worker: str
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A record, and what the next write is judged by.

    Attributes:
        record: The record.
        attempt: The latest attempt that anything was heard of; 0 before the first.
        over: The latest attempt that ended, but for those that were given back.
        writer: The process that wrote last about a run: its start, or that it was given back.
        written_at: When that was, by that process's clock; for a start it is the start.
    """

    record: Record
    attempt: int = 0
    over: int = 0
    writer: str = ""
    written_at: float = 0.0


def created(old: Kept | None, message: Message, delay_s: float) -> Kept | None:
    """Return a new record; None if there is one of this life already, which stays as it is."""
    if old is not None and old.record.replays >= message.replays:
        return None
    state = _new(message)
    if delay_s <= 0:
        return state
    return replace(state, record=replace(state.record, state="scheduled", due_at=message.enqueued_at + delay_s))


def started(old: Kept | None, message: Message, run: Run, *, writer: str) -> Kept | None:
    """Return what a start makes of a record; None if nothing."""
    kept = _of_life(old, message)
    if kept is None or message.attempt <= kept.over:
        return None
    if kept.writer == writer and run.at <= kept.written_at and message.attempt == kept.attempt:
        return None  # it was overtaken by the news that this run was given back
    record = kept.record
    if record.state in FINAL:
        if not _won(record, run):
            return None
        record = replace(record, ended_at=None, cancel_asked=True)
    record = replace(record, state="running", due_at=None, attempts=_with(record.attempts, message.attempt, run))
    return Kept(record=record, attempt=message.attempt, over=kept.over, writer=writer, written_at=run.at)


def ended(old: Kept | None, message: Message, ending: Ending, run: Run | None, *, writer: str) -> Kept | None:
    """Return what the end of a run, or of a wait, makes of a record; None if nothing.

    Args:
        old: What there was.
        message: Of the attempt that ended.
        ending: How.
        run: The run, if this process has started it.
        writer: This process.
    """
    kept = _of_life(old, message)
    if kept is None or message.attempt <= kept.over:
        return None
    record = kept.record
    if record.state in FINAL:
        if run is None or not _won(record, run):
            return None
        record = replace(record, cancel_asked=True)  # its start was lost, but it had won
    if ending.state == "queued":
        if record.state == "running" and kept.writer != writer:
            return None  # another process runs it
        attempts = tuple(each for each in record.attempts if each.number != message.attempt)
        record = _as(ending, record, attempts)
        return Kept(record=record, attempt=message.attempt, over=kept.over, writer=writer, written_at=ending.at)
    attempts = record.attempts if run is None else _with(record.attempts, message.attempt, run)
    attempts = tuple([_ended(each, ending) if each.number == message.attempt else each for each in attempts])
    record = _as(ending, record, attempts)
    number = message.attempt
    return Kept(record=record, attempt=number, over=number, writer=kept.writer, written_at=kept.written_at)


def left(old: Kept | None, new: Kept | None, message: Message) -> State | None:
    """Return the state in which a write left the record of a message's life.

    Args:
        old: What there was.
        new: What was written; None if nothing.
        message: Of which the write was.
    """
    kept = old if new is None else new
    return kept.record.state if kept is not None and kept.record.replays == message.replays else None


def cancelled(old: Kept | None, *, at: float) -> Kept | None:
    """Return what a cancellation makes of a record; None if nothing, for it is final, or there is none."""
    if old is None or old.record.state in FINAL:
        return None
    record = old.record
    if record.state == "running":
        return replace(old, record=replace(record, cancel_asked=True))
    return replace(old, record=replace(record, state="cancelled", ended_at=at, due_at=None))


def is_untouched(kept: Kept) -> bool:
    """Return whether a record is as it was made."""
    return kept.attempt == 0 and kept.record.state in ("scheduled", "queued")


def life_of(record: Record) -> str:
    """Return what `Message.life` is for the message of a record."""
    return f"{record.id}.{record.replays}" if record.replays else record.id


def kept_s(record: Record, *, result_ttl_s: float | None, now: float) -> float | None:
    """Return for how many seconds from now a record is kept; None is for ever."""
    if result_ttl_s is None:
        return None
    if record.state in FINAL:
        return result_ttl_s
    return _waits_s(record, now) + max(result_ttl_s, UNENDED_KEPT_S)


def cancellation_kept_s(record: Record, *, result_ttl_s: float | None, now: float) -> float | None:
    """Return for how many seconds from now the cancellation of a record, as it was, is kept; None is for ever."""
    if result_ttl_s is None:
        return None
    return _waits_s(record, now) + max(result_ttl_s, CANCELLATION_KEPT_S)


def _waits_s(record: Record, now: float) -> float:
    return 0.0 if record.due_at is None else max(0.0, record.due_at - now)


def _new(message: Message) -> Kept:
    record = Record(
        id=message.id,
        task=message.task,
        queue=message.queue,
        state="queued",
        enqueued_at=message.enqueued_at,
        replays=message.replays,
    )
    return Kept(record=record)


def _of_life(old: Kept | None, message: Message) -> Kept | None:
    """Return the record of a message's life, a new one if need be; None if the message is of an earlier time."""
    if old is None or old.record.replays < message.replays:
        return _new(message)
    is_late = old.record.replays > message.replays or old.attempt > message.attempt
    return None if is_late else old


def _won(record: Record, run: Run) -> bool:
    """Return whether a run had begun before its worker could know that it was cancelled."""
    return record.state == "cancelled" and record.ended_at is not None and run.at <= record.ended_at + CANCEL_KNOWN_S


def _with(attempts: tuple[AttemptRecord, ...], number: int, run: Run) -> tuple[AttemptRecord, ...]:
    this = AttemptRecord(number=number, worker=run.worker, started_at=run.at)
    if not attempts:
        return (this,)
    others = tuple(each for each in attempts if each.number != number)
    return (*others, this)[-MOST_ATTEMPTS:]


def _ended(attempt: AttemptRecord, ending: Ending) -> AttemptRecord:
    return AttemptRecord(
        number=attempt.number,
        worker=attempt.worker,
        started_at=attempt.started_at,
        ended_at=ending.at,
        error=ending.error,
    )


def _as(ending: Ending, record: Record, attempts: tuple[AttemptRecord, ...]) -> Record:
    """Return a record as an ending leaves it; one that was asked to be cancelled waits for no more."""
    is_final = ending.state in FINAL
    state = "cancelled" if record.cancel_asked and not is_final else ending.state
    return replace(
        record,
        attempts=attempts,
        state=state,
        due_at=ending.due_at if state == "retrying" else None,
        ended_at=ending.at if state in FINAL else None,
        result_json=ending.result_json if state == "done" else None,
        reason=ending.reason if is_final else "",
        error=record.error if ending.error is None else ending.error,
        traceback=ending.traceback if state == "dead" else "",
    )
