"""Rows and texts in an SQL database. Each write is one statement, which on PostgreSQL is one round trip."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Literal, cast

from sqlalchemy import Connection, bindparam, delete, func, or_, select, tuple_, update

from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import Settings
from taskbridge.stores.backend import BackendWithTables, Write
from taskbridge.stores.process import PerProcess
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.notifications import CHANNEL, open_notifications
from taskbridge.stores.sql.schema import CANCELLED, RECORDS, TABLES, TEXTS
from taskbridge.stores.states import Row

_log = logging.getLogger("taskbridge.store")

_SOON_S: Final = 2.0
"""How long a write may take that nobody waits for: a run does, after all."""
_PAUSE_S: Final = 1.0
"""How long none is done after a failure."""

_TOGETHER: Final = 500
"""How many rows one statement makes, and how many whose time is over one call removes, at most."""

_COLUMNS: Final = ("task", "queue", "state", "enqueued_at", "due_at", "ended_at", "result")
"""What of a row has a column of its own, beside its version; the others are JSON in `rest`."""

_LOCKS: Final = 0x7462  # "tb"
"""The first key of PostgreSQL's advisory locks under which cancellations get their numbers; then comes a namespace."""

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class SqlBackend(BackendWithTables):
    """Keeps rows and texts in an SQL database.

    Marks are written by statements that wait for the database, but not for its disk: a mark that only this process
    knew of would be lost with it.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self._namespace = settings.namespace
        self._database = database = Database(settings, url)
        self._light = database if database.is_sqlite else Database(settings, url, is_light=True)
        self._rows = _RowStatements(database)
        self._texts = _TextStatements(database)
        self._silent_until = 0.0
        self._notifications = PerProcess(lambda: open_notifications(settings, database))

    # Rows

    def create(self, rows: Sequence[tuple[str, Row, float | None]], *, timeout_s: float) -> None:
        """Keep rows, unless there is one; all in one transaction."""
        values = [self._values(*each) for each in rows]
        within = self._database.single if len(values) == 1 else self._database.writing
        with within(timeout_s=timeout_s) as connection:
            for start in range(0, len(values), _TOGETHER):
                connection.execute(self._rows.add, values[start : start + _TOGETHER])

    def read(self, message_id: str, *, timeout_s: float) -> Row | None:
        """Return a row."""
        its = {"its_namespace": self._namespace, "its_id": message_id}
        with self._database.single(timeout_s=timeout_s, reads=True) as connection:
            found: Mapping[str, Any] | None = connection.execute(self._rows.find, its).mappings().first()  # type: ignore[assignment]
        if found is None:
            return None
        row = {name: found[name] for name in _COLUMNS if found[name] is not None}
        if found["version"]:
            row["version"] = found["version"]
        return cast("Row", {**row, **json.loads(found["rest"])})

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        """Replace rows, each if it is as it was seen."""
        is_single = len(writes) == 1 and not writes[0].cancels
        within = self._database.single if is_single else self._database.writing
        with within(timeout_s=timeout_s) as connection:
            done = [self._write(connection, each) for each in writes]
        here = self._notifications.peek()
        if here is not None:
            for write, is_done in zip(writes, done, strict=True):
                if is_done and write.tells:
                    here.wake_here(write.id)
        return done

    def _write(self, connection: Connection, write: Write) -> bool:
        if write.row is None:
            its = {"its_namespace": self._namespace, "its_id": write.id, "seen": write.seen}
            return connection.execute(self._rows.remove, its).rowcount == 1
        tells = write.tells and not self._database.is_sqlite
        values = {**self._values(write.id, write.row, write.kept_s), "seen": write.seen}
        if tells:
            values["told"] = f"{self._namespace}:{write.id}"
        is_done = connection.execute(self._rows.replace[tells], values).first() is not None
        if is_done and write.cancels:
            self._note_cancellation(connection, write)
        return is_done

    def _note_cancellation(self, connection: Connection, write: Write) -> None:
        """Put a cancellation where `cancelled_since` finds it; numbers are committed in their order."""
        if not self._database.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCKS, func.hashtext(self._namespace))))
        mine, now = CANCELLED.c.namespace == self._namespace, self._database.now
        last, now_s = connection.execute(select(func.max(CANCELLED.c.number).filter(mine), now)).one()
        row = {
            "namespace": self._namespace,
            "number": max((last or 0) + 1, int(now_s * 1_000_000)),  # grows even when all have been forgotten
            "life": write.cancels,
            "until": None if write.cancellation_kept_s is None else now_s + write.cancellation_kept_s,
        }
        connection.execute(CANCELLED.insert().values(row))
        connection.execute(delete(CANCELLED).where(mine, CANCELLED.c.until < now_s))

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor."""
        later = CANCELLED.c.namespace == self._namespace, CANCELLED.c.number > int(cursor or "0")
        chosen = select(CANCELLED.c.number, CANCELLED.c.life).where(*later).order_by(CANCELLED.c.number).limit(most)
        with self._database.single(timeout_s=timeout_s, reads=True) as connection:
            found = connection.execute(chosen).all()
        return str(found[-1].number) if found else cursor, [row.life for row in found]

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each write that tells of a message."""
        return self._notifications.get().watch(message_id, wake)

    def _values(self, message_id: str, row: Row, kept_s: float | None) -> dict[str, Any]:
        plain = dict(cast("dict[str, Any]", row))
        version = plain.pop("version", 0)
        columns = {f"new_{name}": plain.pop(name, None) for name in _COLUMNS}
        key = {"new_namespace": self._namespace, "new_id": message_id}
        return {**key, **columns, "new_version": version, "new_rest": _encode(plain), "kept_s": kept_s}

    # Texts

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        """Return texts."""
        its = {"its_namespace": self._namespace, "its_keys": list(keys)}
        with self._database.single(timeout_s=timeout_s, reads=True) as connection:
            found = {row.key: row.text for row in connection.execute(self._texts.find, its)}
        return [found.get(key) for key in keys]

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        """Keep a text."""
        with self._light.single(timeout_s=timeout_s) as connection:
            connection.execute(self._texts.put, self._text(key, text, kept_s))

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        """Keep a text; if that fails, none is kept for a second."""
        if monotonic() < self._silent_until:
            return
        try:
            self.put(key, text, kept_s=kept_s, timeout_s=_SOON_S)
        except BrokerUnavailable as exc:
            _log.warning("%s can't be written: %s", key, exc.problem)
            self._silent_until = monotonic() + _PAUSE_S

    def add(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> str | None:
        """Keep a text unless there is one."""
        values = {**self._text(key, text, kept_s), "seen": None}
        its = {"its_namespace": self._namespace, "its_keys": [key]}
        with self._light.single(timeout_s=timeout_s) as connection:
            while connection.execute(self._texts.swap, values).first() is None:
                found = connection.execute(self._texts.find, its).first()
                if found is not None:
                    there: str = found.text
                    return there  # else it was taken away between the two
        return None

    def swap(self, key: str, seen: str | None, text: str, *, kept_s: float | None, timeout_s: float) -> bool:
        """Replace a text if it is as it was seen."""
        values = {**self._text(key, text, kept_s), "seen": seen}
        statement = self._texts.swap if seen is None else self._texts.exchange
        with self._database.single(timeout_s=timeout_s) as connection:
            return connection.execute(statement, values).first() is not None

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        """Remove texts."""
        its = {"its_namespace": self._namespace, "its_keys": list(keys)}
        with self._light.single(timeout_s=timeout_s) as connection:
            connection.execute(self._texts.remove, its)

    def _text(self, key: str, text: str, kept_s: float | None) -> dict[str, Any]:
        return {"new_namespace": self._namespace, "new_key": key, "new_text": text, "kept_s": kept_s}

    # All

    def purge(self, what: Literal["rows", "texts"], *, timeout_s: float) -> bool:
        """Remove some of those whose time is over."""
        table = RECORDS if what == "rows" else TEXTS
        old = select(*table.primary_key).where(table.c.until < self._database.now).limit(_TOGETHER)
        if not self._database.is_sqlite:
            old = old.with_for_update(skip_locked=True)
        with self._light.single(timeout_s=timeout_s) as connection:
            removed = connection.execute(delete(table).where(tuple_(*table.primary_key).in_(old))).rowcount
        return removed >= _TOGETHER

    def ping(self, *, timeout_s: float) -> None:
        """Return if the database answers and its tables are this release's."""
        with self._database.single(timeout_s=timeout_s, reads=True) as connection:
            connection.exec_driver_sql("SELECT 1")

    def init(self, *, timeout_s: float) -> tuple[int, int]:
        """Make the tables, or bring them up to date; return the versions of before and after."""
        return self._database.make_tables(timeout_s=timeout_s)

    def clear(self, *, timeout_s: float) -> None:
        """Remove all rows of the namespace."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            for table in TABLES:
                if "namespace" in table.columns:
                    connection.execute(table.delete().where(table.c.namespace == self._namespace))

    def close(self) -> None:
        """Close the connections."""
        notifications = self._notifications.take()
        if notifications is not None:
            notifications.close()
        self._light.close()
        self._database.close()


class _RowStatements:
    """The statements about one record, made once: making them takes as long as what the database does.

    Their parameters are `its_namespace` and `its_id`, or `new_` and a column's name, and `kept_s`; `seen` is the
    version that is changed, and `told` what is sent to whoever waits. A change returns a row if it was made.
    """

    def __init__(self, database: Database) -> None:
        its = RECORDS.c.namespace == bindparam("its_namespace"), RECORDS.c.id == bindparam("its_id")
        insert: Any = database.insert(RECORDS).values(_new(database, RECORDS))
        replace = insert.on_conflict_do_update(
            index_elements=list(RECORDS.primary_key),
            set_={column.name: insert.excluded[column.name] for column in RECORDS.columns if not column.primary_key},
            where=or_(RECORDS.c.version == bindparam("seen"), RECORDS.c.until <= database.now),
        )
        notify: Any = func.pg_notify(CHANNEL, bindparam("told"))  # in the same statement, for a round trip less
        self.find: Any = select(RECORDS).where(*its, _is_kept(database, RECORDS))
        self.add: Any = insert.on_conflict_do_nothing()
        self.remove: Any = delete(RECORDS).where(*its, RECORDS.c.version == bindparam("seen"))
        self.replace: dict[bool, Any] = {False: replace.returning(RECORDS.c.id), True: replace.returning(notify)}


class _TextStatements:
    """The statements about texts; their parameters are as for rows, `its_keys` are several."""

    def __init__(self, database: Database) -> None:
        its = TEXTS.c.namespace == bindparam("its_namespace"), TEXTS.c.key.in_(bindparam("its_keys", expanding=True))
        insert: Any = database.insert(TEXTS).values(_new(database, TEXTS))
        change: Any = {"text": insert.excluded.text, "until": insert.excluded.until}
        seen = bindparam("seen", type_=TEXTS.c.text.type)
        key = list(TEXTS.primary_key)
        self.find: Any = select(TEXTS.c.key, TEXTS.c.text).where(*its, _is_kept(database, TEXTS))
        self.put: Any = insert.on_conflict_do_update(index_elements=key, set_=change)
        self.swap: Any = insert.on_conflict_do_update(
            index_elements=key, set_=change, where=or_(TEXTS.c.text == seen, TEXTS.c.until <= database.now)
        ).returning(TEXTS.c.key)
        new = _new(database, TEXTS)
        is_it = [TEXTS.c.namespace == new["namespace"], TEXTS.c.key == new["key"], TEXTS.c.text == seen]
        exchange = update(TEXTS).where(*is_it, _is_kept(database, TEXTS))
        self.exchange: Any = exchange.values(text=new["text"], until=new["until"]).returning(TEXTS.c.key)
        self.remove: Any = delete(TEXTS).where(*its)


def _new(database: Database, table: Any) -> dict[str, Any]:
    """Return the values of a new row, as parameters, by column."""
    values: dict[str, Any] = {
        column.name: bindparam(f"new_{column.name}", type_=column.type) for column in table.columns
    }
    return {**values, "until": database.now + bindparam("kept_s", type_=table.c.until.type)}


def _is_kept(database: Database, table: Any) -> Any:
    return or_(table.c.until.is_(None), table.c.until > database.now)
