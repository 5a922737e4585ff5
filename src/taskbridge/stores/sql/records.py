"""Records in an SQL database: a row for each message."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, select, tuple_

from taskbridge import locks
from taskbridge.brokers.base import RedisCommand
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.retry import ErrorInfo
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.records import CANCELLATIONS_AT_ONCE, FINAL, AttemptRecord, Ending, Record, State
from taskbridge.stores.runs import Runs
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.statements import RecordStatements
from taskbridge.stores.sql.tables import CANCELLED, RECORDS
from taskbridge.stores.sql.wakes import Wakes, make_wakes
from taskbridge.stores.sql.writer import Writer
from taskbridge.stores.transitions import Kept, Run

_log = logging.getLogger("taskbridge.store")

_TOGETHER: Final = 500
_PURGED_TOGETHER: Final = 500
"""How many rows whose time is over one call removes at most."""
_PURGE_EVERY_S: Final = 30.0

_LOCKS: Final = 0x7462  # "tb"
"""The first key of PostgreSQL's advisory locks under which cancellations get their numbers; then comes a namespace."""

Decide = Callable[[Kept | None], Kept | None]


class SqlRecords:
    """Keeps records in an SQL database."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._namespace = settings.namespace
        self._ttl_s = settings.result_ttl_s
        self._statements = RecordStatements(database)
        self._purge_at = 0.0
        self._lock = locks.Lock()
        self._here: tuple[Runs, Wakes, Writer] | None = None

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages, all in one transaction."""
        if len(messages) == 1 and not messages[0][0].replays:
            kept = transitions.created(None, *messages[0])
            if kept is not None:
                with self._database.single(timeout_s=timeout_s) as connection:
                    self._write(connection, kept, was_there=False)
            return
        with self._database.writing(timeout_s=timeout_s) as connection:
            first = [self._row(kept) for message, delay_s in messages if (kept := _created(message, delay_s))]
            for start in range(0, len(first), _TOGETHER):
                insert = self._database.insert(RECORDS).on_conflict_do_nothing()
                connection.execute(insert, first[start : start + _TOGETHER])
            for message, delay_s in messages:
                if message.replays:
                    self._change(connection, message.id, _creates(message, delay_s))

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return None: this is no Redis."""
        return None

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records that nobody has changed."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            for message_id in sorted(ids):
                kept = self._read(connection, message_id, locks=True)
                if kept is not None and transitions.is_untouched(kept):
                    connection.execute(delete(RECORDS).where(*self._is(message_id)))

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts: a thread of this process writes it, together with others."""
        runs, _, writer = self._process()
        run = Run(worker=worker, at=at)
        runs.add(message, run)
        writer.put((message, run))

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and wake who waits for a final record."""
        deadline = time.monotonic() + timeout_s
        runs, wakes, _ = self._process()
        run = runs.get(message)
        seen: Kept | None = None

        def decide(old: Kept | None) -> Kept | None:
            nonlocal seen
            seen = old
            return transitions.ended(old, message, ending, run, writer=runs.writer)

        new = self._changed(message.id, decide, timeout_s)
        runs.remove(message)
        if new is not None and new.record.state in FINAL:
            wakes.wake_here(message.id)
        self._purge(deadline)
        return transitions.left(seen, new, message)

    def get(self, message_id: str, *, timeout_s: float) -> Record | None:
        """Return a record; None if there is none, or its time is over."""
        with self._database.reading(timeout_s=timeout_s) as connection:
            kept = self._read(connection, message_id)
        return None if kept is None else kept.record

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a message's record became final, until it is told to stop."""
        return self._process()[1].watch(message_id, wake)

    def cancel(self, message_id: str, *, at: float, timeout_s: float) -> Record | None:
        """Cancel a message unless it is final."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            old = self._read(connection, message_id, locks=True)
            if old is None:
                return None
            new = transitions.cancelled(old, at=at)
            if new is None:
                return old.record
            self._write(connection, new, was_there=True)
            self._tell(connection, old.record)
        if new.record.state in FINAL:
            self._process()[1].wake_here(message_id)
        return new.record

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor."""
        chosen = select(CANCELLED.c.number, CANCELLED.c.life).where(
            CANCELLED.c.namespace == self._namespace, CANCELLED.c.number > int(cursor or "0")
        )
        with self._database.reading(timeout_s=timeout_s) as connection:
            found = connection.execute(chosen.order_by(CANCELLED.c.number).limit(CANCELLATIONS_AT_ONCE)).all()
        return str(found[-1].number) if found else cursor, [row.life for row in found]

    def close(self) -> None:
        """Write what is left to write, and close the connection that waits."""
        with self._lock:
            here, self._here = self._here, None
        if here is not None and here[0].pid == os.getpid():
            here[2].close()
            here[1].close()

    def _process(self) -> tuple[Runs, Wakes, Writer]:
        here = self._here
        if here is not None and here[0].pid == os.getpid():
            return here
        with self._lock:
            if self._here is None or self._here[0].pid != os.getpid():
                runs, wakes = Runs(), make_wakes(self._settings, self._database)
                self._here = runs, wakes, Writer(partial(self._write_starts, runs))
            return self._here

    def _write_starts(self, runs: Runs, starts: Sequence[tuple[Message, Run]]) -> None:
        """Write starts in one transaction, but for those whose ends are known already."""
        left = [(message, run) for message, run in starts if runs.get(message) is run]
        if not left:
            return
        with self._database.writing(timeout_s=self._settings.send_timeout_s) as connection:
            for message, run in sorted(left, key=lambda start: start[0].id):  # in order, so that no two lock each other
                self._change(connection, message.id, _starts(message, run, runs.writer))

    def _changed(self, message_id: str, decide: Decide, timeout_s: float) -> Kept | None:
        """Put in the place of one record what is decided, in a transaction, or where that is cheaper by comparing."""
        if self._database.is_sqlite:
            with self._database.writing(timeout_s=timeout_s) as connection:
                return self._change(connection, message_id, decide)
        deadline = time.monotonic() + timeout_s
        while True:  # two round trips if nobody else changes it meanwhile; a transaction takes four
            with self._database.single(timeout_s=deadline - time.monotonic()) as connection:
                row = self._find(connection, message_id, locks=False)
                new = decide(self._kept(row))
                if new is None or self._write(connection, new, was_there=row is not None, seen=row):
                    return new

    def _change(self, connection: Connection, message_id: str, decide: Decide) -> Kept | None:
        """Put in the place of a record what is decided, and return that."""
        while True:
            row = self._find(connection, message_id, locks=True)
            new = decide(self._kept(row))
            if new is None or self._write(connection, new, was_there=row is not None):
                return new

    def _write(self, connection: Connection, kept: Kept, *, was_there: bool, seen: RowMapping | None = None) -> bool:
        """Write a record, and wake who waits for it; return False if another has made it meanwhile.

        Args:
            connection: Where.
            kept: What.
            was_there: Whether there is a row of it.
            seen: That row, if it isn't locked: then False, too, if another has changed it.
        """
        tells = kept.record.state in FINAL and not self._database.is_sqlite
        values: dict[str, Any] = {f"new_{name}": value for name, value in self._row(kept).items()}
        if tells:
            values["told"] = f"{self._namespace}:{kept.record.id}"
        if not was_there:
            return connection.execute(self._statements.inserts[tells], values).first() is not None
        values |= {"its_namespace": values.pop("new_namespace"), "its_id": values.pop("new_id")}
        if seen is not None:
            values |= {"seen_state": seen["state"], "seen_rest": seen["rest"]}
        return connection.execute(self._statements.updates[seen is not None, tells], values).first() is not None

    def _tell(self, connection: Connection, record: Record) -> None:
        """Put a cancellation where `cancelled_since` finds it; numbers are committed in their order."""
        if not self._database.is_sqlite:
            lock = func.pg_advisory_xact_lock(_LOCKS, func.hashtext(self._namespace))
            connection.execute(select(lock))
        mine, now = CANCELLED.c.namespace == self._namespace, time.time()
        last = connection.execute(select(func.max(CANCELLED.c.number)).where(mine)).scalar() or 0
        kept_s = transitions.cancellation_kept_s(record, result_ttl_s=self._ttl_s, now=now)
        row = {
            "namespace": self._namespace,
            "number": max(last + 1, int(now * 1_000_000)),  # grows even when all have been forgotten
            "life": transitions.life_of(record),
            "until": None if kept_s is None else now + kept_s,
        }
        connection.execute(CANCELLED.insert().values(row))
        connection.execute(delete(CANCELLED).where(mine, CANCELLED.c.until < now))

    def _read(self, connection: Connection, message_id: str, *, locks: bool = False) -> Kept | None:
        return self._kept(self._find(connection, message_id, locks=locks))

    def _find(self, connection: Connection, message_id: str, *, locks: bool) -> RowMapping | None:
        statement = self._statements.find_and_lock if locks else self._statements.find
        its = {"its_namespace": self._namespace, "its_id": message_id}
        found: RowMapping | None = connection.execute(statement, its).mappings().first()
        return found

    def _is(self, message_id: str) -> tuple[Any, Any]:
        return RECORDS.c.namespace == self._namespace, RECORDS.c.id == message_id

    def _row(self, kept: Kept) -> dict[str, Any]:
        record, now = kept.record, time.time()
        kept_s = transitions.kept_s(record, result_ttl_s=self._ttl_s, now=now)
        return {
            "namespace": self._namespace,
            "id": record.id,
            "task": record.task,
            "queue": record.queue,
            "state": record.state,
            "enqueued_at": record.enqueued_at,
            "due_at": record.due_at,
            "ended_at": record.ended_at,
            "result": record.result_json,
            "rest": _rest(kept),
            "until": None if kept_s is None else now + kept_s,
        }

    def _kept(self, row: RowMapping | None) -> Kept | None:
        if row is None or (row["until"] is not None and row["until"] <= time.time()):
            return None
        return _kept(row)

    def _purge(self, deadline: float) -> None:
        """Remove records whose time is over, now and then, and never many at once.

        Only where an end is recorded: whoever sends has a time to keep to (rule S2).
        """
        now = time.monotonic()
        if now < self._purge_at or now >= deadline:
            return
        self._purge_at = now + _PURGE_EVERY_S
        key = RECORDS.c.namespace, RECORDS.c.id
        old = select(*key).where(RECORDS.c.until < time.time()).limit(_PURGED_TOGETHER)
        if not self._database.is_sqlite:
            old = old.with_for_update(skip_locked=True)
        try:
            with self._database.writing(timeout_s=deadline - now) as connection:
                removed = connection.execute(delete(RECORDS).where(tuple_(*key).in_(old))).rowcount
        except BrokerUnavailable as exc:  # what was asked for is done
            _log.info("old records are not removed now: %s", exc.problem)
            return
        if removed >= _PURGED_TOGETHER:
            self._purge_at = now


