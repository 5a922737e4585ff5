"""Notifies who waits for a record: by LISTEN and NOTIFY on PostgreSQL, by looking for changes on SQLite."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from taskbridge.settings import Settings
from taskbridge.stores.notifications import Notifications
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.schema import RECORDS
from taskbridge.stores.states import FINAL

if TYPE_CHECKING:
    from taskbridge.stores.sql.postgresql import BoundedConnection

CHANNEL: Final = "taskbridge_ended"
"""The channel on which PostgreSQL tells that a record became final, as `namespace:id`."""

_LOOK_S: Final = 0.05
"""How often SQLite is asked whether anything has changed, while somebody waits; that takes some microseconds."""

_TOGETHER: Final = 500
_SILENCE_S: Final = 4.0
"""After this long without a word PostgreSQL is asked whether it is there."""


class PostgresNotifications(Notifications):
    """Listens on a channel that all bridges with this database share."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings)
        self._database = database

    def wake_here(self, message_id: str) -> None:
        """Do nothing: PostgreSQL tells this process, too."""

    def _connect(self) -> BoundedConnection:
        connection: BoundedConnection = self._database.connect(timeout_s=self._timeout_s)
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _serve(self, connection: BoundedConnection) -> None:
        if self._was_away:
            self._watches.wake_all()
        mine, wire = f"{self._database.namespace}:", connection.pgconn
        while not self._closed.is_set():
            notice = wire.notifies()
            if notice is not None:
                namespace_and_id = notice.extra.decode()
                if namespace_and_id.startswith(mine):
                    self._watches.wake(namespace_and_id[len(mine) :])
                continue
            asks_at = time.monotonic() + _SILENCE_S
            while not (found := self._wait(wire.socket, asks_at - time.monotonic())) and not self._closed.is_set():
                if time.monotonic() >= asks_at:
                    break
            if found:
                wire.consume_input()
            elif not self._closed.is_set():
                connection.deadline = time.monotonic() + _SILENCE_S
                connection.execute("SELECT 1")


class SqliteNotifications(Notifications):
    """Looks for changes of the database as long as somebody waits."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings)
        self._database = database
        self._version = 0

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = self._database.connect(timeout_s=self._timeout_s)
        self._version = _version(connection)
        return connection

    def _serve(self, connection: sqlite3.Connection) -> None:
        if self._was_away:
            self._watches.wake_all()
        while not self._closed.is_set():
            self._wait(wait_s=_LOOK_S if self._watches.ids() else None)
            version = _version(connection)
            if version != self._version:
                self._version = version
                self._wake_final()

    def _wake_final(self) -> None:
        """Wake who waits for records that are final by now."""
        ids = list(self._watches.ids())
        for start in range(0, len(ids), _TOGETHER):
            chosen = select(RECORDS.c.id).where(
                RECORDS.c.namespace == self._database.namespace,
                RECORDS.c.id.in_(ids[start : start + _TOGETHER]),
                RECORDS.c.state.in_(FINAL),
            )
            with self._database.single(timeout_s=self._timeout_s, reads=True) as connection:
                found = connection.execute(chosen).scalars().all()
            for message_id in found:
                self._watches.wake(message_id)


def open_notifications(settings: Settings, database: Database) -> Notifications:
    """Return what notifies this process's waiters."""
    return SqliteNotifications(settings, database) if database.is_sqlite else PostgresNotifications(settings, database)


def _version(connection: sqlite3.Connection) -> int:
    """Return a number that another one's commit changes."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
