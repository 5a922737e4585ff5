"""The connections of this process to one database: SQLite or PostgreSQL. Each call ends in time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from sqlalchemy import URL, Connection, Double, Engine, create_engine, event, func, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import ColumnElement

from taskbridge.exceptions import BrokerUnavailable, SettingsError, StoreNotReady
from taskbridge.locks import Local, Lock, Semaphore
from taskbridge.settings import Settings, without_credentials
from taskbridge.stores.process import PerProcess
from taskbridge.stores.sql import schema
from taskbridge.stores.sql.sqlite import SqliteDriver

_KEPT_OPEN: Final = 5
"""How many connections stay open while they are idle."""
_AT_A_TIME: Final = 20
"""How many calls of a process the database serves at a time; others wait, as long as their own time lets them."""
_RECYCLED_S: Final = 300
"""After how many seconds a connection is made anew."""
_UNDEFINED_TABLE: Final = "42P01"

_SQLITE_NOW: Final[ColumnElement[float]] = (func.julianday("now", type_=Double) - 2440587.5) * 86400.0
_POSTGRESQL_NOW: Final[ColumnElement[float]] = func.date_part("epoch", func.clock_timestamp(), type_=Double)
"""The time, in seconds since the epoch, by the clock that all processes share."""


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
        self._driver: _Driver = SqliteDriver(self.url) if self.is_sqlite else _postgres(self.url, is_light)
        self.now: ColumnElement[float] = _SQLITE_NOW if self.is_sqlite else _POSTGRESQL_NOW
        self._mine = PerProcess(lambda: _Process(self.url, self._driver, is_sqlite=self.is_sqlite))

    @contextmanager
    def single(self, *, timeout_s: float, reads: bool = False) -> Generator[Connection]:
        """Give a connection for single statements, each of which is one round trip on PostgreSQL.

        Args:
            timeout_s: How long the block may take.
            reads: Whether they only read, which on SQLite need not wait for whoever writes.

        Raises:
            BrokerUnavailable: The database doesn't answer, or refuses.
            StoreNotReady: Its tables are not there, or of another version.
        """
        if self.is_sqlite and not reads:
            with self.writing(timeout_s=timeout_s) as connection:
                yield connection
            return
        with self._within(timeout_s) as process, process.engine.connect() as connection:
            yield self._driver.for_reading(connection)

    @contextmanager
    def writing(self, *, timeout_s: float) -> Generator[Connection]:
        """Give a connection in a transaction, which is committed at the end. On SQLite there is one at a time.

        Raises:
            BrokerUnavailable: As for `single`; then nothing was written, unless it was the commit that failed.
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

    def connect(self, *, timeout_s: float) -> Any:
        """Return a connection of the driver's own, outside of everything else, that the caller closes."""
        self._mine.get()
        return self._driver.connect(time.monotonic() + timeout_s)

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        process = self._mine.take()
        if process is not None:
            process.engine.dispose()

    @contextmanager
    def _within(self, timeout_s: float, *, is_checked: bool = True) -> Generator[_Process]:
        process = self._mine.get()
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


def _postgres(url: URL, is_light: bool) -> _Driver:
    from taskbridge.stores.sql.postgresql import PostgresDriver  # here, for SQLite needs no psycopg

    return PostgresDriver(url, is_light=is_light)


class _Call(Local):
    """Of this thread: by when the current call has to end, by the monotonic clock."""

    deadline: float = 0.0


class _Driver(Protocol):
    """What is one kind of database's own."""

    def prepare(self, engine: Engine) -> None: ...

    def connect(self, deadline: float) -> Any: ...

    def lend(self, connection: Any, deadline: float) -> bool: ...

    def for_reading(self, connection: Connection) -> Connection: ...


class _Process:
    """The connections of one process."""

    def __init__(self, url: URL, driver: _Driver, *, is_sqlite: bool) -> None:
        self.call = _Call()
        self.turns = Semaphore(_AT_A_TIME)
        self.writes = Lock()
        self.is_ready = False
        self._is_sqlite = is_sqlite
        self._driver = driver
        self.engine: Engine = create_engine(
            url,
            creator=lambda: driver.connect(self.call.deadline),
            poolclass=QueuePool,
            pool_size=_KEPT_OPEN,
            max_overflow=-1,
            pool_recycle=_RECYCLED_S,
        )
        driver.prepare(self.engine)
        event.listen(self.engine, "checkout", self._taken)

    def check(self) -> None:
        """Return if the tables are there, the first time; SQLite's are made."""
        if self.is_ready:
            return
        with self.engine.connect() as connection:
            found = schema.version_of(self._driver.for_reading(connection))
        if found == 0 and self._is_sqlite:
            schema.make(self.engine)
        else:
            schema.check(self.engine, found)
        self.is_ready = True

    def _taken(self, connection: Any, record: Any, proxy: Any) -> None:
        if not self._driver.lend(connection, self.call.deadline):
            raise InvalidatePoolError("an idle connection with something to read is closed")
