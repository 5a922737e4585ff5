"""What a message is doing: the states, the record that tells of it, and the row that stores keep of that record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import NoneType
from typing import Any, Final, Literal, TypedDict, TypeGuard, get_args

from typing_extensions import Required

from taskbridge.context import MOST_PROGRESS
from taskbridge.durations import moment
from taskbridge.message import Priority, flow_of, is_of, is_place
from taskbridge.retry import ErrorInfo

Sent = tuple[str, str, Mapping[str, Any]]
"""What a message was sent with: positional and keyword arguments, both as JSON in the codec's form, and headers."""

State = Literal["scheduled", "queued", "running", "retrying", "done", "dead", "discarded", "cancelled"]
"""What a message is doing.

`scheduled`: it waits for its time. `queued`: it waits for a worker. `running`: a worker runs it. `retrying`: an attempt
failed and the next one waits. `done`: it returned. `dead`: its attempts are spent, or it was given up. `discarded`: it
expired or was dropped by `Discard`. `cancelled`: it was cancelled before it ended, and starts no more.
"""

FINAL: Final[frozenset[State]] = frozenset({"done", "dead", "discarded", "cancelled"})
"""The states that a message does not leave, but by a replay from the dead letters."""

WAITING: Final[tuple[State, ...]] = ("queued", "scheduled", "retrying")
"""The states in which a message waits in its queue, or for its time."""

CANCEL_KNOWN_S: Final = 1.0
"""A worker knows of a cancellation after this at most."""

MOST_ATTEMPTS: Final = 50
"""How many runs a record tells of."""


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
class Progress:
    """How far a run has come, as its task tells by `current().progress(...)`.

    Attributes:
        done: How much is done, at least 0, in the task's own unit.
        total: How much there is to do; None if that is not known.
        note: What is being done.
        at: When the task told, in UTC.
    """

    done: float
    total: float | None
    note: str
    at: datetime

    @property
    def fraction(self) -> float | None:
        """How much of all is done, from 0 to 1; None if it is not known how much there is to do."""
        return min(1.0, self.done / self.total) if self.total else None


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
        reason: Why it is `dead` or `discarded`, or why one that is `done` has no result.
        error: Of the last attempt that failed; None once it is `done`.
        traceback: The same, as text, if it is `dead`.
        replays: How often it was replayed from the dead letters.
        cancel_asked: Whether it was cancelled while it ran.
        interrupt_asked: Whether a run of it was to be interrupted, by `cancel(interrupt=True)`.
        progress: How far its latest run has come, if that has told.
        result_json: What it returned, as JSON, if it is `done`; `Handle.result` returns the value.
        sent: Its positional and keyword arguments, as JSON, and its headers; None if its task doesn't keep them.
        flow: The id of the flow of which it is a step; empty if it is none.
        became: The id of the flow that its task returned by `become`, with which it ends; empty if there is none.
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
    interrupt_asked: bool = False
    progress: Progress | None = None
    result_json: str | None = field(default=None, repr=False)
    sent: Sent | None = field(default=None, repr=False)
    flow: str = ""
    became: str = ""

    @property
    def is_final(self) -> bool:
        """Whether it is at its end, which it leaves only by a replay from the dead letters."""
        return self.state in FINAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run, or a wait, ended.

    Attributes:
        state: What the message is doing now: a final state, `retrying`, or `queued` if it was given back or put off.
        at: When, in seconds since the epoch.
        due_at: For `retrying`, when the next attempt starts.
        result_json: For `done`.
        reason: For `dead` and `discarded`; for `done`, why there is no result.
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

ProgressRow = tuple[float, float | None, str, float] | list[Any]
"""How far a run has come: how much is done, of how much, a note, and when. What JSON gives back is a list."""

AttemptRow = tuple[int, str, float, float | None, Error | None]
"""A run: its number, its worker, when it started and ended, and its error. What JSON gives back is a list."""


class Row(TypedDict, total=False):
    """A record as stores keep it: what JSON can hold. What is absent, empty or 0 is left out; nobody changes a row.

    Beside the record's own fields, which have the same names: `result` is `result_json`; `version` counts the writes
    since the record was made; `attempt` is the latest one that anything was heard of; `over` is the latest one that
    ended, but for those that were given back; `writer` is the process that wrote last about a run (its start, or that
    it was given back), and `written_at` is when that was, by that process's clock, for a start the start;
    `unique` is as in the message, while it holds its key; `call` are the arguments that a debounced message starts
    with, both as JSON, in the place of its own; `digest` is the hash of the arguments of a message whose sender has
    chosen its id; `sent` are its own arguments and headers, if its task keeps them; `priority` and `expires_at` are
    those of a member of a group; `flow` is as in the message, and `became` is the flow with which it ends.
    """

    task: Required[str]
    queue: Required[str]
    state: Required[State]
    enqueued_at: Required[float]
    due_at: float | None
    ended_at: float | None
    attempts: Sequence[AttemptRow]
    result: str | None
    reason: str
    error: Error
    traceback: str
    replays: int
    cancel_asked: bool
    interrupt: bool
    progress: ProgressRow
    version: int
    attempt: int
    over: int
    writer: str
    written_at: float
    unique: str
    call: Sequence[str]
    digest: str
    sent: Sent | list[Any]
    priority: str
    expires_at: float
    flow: str
    became: str


