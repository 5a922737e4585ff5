"""The connections of this process to one database: SQLite or PostgreSQL. Each call ends in time."""

from __future__ import annotations

import os
import select as selecting
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, literal, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import ColumnElement

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable, SettingsError, StoreNotReady
from taskbridge.settings import Settings, without_credentials
from taskbridge.stores.sql import schema
from taskbridge.stores.sql.deadlines import Deadlines, InTime

_KEPT_OPEN: Final = 5
"""How many connections stay open while they are idle."""
_AT_A_TIME: Final = 20
"""How many calls of a process the database serves at a time; others wait, as long as their own time lets them."""
_RECYCLED_S: Final = 300
"""After how many seconds a connection is made anew."""
_UNDEFINED_TABLE: Final = "42P01"

_inherited: Final[list[Any]] = []
"""What a fork brought along. It is the parent's, and must not even be collected as garbage: that would close it."""


class Database:
    """Runs transactions. Threads share it; a forked process makes its own connections.

    Args:
        settings: The bridge's.
        url: `sqlite:///...` or `postgresql://...`.
        is_light: Whether PostgreSQL need not have flushed a transaction before it counts: it then survives the writer's
            end, but perhaps not the server's crash.

    Raises:
        SettingsError: The URL can't be read.
    """

    def __init__(self, settings: Settings, url: str, *, is_light: bool = False) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as exc:
            raise SettingsError("store", f"{without_credentials(url)} can't be read") from exc
        self.is_sqlite: bool = parsed.get_backend_name() == "sqlite"
        self.url: URL = parsed.set(drivername="sqlite+pysqlite" if self.is_sqlite else "postgresql+psycopg")
        self.namespace: str = settings.namespace
        self._is_light = is_light
        self._lock = locks.Lock()
        self._process: _Process | None = None

    @contextmanager
    def reading(self, *, timeout_s: float) -> Generator[Connection]:
        """Give a connection for single statements.

        Raises:
            BrokerUnavailable: The database doesn't answer, or refuses.
            StoreNotReady: Its tables are not there, or of another version.
        """
        with self._within(timeout_s) as process, process.engine.connect() as connection:
            yield process.for_reading(connection)

    @contextmanager
    def single(self, *, timeout_s: float) -> Generator[Connection]:
        """Give a connection for one statement that writes, which on PostgreSQL is then one round trip.

        Raises:
            BrokerUnavailable: As for `writing`.
        """
        if self.is_sqlite:
            with self.writing(timeout_s=timeout_s) as connection:
                yield connection
            return
        with self._within(timeout_s) as process, process.engine.connect() as connection:
            yield process.for_reading(connection)

    @contextmanager
    def writing(self, *, timeout_s: float) -> Generator[Connection]:
        """Give a connection in a transaction, which is committed at the end. On SQLite there is one at a time.

        Raises:
            BrokerUnavailable: As for `reading`; then nothing was written, unless it was the commit that failed.
        """
        deadline = time.monotonic() + timeout_s
        with self._within(timeout_s) as process:
            if not self.is_sqlite:
                with process.engine.begin() as connection:
                    yield connection
                return
            # Threads wait for each other here, in order: SQLite's own waiting is by sleeping, and unfair.
            if not process.writes.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise BrokerUnavailable("the store is busy")
            try:
                with process.engine.begin() as connection:
                    yield connection
            finally:
                process.writes.release()

    def make_tables(self, *, timeout_s: float) -> tuple[int, int]:
        """Make the tables, or bring them up to date; return the versions before and after."""
        with self._within(timeout_s, is_checked=False) as process:
            return schema.make(process.engine)

    def insert(self, table: Any) -> Any:
        """Return an INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def now(self) -> ColumnElement[float]:
        """Return the time, by the clock that all processes share."""
        if self.is_sqlite:
            return literal(time.time())
        return func.date_part("epoch", func.clock_timestamp())

    def connect(self, *, timeout_s: float) -> Any:
        """Return a connection of the driver's own, outside of everything else, that the caller closes."""
        if self.is_sqlite:
            return _sqlite(self.url, timeout_s)
        return self._mine().new_psycopg(timeout_s)

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        if process.pid == os.getpid():
            process.close()
        else:
            _inherited.append(process)

    @contextmanager
    def _within(self, timeout_s: float, *, is_checked: bool = True) -> Generator[_Process]:
        process = self._mine()
        process.call.deadline = time.monotonic() + timeout_s
        if not process.turns.acquire(timeout=max(0.0, timeout_s)):
            raise BrokerUnavailable("the store is busy: too many calls at once")
        try:
            if is_checked:
                process.check()
            yield process
        except BrokerUnavailable:  # which is an OSError too
            raise
        except (DBAPIError, SQLAlchemyError, OSError, sqlite3.Error) as exc:
            raise self._error(process, exc, is_checked=is_checked) from exc
        finally:
            process.deadlines.remove_mine()
            process.turns.release()

    def _error(self, process: _Process, exc: Exception, *, is_checked: bool) -> BrokerUnavailable:
        original: Any = getattr(exc, "orig", None) or exc
        text = str(original).strip().partition("\n")[0] or type(original).__name__
        is_missing = getattr(original, "sqlstate", None) == _UNDEFINED_TABLE or text.startswith("no such table")
        if is_missing and is_checked:
            process.is_ready = False
            return StoreNotReady("the store's tables are gone", url=schema.shown(process.engine))
        if time.monotonic() >= process.call.deadline:
            text = "no answer in time"
        return BrokerUnavailable(f"the store does not answer: {text}")

    def _mine(self) -> _Process:
        mine = self._process
        if mine is not None and mine.pid == os.getpid():
            return mine
        with self._lock:
            if self._process is not None and self._process.pid != os.getpid():
                _inherited.append(self._process)
                self._process = None
            if self._process is None:
                self._process = _Process(self.url, self.is_sqlite, self._is_light)
            return self._process


