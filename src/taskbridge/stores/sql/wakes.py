"""Wakes whoever waits for a record: by LISTEN and NOTIFY on PostgreSQL, by looking for changes on SQLite."""

from __future__ import annotations

import logging
import select as selecting
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import select

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import Settings
from taskbridge.stores.records import FINAL
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.deadlines import cut
from taskbridge.stores.sql.statements import CHANNEL
from taskbridge.stores.sql.tables import RECORDS
from taskbridge.stores.watches import Watches

_log = logging.getLogger("taskbridge.store")

_LOOK_S: Final = 0.05
"""How often SQLite is asked whether anything has changed, while somebody waits; that takes some microseconds."""

_TOGETHER: Final = 500
_SILENCE_S: Final = 4.0
"""After this long without a word PostgreSQL is asked whether it is there."""
_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CLOSING_S: Final = 1.0
"""How long closing waits for the thread, which holds a connection."""


class Wakes(ABC):
    """The watches of this process: one thread with one connection, which waits while somebody does."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._timeout_s = settings.send_timeout_s
        self._database = database
        self._watches = Watches()
        self._changed = locks.Condition()
        self._closed = locks.Event()
        self._thread: threading.Thread | None = None
        self._connection: Any = None

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a record became final; returns when nothing is missed any more."""
        stop, _ = self._watches.add(message_id, wake)
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskbridge-wakes", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            while self._connection is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closed.is_set():
                    stop()
                    raise BrokerUnavailable("the store does not answer")
                self._changed.wait(left_s)
        return stop

    def wake_here(self, message_id: str) -> None:
        """Wake who waits in this process for a record that it has written, if they are not told otherwise."""
        return  # PostgreSQL tells this process, too

    def close(self) -> None:
        """End the thread, and its connection."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            if self._connection is not None:
                self._interrupt(self._connection)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        pause_s, was_away = _SHORTEST_PAUSE_S, False
        while not self._closed.is_set():
            connection: Any = None
            try:
                connection = self._connect()
                self._set(connection)
                if was_away:
                    self._watches.wake_all()
                pause_s = _SHORTEST_PAUSE_S
                self._wait(connection)
            except Exception as exc:  # of sqlite3, psycopg, or the system: all mean that the database is away
                if not self._closed.is_set() and pause_s == _SHORTEST_PAUSE_S:  # once
                    _log.warning("waiting for results is interrupted: %s", type(exc).__name__)
            self._set(None)
            if connection is not None:
                with suppress(Exception):  # it is of no use any more
                    connection.close()
            was_away = True
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _set(self, connection: Any) -> None:
        with self._changed:
            self._connection = connection
            self._changed.notify_all()

    @abstractmethod
    def _connect(self) -> Any:
        """Return a connection that misses nothing from now on."""

    def _interrupt(self, connection: Any) -> None:
        """End what waits on a connection, if closing doesn't end it at once."""
        return  # it does, where nothing waits for the server

    @abstractmethod
    def _wait(self, connection: Any) -> None:
        """Wake watches until this is closed; raises if the connection is lost."""


class _PostgresWakes(Wakes):
    def _connect(self) -> Any:
        connection = self._database.connect(timeout_s=self._timeout_s)
        try:
            connection.autocommit = True
            self._answer(connection, f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _interrupt(self, connection: Any) -> None:
        cut(connection.pgconn.socket)

    def _wait(self, connection: Any) -> None:
        mine = f"{self._database.namespace}:"
        wire = connection.pgconn
        poll = selecting.poll()
        poll.register(wire.socket, selecting.POLLIN)
        while not self._closed.is_set():
            notice = wire.notifies()
            if notice is not None:
                namespace_and_id = notice.extra.decode()
                if namespace_and_id.startswith(mine):
                    self._watches.wake(namespace_and_id[len(mine) :])
            elif poll.poll(_SILENCE_S * 1000):
                wire.consume_input()
            elif not self._closed.is_set():
                self._answer(connection, "SELECT 1")

    def _answer(self, connection: Any, statement: str) -> None:
        """Carry a statement out; one that is not answered in time is an error."""
        wire = connection.pgconn
        wire.send_query(statement.encode())
        poll = selecting.poll()
        poll.register(wire.socket, selecting.POLLIN)
        deadline = time.monotonic() + _SILENCE_S
        while True:
            wire.flush()
            wire.consume_input()
            while not wire.is_busy():
                result = wire.get_result()
                if result is None:
                    return
                if result.error_message:
                    raise OSError(result.error_message.decode(errors="replace"))
            if time.monotonic() > deadline:
                raise TimeoutError("the database is silent")
            poll.poll(_SILENCE_S * 100)


class _SqliteWakes(Wakes):
    def wake_here(self, message_id: str) -> None:
        self._watches.wake(message_id)

    def _connect(self) -> Any:
        connection: sqlite3.Connection = self._database.connect(timeout_s=self._timeout_s)
        self._version = _version(connection)
        return connection

    def _wait(self, connection: Any) -> None:
        while not self._closed.is_set():
            with self._changed:
                while not self._watches.ids() and not self._closed.is_set():
                    self._changed.wait()
            self._closed.wait(_LOOK_S)
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
            with self._database.reading(timeout_s=self._timeout_s) as connection:
                found = connection.execute(chosen).scalars().all()
            for message_id in found:
                self._watches.wake(message_id)


def make_wakes(settings: Settings, database: Database) -> Wakes:
    """Return what wakes this process's waiters."""
    return _SqliteWakes(settings, database) if database.is_sqlite else _PostgresWakes(settings, database)


def _version(connection: sqlite3.Connection) -> int:
    """Return a number that another one's commit changes."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
