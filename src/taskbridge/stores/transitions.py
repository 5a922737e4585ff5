"""What a write makes of a record; pure. Each returns the row that replaces the one there was, or None to leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from taskbridge import codec
from taskbridge.message import Message, is_member
from taskbridge.stores.backend import Entry, Write, head_of
from taskbridge.stores.states import (
    CANCEL_KNOWN_S,
    FINAL,
    MOST_ATTEMPTS,
    AttemptRow,
    Ending,
    ProgressRow,
    Row,
    State,
    Status,
)
from taskbridge.unique import FREED_AT_START, MOVED

UNENDED_KEPT_S: Final = 30 * 86400.0
"""How long a record is kept at least, past its due time, if nothing is heard of its message."""

STEP_KEPT_S: Final = 7 * 86400.0
"""How long the record of a step of a flow is kept at least after its end, if the flow has to read it to go on."""

CANCELLATION_KEPT_S: Final = 7 * 86400.0
"""How long a cancellation is kept at least, past its message's due time."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that a process knows of, for it has started it."""

    worker: str
    at: float  # when it started
    progress: ProgressRow | None = None  # how far it has come, if it has told


def created(old: Row | None, message: Message, delay_s: float) -> Row | None:
    """Return a new record, unless there is one of this life already, which stays as it is."""
    if old is not None and old.get("replays", 0) >= message.replays:
        return None
    return new(message, delay_s)


def new(message: Message, delay_s: float = 0.0) -> Row:
    """Return the record of a message as it is made."""
    row: Row = {"task": message.task, "queue": message.queue, "state": "queued", "enqueued_at": message.enqueued_at}
    if message.replays:
        row["replays"] = message.replays
    if message.unique:
        row["unique"] = message.unique
    if message.digest:
        row["digest"] = message.digest
    is_of_group = bool(message.flow) and is_member(message.flow)  # then it may have to be published again
    if message.keeps_call or is_of_group:
        row["sent"] = message.args_json, message.kwargs_json, message.headers
    if message.flow:
        row["flow"] = message.flow
        if is_of_group and message.priority != "normal":
            row["priority"] = message.priority
        if is_of_group and message.expires_at is not None:
            row["expires_at"] = message.expires_at
    if delay_s > 0:
        row["state"], row["due_at"] = "scheduled", message.enqueued_at + delay_s
    return row


def started(old: Row | None, message: Message, run: Run, *, writer: str) -> Row | None:
    """Return what a start makes of a record, or what the run tells after that of how far it has come."""
    row, number = _of_life(old, message), message.attempt
    if row is None or number <= row.get("over", 0):
        return None
    is_writers = row.get("writer", "") == writer and number == row.get("attempt", 0)
    if is_writers and run.at <= row.get("written_at", 0.0):
        if run.progress is None or row["state"] != "running":
            return None  # it was overtaken by the news that this run was given back
        now = row.copy()
        now["progress"] = run.progress
        return now
    was_final = row["state"] in FINAL
    if was_final and not _won(row, run):
        return None
    now = _like(row, "running", number)
    now["attempts"] = _with(row.get("attempts", ()), number, run)
    now["writer"], now["written_at"] = writer, run.at
    if run.progress is not None:
        now["progress"] = run.progress
    if was_final:
        now["cancel_asked"] = True
    if message.unique[:1] in FREED_AT_START:
        now.pop("unique", None)
    return now


def begun(old: Row | None, message: Message, run: Run, *, writer: str) -> Row | None:
    """Return what a start makes of a record that has to say whether there is one: final, or moved, it stays."""
    row = _of_life(old, message)
    if row is not None and (row["state"] in FINAL or wait_s(row, message, run.at) > 0):
        return None
    return started(old, message, run, writer=writer)


def wait_s(row: Row, message: Message, now: float) -> float:
    """Return in how many seconds a debounced message is due, whose start may have been moved; 0 if it is."""
    is_moved = message.unique[:1] == MOVED and not row.get("attempt")
    return max(0.0, (row.get("due_at") or 0.0) - now) if is_moved else 0.0


def moved(old: Row, call: Sequence[str], due_at: float) -> Row | None:
    """Return what a further send makes of the record of a debounced message; None if it has started or ended."""
    if not is_untouched(old):
        return None
    row = old.copy()
    row["state"], row["due_at"], row["call"] = "scheduled", due_at, call
    if "sent" in old:
        row["sent"] = call[0], call[1], old["sent"][2]
    return row


