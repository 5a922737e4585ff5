"""The connections of this process to one database, and what SQLite and PostgreSQL differ in. Each call ends in time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, ClassVar, Final

from taskbridge.exceptions import BrokerUnavailable, StoreNotReady, StoreUnavailable
from taskbridge.locks import PerProcess
from taskbridge.settings import Settings, without_credentials
from taskbridge.stores.notifications import Notifications
from taskbridge.stores.sql import schema
from taskbridge.stores.sql.schema import Run

_KEPT_OPEN: Final = 5  # how many connections stay open while they are idle
_AT_A_TIME: Final = 20
"""How many calls of a process the database serves at a time; others wait, as long as their own time lets them."""
_RECYCLED_S: Final = 300.0  # after how many seconds a connection is made anew

Values = Mapping[str, Any]


class Transaction:
    """Carries statements out in a transaction: called with one and its values, it returns the rows.

    Args:
        run: What does that.
        run_all: What `all` does.
    """

    def __init__(self, run: Run, run_all: Callable[[str, Sequence[Values]], int]) -> None:
        self._run = run
        self._run_all = run_all

    def __call__(self, statement: str, values: Values) -> list[tuple[Any, ...]]:
        """Carry one statement out, and return its rows."""
        return self._run(statement, values)

    def all(self, statement: str, values: Sequence[Values]) -> int:
        """Carry one that returns no rows out for each of several values, and return how many rows that changed."""
        return self._run_all(statement, values)


class Database(ABC):
    """Carries statements out. Threads share it; a forked process makes its own connections.

    Attributes:
        namespace: The bridge's.
        shown: The URL, without anything secret.
        errors: What the client library, or the system, raises.
        begin: The statement that begins a transaction.
        now: The time in seconds since the epoch, by the clock that all processes share; an expression.
        among: What stands after a column that is to be one of `:keys`; their value is made by `keys`.
        light: An expression. Where it is returned by a write, that survives the writer's end, but perhaps not the
            server's crash: it need not wait for the disk.
        notify: An expression that, where it is returned by a write that `:tells`, wakes who watches `:key`.
        skip_locked: What has a SELECT leave out rows that others are about to change.
        finds_schema: A statement that returns a row if there are tables.
        makes_tables: Whether tables are made when the database is first used.
        one_writes: Whether one transaction writes at a time, even of different rows.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    begin: ClassVar[str] = "BEGIN"
    now: ClassVar[str]
    among: ClassVar[str]
    light: ClassVar[str]
    notify: ClassVar[str]
    skip_locked: ClassVar[str]
    finds_schema: ClassVar[str]
    makes_tables: ClassVar[bool]
    one_writes: ClassVar[bool]

    def __init__(self, settings: Settings, url: str) -> None:
        self.namespace: str = settings.namespace
        self.shown: str = without_credentials(url)
        self._timeout_s = settings.send_timeout_s
        self._mine = PerProcess(lambda: _Connections(one_writes=self.one_writes))

    def run(self, statement: str, values: Values, *, timeout_s: float) -> list[tuple[Any, ...]]:
        """Carry one statement out, in one round trip, and return its rows.

        Raises `BrokerUnavailable`, or `StoreNotReady` if the tables are not there, or of another version.
        """
        with self._lent(timeout_s, reads=statement.startswith("SELECT")) as connection:
            return self._carry_out(connection, statement, values)

    @contextmanager
    def transaction(self, *, timeout_s: float) -> Generator[Transaction]:
        """Give what carries statements out in a transaction, which is committed at the end.

        If that raises as `run` does, nothing was written, unless it was the commit that failed.
        """
        with self._lent(timeout_s) as connection, self._transaction(connection) as run:
            yield run

    def run_all(self, statement: str, values: Sequence[Values], *, timeout_s: float) -> None:
        """Carry one statement out for each of several values, in one transaction, and in one round trip for one."""
        if len(values) == 1:
            self.run(statement, values[0], timeout_s=timeout_s)
            return
        with self.transaction(timeout_s=timeout_s) as run:
            run.all(statement, values)

    def make_tables(self, *, timeout_s: float) -> tuple[int, int]:
        """Make the tables, or bring them up to date; return the versions before and after."""
        with self._lent(timeout_s, is_checked=False) as connection, self._transaction(connection) as run:
            self.lock(run, "schema")
            return schema.make(run, self.finds_schema, self.shown)

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        self._mine.close()

    # What each kind does in its own way

    @abstractmethod
    def connect(self, deadline: float) -> Any:
        """Return a new connection, whose statements are each a transaction by itself; the deadline is monotonic."""

    @abstractmethod
    def lend(self, connection: Any, deadline: float) -> bool:
        """Have calls on a connection end in time; return False if it can't be used any more."""

    @abstractmethod
    def is_missing_table(self, error: Exception) -> bool:
        """Return whether an error says that there is no such table."""

    def written(self, statement: str) -> str:
        """Return a statement as the client library takes it."""
        return statement

    @abstractmethod
    def keys(self, keys: Sequence[str]) -> Any:
        """Return the value of `:keys`."""

    def lock(self, run: Run, name: str) -> None:  # noqa: B027 - where one transaction writes at a time, this is done
        """Let one transaction at a time go on from here, of all in this database that ask for the same lock."""

    @abstractmethod
    def notifications(self) -> Notifications:
        """Return what wakes this process's watchers."""

    # Connections

    @contextmanager
    def _lent(self, timeout_s: float, *, reads: bool = False, is_checked: bool = True) -> Generator[Any]:
        mine, deadline = self._mine.get(), monotonic() + timeout_s
        turns = mine.reads if reads else mine.writes
        connection: Any = None
        try:
            turns.get(timeout=max(0.0, timeout_s))
        except Empty:
            raise StoreUnavailable("too many calls at once") from None
        try:
            connection, made_at = self._taken(mine, deadline)
            if is_checked and not mine.is_checked:
                self._check(connection)
                mine.is_checked = True
            yield connection
            if len(mine.idle) < mine.most_idle:
                mine.idle.append((connection, made_at))
                connection = None
        except BrokerUnavailable:  # which is an OSError too
            raise
        except self.errors as exc:
            if is_checked and self.is_missing_table(exc):
                mine.is_checked = False
                raise StoreNotReady("the store's tables are gone", url=self.shown) from exc
            text = str(exc).strip().partition("\n")[0] or type(exc).__name__
            problem = "no answer in time" if monotonic() >= deadline else text
            raise StoreUnavailable(problem) from exc
        finally:
            turns.put(None)
            if connection is not None:  # there are enough, or it is in the middle of something
                with suppress(Exception):
                    connection.close()

    def _taken(self, mine: _Connections, deadline: float) -> tuple[Any, float]:
        """Return the connection that was used last, or a new one, and when it was made."""
        with suppress(IndexError):
            while True:
                connection, made_at = mine.idle.pop()
                if monotonic() - made_at < _RECYCLED_S and self.lend(connection, deadline):
                    return connection, made_at
                connection.close()
        return self.connect(deadline), monotonic()

    def _check(self, connection: Any) -> None:
        """Return if the tables are there, or make them."""
        found = schema.version_of(partial(self._carry_out, connection), self.finds_schema)
        if found == 0 and self.makes_tables:
            with self._transaction(connection) as run:
                schema.make(run, self.finds_schema, self.shown)
        else:
            schema.check(found, self.shown)

    @contextmanager
    def _transaction(self, connection: Any) -> Generator[Transaction]:
        connection.execute(self.begin)
        yield Transaction(partial(self._carry_out, connection), partial(self._carry_out_all, connection))
        connection.execute("COMMIT")  # a connection on which anything has failed is closed

    def _carry_out(self, connection: Any, statement: str, values: Values) -> list[tuple[Any, ...]]:
        cursor = connection.execute(self.written(statement), values)
        rows: list[tuple[Any, ...]] = [] if cursor.description is None else cursor.fetchall()
        return rows

    def _carry_out_all(self, connection: Any, statement: str, values: Sequence[Values]) -> int:
        cursor = connection.cursor()
        cursor.executemany(self.written(statement), values)
        changed: int = cursor.rowcount
        return changed


def _turns(count: int) -> SimpleQueue[None]:
    """Return so many turns, to be taken and given back: in C, so that no time limit strikes in the middle of that."""
    turns: SimpleQueue[None] = SimpleQueue()
    for _ in range(count):
        turns.put(None)
    return turns


class _Connections:
    """The connections of one process: a few are kept while they are idle, each with when it was made."""

    def __init__(self, *, one_writes: bool) -> None:
        self.is_checked = False
        self.reads = _turns(_AT_A_TIME)
        self.writes = _turns(1) if one_writes else self.reads
        self.idle: deque[tuple[Any, float]] = deque()
        self.most_idle = _KEPT_OPEN

    def close(self) -> None:
        """Close those that are idle, and the others as they are given back."""
        self.most_idle = 0
        with suppress(IndexError):
            while True:
                self.idle.pop()[0].close()
