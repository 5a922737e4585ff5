"""What is SQLite's own: its connections, and that whoever waits looks for changes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from time import monotonic, sleep
from typing import Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from taskbridge import locks
from taskbridge.settings import Settings
from taskbridge.stores.notifications import Notifications
from taskbridge.stores.sql.database import Database

_LOOK_S: Final = 0.05
"""How often SQLite is asked whether anything has changed, while somebody waits; that takes some microseconds."""

_making: Final = locks.Lock()
"""Held while a file is made: closing it ends all locks that this process has on it, SQLite's own too."""


class Sqlite(Database):
    """A file, by the standard library's `sqlite3`."""

    errors: ClassVar[tuple[type[Exception], ...]] = (sqlite3.Error, OSError)
    begin = "BEGIN IMMEDIATE"  # else a writer fails that has read before
    now = "((julianday('now') - 2440587.5) * 86400.0)"
    among = "IN (SELECT value FROM json_each(:keys))"
    light = "1"
    notify = "1"
    skip_locked = ""
    finds_schema = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'taskbridge_schema'"
    makes_tables = True
    one_writes = True  # threads wait for each other: SQLite's own waiting is by sleeping, and unfair

    def __init__(self, settings: Settings, url: str) -> None:
        super().__init__(settings, url)
        self._place = unquote(urlsplit(url).path[1:])

    def connect(self, deadline: float) -> sqlite3.Connection:
        """Return a new connection, to a file that only its owner may read if there was none."""
        with _making, suppress(OSError):  # there is one; where none can be made, SQLite says why
            os.close(os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        timeout_s = max(0.0, deadline - monotonic())
        connection = sqlite3.connect(self._place, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            _use_wal(connection, deadline)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def lend(self, connection: Any, deadline: float) -> bool:
        left_s = max(0.0, deadline - monotonic())
        connection.execute(f"PRAGMA busy_timeout = {max(1, round(left_s * 1000))}")
        return True

    def is_missing_table(self, error: Exception) -> bool:
        return str(error).startswith("no such table")

    def keys(self, keys: Sequence[str]) -> str:
        return json.dumps(list(keys))

    def notifications(self) -> Notifications:
        return _SqliteNotifications(self, self._timeout_s)


class _SqliteNotifications(Notifications):
    """Looks for changes of the database as long as somebody waits."""

    is_told = False

    def __init__(self, database: Sqlite, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._database = database
        self._version = 0

    def _connect(self) -> sqlite3.Connection:
        return self._database.connect(monotonic() + self._timeout_s)

    def _begin(self, connection: sqlite3.Connection) -> None:
        self._version = _version(connection)
        super()._begin(connection)

    def _silence_s(self) -> float:
        return _LOOK_S if self._watches.keys() else inf

    def _ask(self, connection: sqlite3.Connection) -> None:
        version = _version(connection)
        if version == self._version:
            return
        self._version = version
        values = {"namespace": self._database.namespace, "keys": self._database.keys(list(self._watches.keys()))}
        told = f"SELECT key FROM taskbridge_text WHERE namespace = :namespace AND key {Sqlite.among} AND told"
        for (key,) in connection.execute(told, values).fetchall():
            self._watches.wake(key)


def _version(connection: sqlite3.Connection) -> int:
    """Return a number that another one's commit changes."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _use_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """Keep what is written in a log beside the database, so that readers and the writer don't wait for each other."""
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # locked, for others do the same: SQLite doesn't wait by itself here
            if monotonic() > deadline:
                raise
        sleep(0.01)