def _created(message: Message, delay_s: float) -> Kept | None:
    return None if message.replays else transitions.created(None, message, delay_s)


def _creates(message: Message, delay_s: float) -> Decide:
    return lambda old: transitions.created(old, message, delay_s)


def _starts(message: Message, run: Run, writer: str) -> Decide:
    return lambda old: transitions.started(old, message, run, writer=writer)


def _rest(kept: Kept) -> str:
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
    return json.dumps({key: value for key, value in rest.items() if value}, separators=(",", ":"))


def _kept(row: RowMapping) -> Kept:
    rest: Mapping[str, Any] = json.loads(row["rest"])
    record = Record(
        id=row["id"],
        task=row["task"],
        queue=row["queue"],
        state=row["state"],
        enqueued_at=row["enqueued_at"],
        due_at=row["due_at"],
        ended_at=row["ended_at"],
        attempts=tuple(_attempt(each) for each in rest.get("attempts", ())),
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


def _attempt(words: Sequence[Any]) -> AttemptRecord:
    number, worker, started_at, ended_at, error = words
    return AttemptRecord(number=number, worker=worker, started_at=started_at, ended_at=ended_at, error=_error(error))


def _pair(error: ErrorInfo | None) -> list[str] | None:
    return None if error is None else [error.type, error.message]


def _error(pair: Sequence[str] | None) -> ErrorInfo | None:
    return None if pair is None else ErrorInfo(type=pair[0], message=pair[1])
