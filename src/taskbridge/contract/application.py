"""An application's own database, with an outbox: what `commit="outbox"` sends is a row in a transaction of it.

It is a file that all processes of an environment share. An application of its own would use Django's or SQLAlchemy's
database; those who run the contract need have neither.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from taskbridge import Bridge

T = TypeVar("T")

_FILE: Final = "application.db"
_BUSY_S: Final = 30.0  # for how long another process may hold the file
_TABLE: Final = "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, text TEXT, leased_until REAL DEFAULT 0)"
_INSERT: Final = "INSERT INTO outbox (text) VALUES (?)"

_open: Final[ContextVar[tuple[sqlite3.Connection, list[Callable[[], object]]] | None]] = ContextVar(
    "contract_transaction", default=None
)
"""The caller's transaction, and what is done when it is committed."""


class Application:
    """An application, as its bridge knows it: `Bridge.transactions`, and their outbox. Threads share it.

    Args:
        bridge: The bridge.
        folder: Where its database is.
    """

    may_hold: bool = True

    def __init__(self, bridge: Bridge, folder: Path) -> None:
        self.outbox: Application = self
        self._bridge = bridge
        self._path = folder / _FILE
        self._run(_TABLE)
        bridge.transactions = self

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Enter with a transaction, of which sends are a part; an error rolls it back."""
        committed: list[Callable[[], object]] = []
        with closing(self._connection()) as connection:
            token = _open.set((connection, committed))
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    yield
            finally:
                _open.reset(token)
        for act in committed:
            act()

    def texts(self) -> list[str]:
        """Return what the outbox holds, in the caller's transaction if there is one."""
        return [text for (text,) in self._run("SELECT text FROM outbox ORDER BY id")]

    # For sends

    def open_on(self, databases: Sequence[str]) -> Sequence[str]:
        """Return these databases, which all mean this one, if a transaction is open."""
        return () if _open.get() is None else databases[:1]

    def hold(self, database: str, held: Sequence[T], publish: Callable[[Sequence[T]], None]) -> None:
        """Call `publish` with what is held when the transaction is committed."""
        self._then(partial(publish, held))

    def put(self, texts: Sequence[str], then: Callable[[], object] | None = None) -> None:
        """Put entries into the outbox, and call `then` when they are committed."""
        for text in texts:
            self._run(_INSERT, text)
        if then is not None:
            self._then(then)

    async def aside(self, act: Callable[[], T]) -> T:
        """Return what an act returns, done in a thread, which has the caller's transaction."""
        return await asyncio.to_thread(act)

    def _then(self, act: Callable[[], object]) -> None:
        if (found := _open.get()) is None:
            act()
        else:
            found[1].append(act)

    # For workers

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        """Return ids and texts of entries that were due, and are leased to the caller now."""
        now = self._bridge.now()
        is_due = "leased_until <= ?"
        due = self._run(f"SELECT id, text FROM outbox WHERE {is_due} ORDER BY leased_until, id LIMIT ?", now, most)
        lease = f"UPDATE outbox SET leased_until = ? WHERE id = ? AND {is_due} RETURNING id"
        return [(str(key), text) for key, text in due if self._run(lease, now + lease_s, key, now)]

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Delete entries."""
        for each in ids:
            self._run("DELETE FROM outbox WHERE id = ?", each)

    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Have entries be due at once."""
        for each in ids:
            self._run("UPDATE outbox SET leased_until = 0 WHERE id = ?", each)

    def leave(self) -> None:
        """Do nothing: no connection is kept."""

    def _run(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of a statement, in the caller's transaction if there is one, else in one of its own."""
        if (found := _open.get()) is not None:
            return found[0].execute(sql, values).fetchall()
        with closing(self._connection()) as connection:
            return connection.execute(sql, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