def latest(row: Row | None, message: Message) -> Message:
    """Return a debounced message with the arguments of its latest send, which its record has until it ends."""
    call = None if row is None or row.get("replays", 0) != message.replays else row.get("call")
    return message if call is None else replace(message, args_json=call[0], kwargs_json=call[1], plain=None)


def ended(old: Row | None, message: Message, ending: Ending, run: Run | None, *, writer: str) -> Row | None:
    """Return what the end of a run, or of a wait, makes of a record; the run is one that this process has started."""
    row, number = _of_life(old, message), message.attempt
    if row is None or number <= row.get("over", 0):
        return None
    if row["state"] in FINAL:
        if run is None or not _won(row, run):
            return None
        row = row.copy()
        row["cancel_asked"] = True  # its start was lost, but it had won
    if ending.state == "queued":
        if row["state"] == "running" and row.get("writer", "") != writer:
            return None  # another process runs it
        now = _end(row, ending, number, [each for each in row.get("attempts", ()) if each[0] != number])
        now["writer"], now["written_at"] = writer, ending.at
        return now
    attempts = row.get("attempts", ())
    if run is not None:
        attempts = _with(attempts, number, run)
    now = _end(row, ending, number, [_ended(each, ending) if each[0] == number else each for each in attempts])
    now["over"] = number
    told = row.get("progress") if run is None or run.progress is None else run.progress
    if told is not None and number == row.get("attempt", number):
        now["progress"] = told
    return now


def became(old: Row | None, message: Message, flow_id: str, at: float, run: Run | None, *, writer: str) -> Row | None:
    """Return what it makes of a record that a run ended with a flow: its message ends with that."""
    now = ended(old, message, Ending(state="done", at=at), run, writer=writer)
    if now is None:
        return None
    now["state"], now["became"] = "running", flow_id
    now.pop("ended_at", None)
    if old is not None and old.get("cancel_asked"):
        now["cancel_asked"] = True
    return now


def flow_ended(old: Row | None, flow_id: str, ending: Ending) -> Row | None:
    """Return what the end of its flow makes of such a record; None if it has ended, or is another one's."""
    if old is None or old.get("became") != flow_id or old["state"] in FINAL:
        return None
    return _end(old, ending, old.get("attempt", 1), [*old.get("attempts", ())])


def flow_reopened(old: Row | None, flow_id: str) -> Row | None:
    """Return what it makes of such a record that its flow was reopened; None if it is another one's.

    One that has not ended is written, too: somebody may be about to say that it ends as the flow has ended before.
    """
    if old is None or old.get("became") != flow_id:
        return None
    if old["state"] not in FINAL:
        return old.copy()
    now = _like(old, "running", old.get("attempt", 1))
    now["attempts"] = [*old.get("attempts", ())]
    now.pop("error", None)
    return now


def left(old: Row | None, new: Row | None, message: Message) -> State | None:
    """Return the state in which a write, if any, left a message's record; None if that is of another life."""
    row = old if new is None else new
    return row["state"] if row is not None and row.get("replays", 0) == message.replays else None


def cancelled(old: Row | None, *, at: float, interrupt: bool = False) -> Row | None:
    """Return what a cancellation makes of a record; None if nothing, for it is final, or there is none."""
    if old is None or old["state"] in FINAL:
        return None
    row = old.copy()
    if interrupt:
        row["interrupt"] = True  # of a run that nobody knows of yet, too
    if old["state"] == "running":
        row["cancel_asked"] = True
    else:
        row["state"], row["ended_at"], row["due_at"] = "cancelled", at, None
        _forget_call(row)
    return row


def is_untouched(row: Row) -> bool:
    """Return whether a record is as it was made."""
    return not row.get("attempt") and row["state"] in ("scheduled", "queued")


def pointer_key(task: str, unique: str) -> str:
    """Return the key of the text that points to who holds a unique key, given `Message.unique`."""
    return f"unique:{task}:{unique.partition(':')[2]}"


def pointer_to(message_id: str, replays: int, follower: str = "") -> str:
    """Return the text that points to a message, and to the one that starts when that has ended, if there is one."""
    return f"{message_id}\t{replays}" + (f"\t{follower}" if follower else "")


def pointed_to(pointer: str | None) -> tuple[str, int, str]:
    """Return the id that a text points to, and of which replay; and what follows then, empty if nothing does."""
    holder, replays, follower, *_ = [*("" if pointer is None else head_of(pointer)).split("\t"), "", "", ""]
    return holder, int(replays) if replays.isdecimal() and len(replays) < 10 else 0, follower


