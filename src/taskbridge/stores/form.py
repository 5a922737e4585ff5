"""A record as plain values by name, from which each store makes its own form: a JSON text, or columns and a rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskbridge.message import Message
from taskbridge.retry import ErrorInfo
from taskbridge.stores.records import AttemptRecord, Record
from taskbridge.stores.transitions import Kept


def to_plain(kept: Kept) -> dict[str, Any]:
    """Return a record, but for its id, as what JSON can hold; what is absent, empty or 0 is left out.

    A new field of records is added here and in `from_plain`; no store need know of it.
    """
    record = kept.record
    values: dict[str, Any] = {
        "task": record.task,
        "queue": record.queue,
        "state": record.state,
        "enqueued_at": record.enqueued_at,
        "due_at": record.due_at,
        "ended_at": record.ended_at,
        "attempts": [
            [each.number, each.worker, each.started_at, each.ended_at, _pair(each.error)] for each in record.attempts
        ],
        "result": record.result_json,
        "reason": record.reason,
        "error": _pair(record.error),
        "traceback": record.traceback,
        "replays": record.replays,
        "cancel_asked": record.cancel_asked,
        "attempt": kept.attempt,
        "over": kept.over,
        "writer": kept.writer,
        "written_at": kept.written_at,
    }
    return {name: value for name, value in values.items() if value}


def plain_of_new(message: Message, delay_s: float) -> dict[str, Any]:
    """Return what `to_plain` makes of a record that was just created, at a third of the cost, for each send has one."""
    values: dict[str, Any] = {"task": message.task, "queue": message.queue, "enqueued_at": message.enqueued_at}
    if delay_s > 0:
        values |= {"state": "scheduled", "due_at": message.enqueued_at + delay_s}
    else:
        values["state"] = "queued"
    if message.replays:
        values["replays"] = message.replays
    return values


def from_plain(message_id: str, values: Mapping[str, Any]) -> Kept:
    """Return the record of what `to_plain` has made; None counts as absent."""
    record = Record(
        id=message_id,
        task=values["task"],
        queue=values["queue"],
        state=values["state"],
        enqueued_at=values.get("enqueued_at", 0.0),
        due_at=values.get("due_at"),
        ended_at=values.get("ended_at"),
        attempts=tuple(_attempt(*each) for each in values.get("attempts", ())),
        result_json=values.get("result"),
        reason=values.get("reason", ""),
        error=_error(values.get("error")),
        traceback=values.get("traceback", ""),
        replays=values.get("replays", 0),
        cancel_asked=values.get("cancel_asked", False),
    )
    return Kept(
        record=record,
        attempt=values.get("attempt", 0),
        over=values.get("over", 0),
        writer=values.get("writer", ""),
        written_at=values.get("written_at", 0.0),
    )


def _attempt(
    number: int, worker: str, started_at: float, ended_at: float | None, error: Sequence[str] | None
) -> AttemptRecord:
    return AttemptRecord(number=number, worker=worker, started_at=started_at, ended_at=ended_at, error=_error(error))


def _pair(error: ErrorInfo | None) -> list[str] | None:
    return None if error is None else [error.type, error.message]


def _error(pair: Sequence[str] | None) -> ErrorInfo | None:
    return None if pair is None else ErrorInfo(type=pair[0], message=pair[1])