def status_of(message_id: str, row: Row) -> Status:
    """Return what a row tells of a message."""
    return Status(
        id=message_id,
        task=row["task"],
        queue=row["queue"],
        state=row["state"],
        enqueued_at=moment(row["enqueued_at"]),
        due_at=moment(row.get("due_at")),
        ended_at=moment(row.get("ended_at")),
        attempts=tuple(_attempt(each) for each in row.get("attempts", ())),
        result_json=row.get("result"),
        reason=row.get("reason", ""),
        error=_error(row.get("error")),
        traceback=row.get("traceback", ""),
        replays=row.get("replays", 0),
        cancel_asked=row.get("cancel_asked", False),
        interrupt_asked=row.get("interrupt", False),
        progress=_progress(row.get("progress")),
        sent=_sent(row.get("sent")),
        flow=flow_of(row.get("flow", "")),
        became=row.get("became", ""),
    )


def _attempt(row: AttemptRow) -> Attempt:
    number, worker, began, over, error = row[:5]  # what a newer release tells beside them is left out
    return Attempt(number=number, worker=worker, started_at=moment(began), ended_at=moment(over), error=_error(error))


def _progress(row: ProgressRow | None) -> Progress | None:
    if row is None:
        return None
    done, total, note, at = row[:4]
    return Progress(done=done, total=total, note=note, at=moment(at))


def _sent(row: Sent | list[Any] | None) -> Sent | None:
    return None if row is None else (row[0], row[1], row[2])


def _error(pair: Error | None) -> ErrorInfo | None:
    return None if pair is None else ErrorInfo(type=pair[0], message=pair[1])


def is_row(found: Any) -> TypeGuard[Row]:
    """Return whether what was read is a row: each field that is known here has its type, and numbers are in range.

    Other fields, and what an attempt or an error has beyond its items, are a newer release's, and no fault.
    """
    if not is_object(found) or any(name not in found for name in _REQUIRED):
        return False
    return all(is_sound(found[name]) for name, is_sound in _FIELDS.items() if name in found)


_REQUIRED: Final = ("task", "queue", "state", "enqueued_at")

_IsSound = Callable[[Any], bool]


is_object: Final[_IsSound] = is_of(dict)
is_list: Final[_IsSound] = is_of(list)
is_text: Final[_IsSound] = is_of(str)
is_count: Final[_IsSound] = is_of(int)
is_time: Final[_IsSound] = is_of(int, float)
_is_time_or_none = is_of(int, float, NoneType)
_is_amount, _is_amount_or_none = is_of(int, float, most=MOST_PROGRESS), is_of(int, float, NoneType, most=MOST_PROGRESS)


def begins_with(found: Any, *items: _IsSound) -> bool:
    """Return whether something is a list whose first items are sound; it may have more."""
    is_long = is_list(found) and len(found) >= len(items)
    return is_long and all(is_sound(item) for is_sound, item in zip(items, found, strict=False))


def _is_error(found: Any) -> bool:
    return begins_with(found, is_text, is_text)


def _is_attempt(found: Any) -> bool:
    is_run = begins_with(found, is_count, is_text, is_time, _is_time_or_none)
    return is_run and len(found) > 4 and (found[4] is None or _is_error(found[4]))


_FIELDS: Final[Mapping[str, _IsSound]] = {
    **dict.fromkeys(
        ("task", "queue", "state", "result", "reason", "traceback", "writer", "unique", "digest", "became"), is_text
    ),
    "flow": is_place,
    **dict.fromkeys(("replays", "version", "attempt", "over"), is_count),
    **dict.fromkeys(("enqueued_at", "written_at"), is_time),
    **dict.fromkeys(("due_at", "ended_at"), _is_time_or_none),
    "attempts": lambda found: is_list(found) and all(map(_is_attempt, found)),
    "error": _is_error,
    "progress": lambda found: begins_with(found, _is_amount, _is_amount_or_none, is_text, is_time),
    **dict.fromkeys(("cancel_asked", "interrupt"), is_of(bool)),
    "call": lambda found: begins_with(found, is_text, is_text),
    "sent": lambda found: begins_with(found, is_text, is_text, is_object),
    "priority": lambda found: found in get_args(Priority),
    "expires_at": is_time,
}
"""What says of each field whether its value is sound."""