def released(key: str, pointer: str | None, me: str) -> tuple[list[Write], list[Entry]]:
    """Return what a message, to which `me` points, does to the text of its key: what follows is the next to hold it."""
    seen, (holder, replays, follower) = head_of(pointer), pointed_to(pointer)
    if pointer is not None and seen == me:
        return [Write(key, seen, None)], []
    if follower and pointer_to(holder, replays) == me:
        return [Write(key, seen, pointer_to(follower, 0))], [Entry(follower, None)]
    if follower and pointer_to(follower, 0) == me:
        return [Write(key, seen, pointer_to(holder, replays))], []
    return [], []  # it points to others


def life_of(record: Status) -> str:
    """Return what `Message.life` is for the message of a record."""
    return f"{record.id}.{record.replays}" if record.replays else record.id


def kept_s(row: Row, *, result_ttl_s: float | None, now: float, unended_s: float = UNENDED_KEPT_S) -> float | None:
    """Return for how many seconds from now a record is kept, or its cancellation; None is for ever."""
    if result_ttl_s is None or row["state"] in FINAL:
        if result_ttl_s is None or "flow" not in row:
            return result_ttl_s
        is_read = not is_member(row["flow"]) or codec.TYPED in (row.get("result") or "")  # as its flow goes on
        return max(result_ttl_s, STEP_KEPT_S) if is_read else result_ttl_s
    return max(0.0, (row.get("due_at") or now) - now) + max(result_ttl_s, unended_s)


def _of_life(old: Row | None, message: Message) -> Row | None:
    """Return the record of a message's life, a new one if need be; None if the message is of an earlier time."""
    if old is None or old.get("replays", 0) < message.replays:
        return new(message)
    is_late = old.get("replays", 0) > message.replays or old.get("attempt", 0) > message.attempt
    return None if is_late else old


def _forget_call(row: Row) -> None:
    """Have the record of a message that ends hold no key, and no arguments."""
    row.pop("unique", None)
    row.pop("call", None)


def _won(row: Row, run: Run) -> bool:
    """Return whether a run had begun before its worker could know that it was cancelled."""
    ended_at = row.get("ended_at")
    if "flow" in row:
        return False  # its end is counted
    return row["state"] == "cancelled" and ended_at is not None and run.at <= ended_at + CANCEL_KNOWN_S


_LASTING: Final = (
    *("replays", "cancel_asked", "interrupt", "error", "over", "writer", "written_at"),
    *("unique", "call", "digest", "sent", "priority", "expires_at", "flow", "became"),
)
"""The fields that don't depend on the state."""


def _like(row: Row, state: State, attempt: int) -> Row:
    """Return a record of the same life in another state, with its latest attempt."""
    was: Any = row
    now: Any = {"task": row["task"], "queue": row["queue"], "state": state, "enqueued_at": row["enqueued_at"]}
    now["attempt"] = attempt
    for name in _LASTING:
        if name in was:
            now[name] = was[name]
    return cast("Row", now)


def _with(attempts: Sequence[AttemptRow], number: int, run: Run) -> list[AttemptRow]:
    this: AttemptRow = (number, run.worker, run.at, None, None)
    return [*[each for each in attempts if each[0] != number], this][-MOST_ATTEMPTS:]


def _ended(attempt: AttemptRow, ending: Ending) -> AttemptRow:
    error = ending.error
    return (*attempt[:3], ending.at, None if error is None else (error.type, error.message))


def _end(row: Row, ending: Ending, number: int, attempts: Sequence[AttemptRow]) -> Row:
    """Return a record as an ending leaves it; one that was asked to be cancelled waits for no more."""
    is_final = ending.state in FINAL
    state: State = "cancelled" if not is_final and row.get("cancel_asked") else ending.state
    new = _like(row, state, number)
    if attempts:
        new["attempts"] = attempts
    if ending.error is not None:
        new["error"] = ending.error.type, ending.error.message
    if state == "done":
        new.pop("error", None)  # of an attempt before, which tells of it itself
    if state in FINAL:
        new["ended_at"] = ending.at
        if state == "done" and "flow" in new:
            new.pop("sent", None)  # it is not published again
        _forget_call(new)
        if is_final and ending.reason:
            new["reason"] = ending.reason
        if state == "dead" and ending.traceback:
            new["traceback"] = ending.traceback
        if state == "done" and ending.result_json is not None:
            new["result"] = ending.result_json
    elif state == "retrying":
        new["due_at"] = ending.due_at
    return new