class _Call(locks.Local):
    """Of this thread: by when the current call has to end, by the monotonic clock."""

    deadline: float = 0.0


class _Process:
    """The connections of one process."""

    def __init__(self, url: URL, is_sqlite: bool, is_light: bool) -> None:
        self.pid = os.getpid()
        self.call = _Call()
        self.deadlines = Deadlines()
        self.turns = locks.Semaphore(_AT_A_TIME)
        self.writes = locks.Lock()
        self.is_ready = False
        self._is_sqlite = is_sqlite
        self._url = url
        self._is_light = is_light
        self.engine: Engine = create_engine(
            url,
            creator=self._connected,
            poolclass=QueuePool,
            pool_size=_KEPT_OPEN,
            max_overflow=-1,
            pool_recycle=_RECYCLED_S,
        )
        if is_sqlite:
            event.listen(self.engine, "begin", _begin)
        event.listen(self.engine, "checkout", self._taken)

    def check(self) -> None:
        """Return if the tables are there, the first time; SQLite's are made."""
        if self.is_ready:
            return
        with self.engine.connect() as connection:
            found = schema.version_of(self.for_reading(connection))
        if found == 0 and self._is_sqlite:
            schema.make(self.engine)
        elif found != schema.VERSION:
            with self.engine.connect() as connection:
                schema.check(self.engine, connection)
        self.is_ready = True

    def close(self) -> None:
        self.engine.dispose()
        self.deadlines.close()

    def for_reading(self, connection: Connection) -> Connection:
        """Return a connection whose statements are each for itself."""
        if self._is_sqlite:
            return connection.execution_options(taskbridge_reads=True)
        return connection.execution_options(isolation_level="AUTOCOMMIT")

    def new_psycopg(self, timeout_s: float) -> Any:
        """Return a new connection of psycopg's own."""
        import psycopg  # here, for SQLite needs none

        words, options = self.engine.dialect.create_connect_args(self._url)
        options["application_name"] = "taskbridge"
        options["prepare_threshold"] = None  # a pooler between may give every transaction another connection
        if self._is_light:
            options["options"] = f"{options.get('options', '')} -c synchronous_commit=off".strip()
        make: Any = partial(psycopg.connect, *words, **options)
        return InTime(make, _close).wait(timeout_s)

    def _left_s(self) -> float:
        return max(0.0, self.call.deadline - time.monotonic())

    def _connected(self) -> Any:
        if self._is_sqlite:
            return _sqlite(self._url, self._left_s())
        connection = self.new_psycopg(self._left_s())
        self.deadlines.add(connection.pgconn.socket, self.call.deadline)
        return connection

    def _taken(self, connection: Any, record: Any, proxy: Any) -> None:
        """Note by when a connection's call has to end; give one back that the server has closed meanwhile."""
        if self._is_sqlite:
            connection.execute(f"PRAGMA busy_timeout = {max(1, round(self._left_s() * 1000))}")
            return
        if connection.closed or _has_news(connection.pgconn.socket):
            raise InvalidatePoolError("an idle connection with something to read is closed")
        self.deadlines.add(connection.pgconn.socket, self.call.deadline)


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("taskbridge_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")  # else a writer fails that has read before


def _sqlite(url: URL, timeout_s: float) -> sqlite3.Connection:
    place = url.database or ""
    connection = sqlite3.connect(place, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection, time.monotonic() + timeout_s)
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


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


def _close(connection: Any) -> None:
    connection.close()


def _has_news(descriptor: int) -> bool:
    poll = selecting.poll()
    poll.register(descriptor, selecting.POLLIN)
    return bool(poll.poll(0))
