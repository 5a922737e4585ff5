"""What a message is doing: the states, the record that tells of it, and the row that stores keep of that record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from typing_extensions import Required

from taskbridge.retry import ErrorInfo

State = Literal["scheduled", "queued", "running", "retrying", "done", "dead", "discarded", "cancelled"]
"""What a message is doing.

`scheduled`: it waits for its time. `queued`: it waits for a worker. `running`: a worker runs it. `retrying`: an attempt
failed and the next one waits. `done`: it returned. `dead`: its attempts are spent, or it was given up. `discarded`: it
expired or was dropped by `Discard`. `cancelled`: it was cancelled before it ended, and starts no more.
"""

FINAL: Final[frozenset[State]] = frozenset({"done", "dead", "discarded", "cancelled"})
"""The states that a message does not leave, but by a replay from the dead letters."""

CANCEL_KNOWN_S: Final = 1.0
"""A worker knows of a cancellation after this at most."""

MOST_ATTEMPTS: Final = 50
"""How many runs a record tells of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One run of a message.

    Attributes:
        number: 1 is the first.
        worker: `host:pid` of the process that ran it.
        started_at: In seconds since the epoch.
        ended_at: The same; None while it runs, or if its worker never told.
        error: Why it failed; None if it didn't.
    """

    number: int
    worker: str
    started_at: float
    ended_at: float | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of a message.

    Attributes:
        id: The message's id.
        task: The task's name.
        queue: Where it was sent.
        state: What it is doing.
        enqueued_at: When it was sent, in seconds since the epoch.
        due_at: When it starts at the earliest, if it is `scheduled` or `retrying`.
        ended_at: When it became final.
        attempts: Its runs, the earliest first; of more than `MOST_ATTEMPTS` the latest.
        result_json: What it returned, in the codec's form, if it is `done`.
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
    enqueued_at: float
    due_at: float | None = None
    ended_at: float | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    result_json: str | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    traceback: str = ""
    replays: int = 0
    cancel_asked: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run, or a wait, ended.

    Attributes:
        state: What the message is doing now: a final state, `retrying`, or `queued` if it was given back or put off.
        at: When, in seconds since the epoch.
        due_at: For `retrying`, when the next attempt starts.
        result_json: For `done`.
        reason: For `dead` and `discarded`.
        error: For `retrying` and `dead`.
        traceback: For `dead`.
    """

    state: State
    at: float
    due_at: float | None = None
    result_json: str | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    traceback: str = ""


Error = tuple[str, str] | list[str]
"""An exception's type and what it said."""

Attempt = tuple[int, str, float, float | None, Error | None]
"""A run: its number, its worker, when it started and ended, and its error. What JSON gives back is a list."""


class Row(TypedDict, total=False):
    """A record as stores keep it: what JSON can hold. What is absent, empty or 0 is left out; nobody changes a row.

    Beside the record's own fields, which have the same names: `result` is `result_json`; `version` counts the writes
    since the record was made; `attempt` is the latest one that anything was heard of; `over` is the latest one that
    ended, but for those that were given back; `writer` is the process that wrote last about a run (its start, or that
    it was given back), and `written_at` is when that was, by that process's clock, for a start the start.
    """

    task: Required[str]
    queue: Required[str]
    state: Required[State]
    enqueued_at: Required[float]
    due_at: float | None
    ended_at: float | None
    attempts: Sequence[Attempt]
    result: str | None
    reason: str
    error: Error
    traceback: str
    replays: int
    cancel_asked: bool
    version: int
    attempt: int
    over: int
    writer: str
    written_at: float


def record_of(message_id: str, row: Row) -> Record:
    """Return the record that a row is of."""
    return Record(
        id=message_id,
        task=row["task"],
        queue=row["queue"],
        state=row["state"],
        enqueued_at=row["enqueued_at"],
        due_at=row.get("due_at"),
        ended_at=row.get("ended_at"),
        attempts=tuple(
            AttemptRecord(number=number, worker=worker, started_at=started_at, ended_at=ended_at, error=_error(error))
            for number, worker, started_at, ended_at, error in row.get("attempts", ())
        ),
        result_json=row.get("result"),
        reason=row.get("reason", ""),
        error=_error(row.get("error")),
        traceback=row.get("traceback", ""),
        replays=row.get("replays", 0),
        cancel_asked=row.get("cancel_asked", False),
    )


def _error(pair: Error | None) -> ErrorInfo | None:
    return None if pair is None else ErrorInfo(type=pair[0], message=pair[1])
