"""Records: what became of each message (rules ST, RS and CA), in a form that belongs to no engine.

A record is made as its message is sent, before or together with the message, so that no worker can be faster. Workers
then write what happens. A record's key is the message's id, so that a handle outlives a switch of engines.

`taskbridge.stores.transitions` decides what a write makes of a record:

- `create` never overwrites: a worker may have been faster, or the same message may have been published twice.
- `started` and `ended` carry the message's attempt and `replays`; a write of an earlier attempt than the record's
  latest one, or of an earlier life, changes nothing. A final record (`FINAL`) changes only by a replay.
- An attempt ends once: the first `ended` stands, but for one that says `queued` (the run was given back, and is no
  attempt).
- `create` of a later life (a replay) begins the record anew.
- A record that was asked to be cancelled while it ran waits for nothing more: where the run's end would make it
  `retrying` or `queued`, it becomes `cancelled`.
- `cancel` and these are atomic to one another: a message whose record is `cancelled` is never `running` again, except
  that a start may win which began before its worker could know (`CANCEL_KNOWN_S`); that `started` says so by its time.

The start of a run is written 20 to 40 ms later, and not at all if the run has ended by then: the news of its end
tells of its start too. So a short run costs one round trip, in which the record is replaced that it most likely has:
the one that was made as the message was sent. That of a unique message is written before it starts: who cancels one
that is not known to run frees its key for another one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Final

from taskbridge import codec
from taskbridge.brokers.base import RedisCommand
from taskbridge.exceptions import StoreUnavailable
from taskbridge.locks import PerProcess
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.backend import NEW, Backend, Commit, Listed, Write, head_of, next_of, row_of_text, text_of_row
from taskbridge.stores.starts import Started, Starts
from taskbridge.stores.states import (
    CANCEL_KNOWN_S,
    FINAL,
    MOST_ATTEMPTS,
    WAITING,
    Attempt,
    Ending,
    Row,
    State,
    Status,
    is_row,
    status_of,
)
from taskbridge.unique import MOVED

__all__ = ["CANCEL_KNOWN_S", "FINAL", "MOST_ATTEMPTS", "Attempt", "Ending", "Records", "State", "Status"]

CANCELLATIONS_AT_ONCE: Final = 1000
"""How many cancellations a store tells of at once."""

_AS_MADE: Final[tuple[State, ...]] = ("queued", "scheduled")
"""The states in which a record is made: in one of them it is, if a write guesses that nobody has changed it."""

Decide = Callable[[Row | None], Row | None]
"""Given a record, or None if there is none, returns what is to replace it; None is to leave it as it is."""


class Records:
    """The records of a bridge, for this process. Threads share it; a forked process is another one.

    A call raises `StoreUnavailable` if the store does not answer in time, unless it says otherwise.
    """

    def __init__(self, settings: Settings, backend: Backend, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._ttl_s = settings.result_ttl_s
        self._timeout_s = settings.send_timeout_s
        self._backend = backend
        self._lists = settings.listing
        self._starts = PerProcess(lambda: Starts(self._write_starts))
        self.step_ended: Callable[[Write, Row], bool] | None = None  # see `Flows.step_ended`
        self.flows_due: deque[str] = deque()  # entries of flows that this process looks after

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages that are about to be sent, each with its delay in seconds.

        Raises:
            StoreUnavailable: Nothing must be sent.
        """
        now = self._now()
        rows = [self.created(message, delay_s, now) for message, delay_s in messages if not message.replays]
        if rows:
            self._backend.create(rows, timeout_s=timeout_s)
            self.list_sent([(message, delay_s) for message, delay_s in messages if not message.replays])
        for message, delay_s in messages:
            if message.replays:  # of which there may be many: each has all the time
                create = partial(transitions.created, message=message, delay_s=delay_s)
                self._change(message.id, create, monotonic() + timeout_s)

    def creating(self, message: Message, delay_s: float, *, lists: bool) -> Sequence[RedisCommand]:
        """Return Redis commands that do what `create` does, for a Redis broker that shares the store's database.

        The broker sends them along with the message, in one transaction. Nothing: use `create`. They list the message
        if they are to; else `list_sent` does.
        """
        made = () if message.replays else self.created(message, delay_s, message.enqueued_at)
        command = self._backend.creating(*made) if made else None
        if command is None:
            return ()
        return command, *(self._backend.listing([self._as_sent(message, delay_s)]) if lists and self._lists else ())

    def list_sent(self, messages: Sequence[tuple[Message, float]]) -> None:
        """List messages whose records are new, each with its delay in seconds, if messages are listed."""
        if self._lists and messages:
            self._backend.list_soon([self._as_sent(*each) for each in messages])

    def _as_sent(self, message: Message, delay_s: float) -> Listed:
        kept_s = None if self._ttl_s is None else delay_s + max(self._ttl_s, transitions.UNENDED_KEPT_S)
        state, at = "scheduled" if delay_s > 0 else "queued", message.enqueued_at + delay_s
        return Listed(message.id, state, at, message.queue, kept_s=kept_s)

    def _listed(self, message_id: str, row: Row, formers: Sequence[State]) -> Listed:
        """Return where a message is listed after a write of its record, which was in one of these states."""
        state, waits = row["state"], row["state"] in WAITING
        at = row.get("ended_at") if state in FINAL else row.get("due_at") if waits else row.get("written_at")
        at = row["enqueued_at"] if at is None else at
        return Listed(
            id=message_id,
            state=state,
            at=at,
            queue=row["queue"] if waits else None,
            formers=tuple(each for each in formers if each != state),
            freed=row["queue"],
            kept_s=transitions.kept_s(row, result_ttl_s=self._ttl_s, now=self._now()),
        )

    def find(self, ids: Sequence[str], *, timeout_s: float) -> list[Status | None]:
        """Return the records of several messages, in one read; None where `get` returns that."""
        texts = self._backend.get([key_of(each) for each in ids], timeout_s=timeout_s) if ids else []
        rows = [unpacked(text) for text in texts]
        return [None if row is None else status_of(each, row) for each, row in zip(ids, rows, strict=True)]

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records of messages that were surely not sent, if nobody has changed them since."""
        deadline, keys = monotonic() + timeout_s, sorted(map(key_of, ids))  # in order, so that no two lock each other
        rows = map(unpacked, self._backend.get(keys, timeout_s=timeout_s))
        writes = [
            Write(key, head_of_row(row), None)
            for key, row in zip(keys, rows, strict=True)
            if row is not None and transitions.is_untouched(row)
        ]
        if writes:
            self._backend.write(writes, timeout_s=deadline - monotonic())

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts. Raises nothing, and waits for nothing where others share the store."""
        starts, run = self._starts.made or self._starts.get(), transitions.Run(worker, at)
        start = starts.add(message, run)
        if self._backend.is_shared:
            starts.write_soon(start)
        else:
            start.row = self._change(message.id, start.decide, monotonic() + self._timeout_s)[1]

    def report(self, message: Message, done: float, total: float | None, note: str) -> None:
        """Record how far a run has come that was started here. Waits for nothing where others share the store."""
        starts = self._starts.made or self._starts.get()
        if (start := starts.get(message)) is None:  # forgotten, for so many others were started since
            return
        start.run = replace(start.run, progress=(done, total, note, self._now()))
        if self._backend.is_shared:
            starts.report(start)
        else:
            self._write_starts([start])

    def begin(self, message: Message, *, worker: str, at: float, timeout_s: float) -> tuple[Row | None, bool]:
        """Record that an attempt starts before it does, and return its record and whether it may start.

        It may not if its message has ended, was cancelled, or is to start later: then the record is as it was.
        """
        starts, run = self._starts.made or self._starts.get(), transitions.Run(worker, at)
        start = starts.add(message, run)
        old, start.row = self._change(
            message.id,
            lambda old: transitions.begun(old, message, run, writer=starts.writer),
            monotonic() + timeout_s,
            is_guess=message.attempt == 1 and message.unique[:1] != MOVED,  # whose record may say that it is early
            unique=message.unique,
        )
        if start.row is None:
            starts.remove(message)
            return old, False
        return start.row, True

    def latest(self, message: Message, *, timeout_s: float) -> Message:
        """Return a message that dies, with the arguments with which it would have been run."""
        is_moved = message.unique[:1] == MOVED
        return transitions.latest(self._read(message.id, timeout_s)[0], message) if is_moved else message

    def lost(self, message: Message, run: transitions.Run) -> None:
        """Remember a run that was found lost: its worker may have been quicker to die than to record its start."""
        self._starts.get().add(message, run)

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and wake who waits for a final record.

        It is written even if this process is killed after this returns.

        Returns:
            The record's state after that, whether this has changed it or not; None if it is of another life. It is
            `cancelled` where there was to be a next attempt, and somebody has cancelled the message.
        """
        deadline, starts = monotonic() + timeout_s, self._starts.made or self._starts.get()
        start = starts.get(message)
        run, seen = (None, None) if start is None else (start.run, start.row)
        old, new = self._change(
            message.id,
            lambda old: transitions.ended(old, message, ending, run, writer=starts.writer),
            deadline,
            seen=seen,
            # A first attempt makes the same of a record as it was made, of one of an earlier life, and of none.
            is_guess=seen is not None or message.attempt == 1,
            unique=message.unique,
        )
        starts.remove(message)
        return transitions.left(old, new, message)

    def became(self, message: Message, flow_id: str, at: float) -> Callable[[Row | None], tuple[Row, Write] | None]:
        """Return what decides, given a message's record, that it goes on as a flow: the record then, and its write."""
        starts = self._starts.made or self._starts.get()
        start = starts.get(message)
        run = None if start is None else start.run

        def decide(old: Row | None) -> tuple[Row, Write] | None:
            new = transitions.became(old, message, flow_id, at, run, writer=starts.writer)
            return None if new is None else (new, self.replacing(message.id, old, head_of_row(old), new))

        return decide

    def change(self, message_id: str, decide: Decide, *, timeout_s: float) -> Row | None:
        """Replace a record by what is decided about it, and return that; None if it stays as it is."""
        return self._change(message_id, decide, monotonic() + timeout_s)[1]

    def get(self, message_id: str, *, timeout_s: float) -> Status | None:
        """Return a record; None if there is none, or it is older than `result_ttl`."""
        return self.find([message_id], timeout_s=timeout_s)[0]

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, from any thread, whenever a message's record may have become final, until it is told to stop.

        One connection a process serves any number of watches. A wake may come for nothing and one may be missed while
        the store is away: it comes after the connection is there again. Who waits reads the record after `watch`
        returns and after each wake.

        Returns:
            What ends the watch.
        """
        return self._backend.watch(key_of(message_id), wake)

    def cancel(self, message_id: str, *, at: float, interrupt: bool = False, timeout_s: float) -> Status | None:
        """Cancel a message unless it is final, in one step, and return its record after that; None if there is none.

        One that does not run becomes `cancelled`; for one that runs, `cancel_asked` is set, and with `interrupt` also
        `interrupt_asked`. `cancelled_since` tells
        its life from now on, for at least as long as its message can be about: its due time, and `result_ttl` or
        7 days more.
        """
        decide = partial(transitions.cancelled, at=at, interrupt=interrupt)
        old, new = self._change(message_id, decide, monotonic() + timeout_s, cancels=True)
        row = old if new is None else new
        return None if row is None else status_of(message_id, row)

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor; "" is the beginning.

        A message's life is `Message.life`. A replay begins another one, which is not cancelled.
        None is skipped, whatever the order in which concurrent calls of `cancel` end; some may be told twice. Of many
        only the first are told, `CANCELLATIONS_AT_ONCE` or so: whoever wants all asks with the next cursor, until none
        is told.
        """
        return self._backend.cancelled_since(cursor, most=CANCELLATIONS_AT_ONCE, timeout_s=timeout_s)

    def close(self) -> None:
        """Write the starts that are not written yet, for 2 s at most."""
        self._starts.close()

    def _read(self, message_id: str, timeout_s: float) -> tuple[Row | None, str]:
        """Return a record, and its head; one that can't be read counts as none, and stays until a write replaces it."""
        [text] = self._backend.get([key_of(message_id)], timeout_s=timeout_s)
        return unpacked(text), head_of(text)

    def created(self, message: Message, delay_s: float, now: float) -> tuple[str, str, float | None]:
        """Return the key and the text of a new record, and for how many seconds it is kept."""
        row = transitions.new(message, delay_s)
        text = f"{NEW}\n{codec.to_json(row)}"  # as `text_of_row` would, for less: it has no version, and no result
        return key_of(message.id), text, transitions.kept_s(row, result_ttl_s=self._ttl_s, now=now)

    def _change(
        self,
        message_id: str,
        decide: Decide,
        deadline: float,
        *,
        seen: Row | None = None,
        is_guess: bool = False,
        cancels: bool = False,
        unique: str = "",
    ) -> tuple[Row | None, Row | None]:
        """Replace a record by what is decided about it, and return what that was decided about, and what was decided.

        It is decided again if somebody else has replaced the record meanwhile; first about `seen`, if that `is_guess`,
        and not read. A change may cancel the message. `unique` is as in the message, where there is no record.
        """
        row, head = (seen, head_of_row(seen)) if is_guess else self._read(message_id, deadline - monotonic())
        while True:
            new = decide(row)
            if new is None and not is_guess:
                return row, None
            if new is not None:
                write = self.replacing(message_id, row, head, new, cancels=cancels)
                held = unique if row is None else row.get("unique", "")
                freed = held if "unique" not in new else ""
                if self._is_done(write, freed, message_id, new, deadline):
                    return row, new
            if monotonic() >= deadline:
                raise StoreUnavailable("others change the same record")
            (row, head), is_guess = self._read(message_id, deadline - monotonic()), False

    def _is_done(self, write: Write, freed: str, message_id: str, new: Row, deadline: float) -> bool:
        """Do a write of a record, and return whether that was as it was seen; a freed key points to nobody then.

        Most keys point to who frees them, so they are read only if that is found wrong. A step of a flow is counted as
        it ends, in the same act.
        """
        if "flow" in new and new["state"] in FINAL:
            from taskbridge.stores.steps import count  # here, for few messages are in a flow

            if self.step_ended is not None and self.step_ended(write, new):
                return True
            return count(self._backend, write, new, self.flows_due, timeout_s=deadline - monotonic())
        if not freed:
            return self._backend.write([write], timeout_s=deadline - monotonic())[0]
        key, me = transitions.pointer_key(new["task"], freed), transitions.pointer_to(message_id, new.get("replays", 0))
        seen: str | None = me
        while True:
            pointers, entries = transitions.released(key, seen, me)
            if self._backend.commit([Commit((write, *pointers), entries)], timeout_s=deadline - monotonic())[0]:
                return True
            [found] = self._backend.get([key], timeout_s=deadline - monotonic())
            if found == seen:
                return False
            seen = found

    def replacing(self, message_id: str, old: Row | None, head: str, new: Row, *, cancels: bool = False) -> Write:
        """Return a write of what was decided about a record; `head` is that of the text which it replaces."""
        new["version"], now = next_of(head), self._now()
        kept_s, tells = transitions.kept_s(new, result_ttl_s=self._ttl_s, now=now), new["state"] in FINAL
        key, text = key_of(message_id), text_of_row(new, "result")
        if self._lists:  # before it is written, for it is a hint; whoever reads it looks at the record
            # Of a guess it is not known whether its start was written, which is listed before that.
            formers: Sequence[State] = (*_AS_MADE, "running") if old is None else (old["state"],)
            self._backend.list_soon([self._listed(message_id, new, formers)])
        if old is None or not cancels:
            return Write(key, head, text, kept_s, tells)
        life = transitions.life_of(status_of(message_id, old))
        told_s = transitions.kept_s(old, result_ttl_s=self._ttl_s, now=now, unended_s=transitions.CANCELLATION_KEPT_S)
        return Write(key, head, text, kept_s, tells, life, told_s)

    def _write_starts(self, starts: Sequence[Started]) -> None:
        """Write starts, all at once those whose records are as they were made, and then the others, and progress."""
        deadline, told = monotonic() + self._timeout_s, [start for start in starts if start.row is not None]
        new = [start for start in starts if start.row is None]
        rows = [(start, row) for start in new if start.message.attempt == 1 and (row := start.decide(None))]
        writes = [self.replacing(start.message.id, None, NEW, row) for start, row in rows]
        done = self._backend.write(writes, timeout_s=self._timeout_s) if writes else []
        for (start, row), is_done in zip(rows, done, strict=True):
            start.row = row if is_done else None
        for start in new:
            if start.row is None:
                start.row = self._change(start.message.id, start.decide, deadline)[1]
        for start in told:
            start.row = self._change(start.message.id, start.decide, deadline, seen=start.row, is_guess=True)[1]


def key_of(message_id: str) -> str:
    """Return the key of a message's record."""
    return f"record:{message_id}"


def head_of_row(row: Row | None) -> str:
    """Return the head of the text that a record was read from."""
    return NEW if row is None else str(row.get("version", 0))


def unpacked(text: str | None) -> Row | None:
    """Return the row of a text; None if there is no text, or no row can be read in it."""
    found = row_of_text(text, "result")
    return found if is_row(found) else None
