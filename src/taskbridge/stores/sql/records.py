"""Records in an SQL database: a row for each message."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

from sqlalchemy import Connection, delete, func, select

from taskbridge.brokers.base import RedisCommand
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.form import from_plain, to_plain
from taskbridge.stores.process import PerProcess
from taskbridge.stores.recording import Change, Decide, Runs, StoredRecords
from taskbridge.stores.records import CANCELLATIONS_AT_ONCE, FINAL, Ending, State
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.notifications import open_notifications
from taskbridge.stores.sql.statements import RecordStatements
from taskbridge.stores.sql.tables import CANCELLED, RECORDS
from taskbridge.stores.sql.writer import Start, Writer
from taskbridge.stores.transitions import Kept, Run

_log = logging.getLogger("taskbridge.store")

_TOGETHER: Final = 500
_PURGE_EVERY_S: Final = 30.0
_COLUMNS: Final = ("task", "queue", "state", "enqueued_at", "due_at", "ended_at", "result")
"""What of a record has a column of its own; the others are JSON in `rest`."""

_LOCKS: Final = 0x7462  # "tb"
"""The first key of PostgreSQL's advisory locks under which cancellations get their numbers; then comes a namespace."""


Row = Mapping[str, Any]
"""A row of the table of records."""


class SqlRecords(StoredRecords):
    """Keeps records in an SQL database.

    A record is read, decided about, and written if it is still what was read: on PostgreSQL these are two statements,
    each a round trip of its own, where a transaction that locks the row takes four.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings)
        self._timeout_s = settings.send_timeout_s
        self._database = database
        self._namespace = settings.namespace
        self._statements = RecordStatements(database)
        self._purge_at = 0.0
        self._started = PerProcess(Runs)
        self._notifications = PerProcess(lambda: open_notifications(settings, database))
        self._writer = PerProcess(lambda: Writer(self._write_starts))

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages, all in one transaction."""
        first = [each for each in messages if not each[0].replays]
        rows = [self._row(kept) for each in first if (kept := transitions.created(None, *each)) is not None]
        insert = self._database.insert(RECORDS).on_conflict_do_nothing()
        within = self._database.single if len(messages) == 1 else self._database.writing
        with within(timeout_s=timeout_s) as connection:
            for start in range(0, len(rows), _TOGETHER):
                connection.execute(insert, rows[start : start + _TOGETHER])
            for message, delay_s in messages:
                if message.replays:
                    self._change(connection, message.id, partial(_created, message, delay_s))

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return None: this is no Redis."""
        return None

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records that nobody has changed."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            for message_id in sorted(ids):  # in order, so that no two lock each other
                row = self._find(connection, message_id)
                kept = self._kept(row)
                if row is not None and kept is not None and transitions.is_untouched(kept):
                    connection.execute(self._statements.remove, self._seen(message_id, row))

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts: a thread of this process writes it, together with others."""
        run = Run(worker=worker, at=at)
        self._runs().add(message, run)
        self._writer.get().put((message, run))

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and wake who waits for a final record."""
        deadline = time.monotonic() + timeout_s
        state = super().ended(message, ending, timeout_s=timeout_s)
        self._purge(deadline)
        return state

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a message's record became final, until it is told to stop."""
        return self._notifications.get().watch(message_id, wake)

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
        for each in (self._writer.take(), self._notifications.take()):
            if each is not None:
                each.close()

    def _runs(self) -> Runs:
        return self._started.get()

    def _notify(self, message_id: str) -> None:
        here = self._notifications.peek()
        if here is not None:
            here.wake_here(message_id)

    def _read(self, message_id: str, timeout_s: float) -> Kept | None:
        with self._database.reading(timeout_s=timeout_s) as connection:
            return self._kept(self._find(connection, message_id))

    def _end(self, message: Message, run: Run | None, decide: Decide, timeout_s: float) -> Change:
        with self._database.single(timeout_s=timeout_s) as connection:
            return self._change(connection, message.id, decide)

    def _cancel(self, message_id: str, decide: Decide, timeout_s: float) -> Change:
        with self._database.writing(timeout_s=timeout_s) as connection:
            old, new = self._change(connection, message_id, decide)
            if old is not None and new is not None:
                self._note_cancellation(connection, old)
            return old, new

    def _write_starts(self, starts: Sequence[Start]) -> None:
        """Write starts in one transaction, but for those whose ends are known already."""
        runs = self._runs()
        left = [(message, run) for message, run in starts if runs.get(message) is run]
        if not left:
            return
        with self._database.writing(timeout_s=self._timeout_s) as connection:
            for message, run in sorted(left, key=lambda start: start[0].id):  # in order, so that no two lock each other
                self._change(connection, message.id, partial(_started, message, run, runs.writer))

    def _change(self, connection: Connection, message_id: str, decide: Decide) -> Change:
        """Replace a record by what is decided about it."""
        while True:
            row = self._find(connection, message_id)
            old = self._kept(row)
            new = decide(old)
            if new is None or self._write(connection, new, row):
                return old, new

    def _write(self, connection: Connection, new: Kept, row: Row | None) -> bool:
        """Write a record, and notify who waits for it; return False if its row isn't the one given any more."""
        tells = new.record.state in FINAL and not self._database.is_sqlite
        values: dict[str, Any] = {f"new_{name}": value for name, value in self._row(new).items()}
        if tells:
            values["told"] = f"{self._namespace}:{new.record.id}"
        if row is None:
            return connection.execute(self._statements.inserts[tells], values).first() is not None
        values |= self._seen(new.record.id, row)
        return connection.execute(self._statements.updates[tells], values).first() is not None

    def _find(self, connection: Connection, message_id: str) -> Row | None:
        its = {"its_namespace": self._namespace, "its_id": message_id}
        found: Row | None = cast("Any", connection.execute(self._statements.find, its).mappings().first())
        return found

    def _seen(self, message_id: str, row: Row) -> dict[str, Any]:
        return {
            "its_namespace": self._namespace,
            "its_id": message_id,
            "seen_state": row["state"],
            "seen_rest": row["rest"],
        }

    def _note_cancellation(self, connection: Connection, old: Kept) -> None:
        """Put a cancellation where `cancelled_since` finds it; numbers are committed in their order."""
        if not self._database.is_sqlite:
            lock = func.pg_advisory_xact_lock(_LOCKS, func.hashtext(self._namespace))
            connection.execute(select(lock))
        mine, now = CANCELLED.c.namespace == self._namespace, time.time()
        last = connection.execute(select(func.max(CANCELLED.c.number)).where(mine)).scalar() or 0
        kept_s = self._cancellation_kept_s(old, now)
        row = {
            "namespace": self._namespace,
            "number": max(last + 1, int(now * 1_000_000)),  # grows even when all have been forgotten
            "life": transitions.life_of(old.record),
            "until": None if kept_s is None else now + kept_s,
        }
        connection.execute(CANCELLED.insert().values(row))
        connection.execute(delete(CANCELLED).where(mine, CANCELLED.c.until < now))

    def _row(self, kept: Kept) -> dict[str, Any]:
        now = time.time()
        kept_s = self._kept_s(kept, now)
        until = None if kept_s is None else now + kept_s
        plain = to_plain(kept)
        columns = {name: plain.pop(name, None) for name in _COLUMNS}
        rest = json.dumps(plain, separators=(",", ":"))
        return {"namespace": self._namespace, "id": kept.record.id, **columns, "rest": rest, "until": until}

    def _kept(self, row: Row | None) -> Kept | None:
        if row is None or (row["until"] is not None and row["until"] <= time.time()):
            return None
        return from_plain(row["id"], {**json.loads(row["rest"]), **{name: row[name] for name in _COLUMNS}})

    def _purge(self, deadline: float) -> None:
        """Remove records whose time is over, now and then, and never many at once.

        Only where an end is recorded: whoever sends has a time to keep to (rule S2).
        """
        now = time.monotonic()
        if now < self._purge_at or now >= deadline:
            return
        self._purge_at = now + _PURGE_EVERY_S
        try:
            has_more = self._database.purge(RECORDS, timeout_s=deadline - now)
        except BrokerUnavailable as exc:  # what was asked for is done
            _log.info("old records are not removed now: %s", exc.problem)
        else:
            self._purge_at = now if has_more else self._purge_at


def _created(message: Message, delay_s: float, old: Kept | None) -> Kept | None:
    return transitions.created(old, message, delay_s)


def _started(message: Message, run: Run, writer: str, old: Kept | None) -> Kept | None:
    return transitions.started(old, message, run, writer=writer)
