"""A record as a flat row of named values: what SQL has as columns and Redis as the fields of a hash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taskbridge.retry import ErrorInfo
from taskbridge.stores.records import AttemptRecord, Record
from taskbridge.stores.transitions import Kept

Row = dict[str, str | float | None]
"""A record but for its id. The keys: `task`, `queue`, `state`, `enqueued_at`, `due_at`, `ended_at`, `result` (what the
task returned, in the codec's form) and `rest` (all else, as JSON)."""


def to_row(kept: Kept) -> Row:
    """Return the row of a record. A new field of records goes into `rest`, here and in `from_row`."""
    record = kept.record
    rest: dict[str, Any] = {
        "attempts": [
            [each.number, each.worker, each.started_at, each.ended_at, _pair(each.error)] for each in record.attempts
        ],
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
    return {
        "task": record.task,
        "queue": record.queue,
        "state": record.state,
        "enqueued_at": record.enqueued_at,
        "due_at": record.due_at,
        "ended_at": record.ended_at,
        "result": record.result_json,
        "rest": json.dumps({key: value for key, value in rest.items() if value}, separators=(",", ":")),
    }


def from_row(message_id: str, row: Mapping[str, Any]) -> Kept:
    """Return the record of a row."""
    rest: Mapping[str, Any] = json.loads(row["rest"])
    record = Record(
        id=message_id,
        task=row["task"],
        queue=row["queue"],
        state=row["state"],
        enqueued_at=row["enqueued_at"],
        due_at=row["due_at"],
        ended_at=row["ended_at"],
        attempts=tuple(_attempt(*each) for each in rest.get("attempts", ())),
        result_json=row["result"],
        reason=rest.get("reason", ""),
        error=_error(rest.get("error")),
        traceback=rest.get("traceback", ""),
        replays=rest.get("replays", 0),
        cancel_asked=rest.get("cancel_asked", False),
    )
    return Kept(
        record=record,
        attempt=rest.get("attempt", 0),
        over=rest.get("over", 0),
        writer=rest.get("writer", ""),
        written_at=rest.get("written_at", 0.0),
    )


def _attempt(
    number: int, worker: str, started_at: float, ended_at: float | None, error: Sequence[str] | None
) -> AttemptRecord:
    return AttemptRecord(number=number, worker=worker, started_at=started_at, ended_at=ended_at, error=_error(error))


def _pair(error: ErrorInfo | None) -> list[str] | None:
    return None if error is None else [error.type, error.message]


def _error(pair: Sequence[str] | None) -> ErrorInfo | None:
    return None if pair is None else ErrorInfo(type=pair[0], message=pair[1])
