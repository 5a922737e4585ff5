"""What is SQLite's own about the connections of a database."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, event


class SqliteDriver:
    """Makes connections of the standard library's `sqlite3`."""

    def __init__(self, url: URL) -> None:
        self._place = url.database or ""

    def connect(self, deadline: float) -> Any:
        """Return a new connection; the deadline is by the monotonic clock."""
        timeout_s = max(0.0, deadline - time.monotonic())
        connection = sqlite3.connect(self._place, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            _use_wal(connection, deadline)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def prepare(self, engine: Engine) -> None:
        """Have transactions begin as they must."""
        event.listen(engine, "begin", _begin)

    def lend(self, connection: Any, deadline: float) -> bool:
        """Have a call on a connection end in time."""
        left_s = max(0.0, deadline - time.monotonic())
        connection.execute(f"PRAGMA busy_timeout = {max(1, round(left_s * 1000))}")
        return True

    def for_reading(self, connection: Connection) -> Connection:
        """Return a connection whose statements only read."""
        return connection.execution_options(taskbridge_reads=True)


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("taskbridge_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")  # else a writer fails that has read before


def _use_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """Keep what is written in a log beside the database, so that readers and the writer don't wait for each other."""
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # locked, for others do the same: SQLite doesn't wait by itself here
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
