"""Makes the tables, and brings those of an earlier release up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Engine, inspect, select, text

from taskbridge.exceptions import StoreNotReady
from taskbridge.stores.sql.tables import SCHEMA

_FIRST: Final = (
    """
    CREATE TABLE taskbridge_record (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        task TEXT NOT NULL,
        queue TEXT NOT NULL,
        state TEXT NOT NULL,
        enqueued_at DOUBLE PRECISION NOT NULL,
        due_at DOUBLE PRECISION,
        ended_at DOUBLE PRECISION,
        result TEXT,
        rest TEXT NOT NULL,
        until DOUBLE PRECISION,
        PRIMARY KEY (namespace, id)
    )
    """,
    "CREATE INDEX taskbridge_record_until ON taskbridge_record (until)",
    """
    CREATE TABLE taskbridge_cancelled (
        namespace TEXT NOT NULL,
        number BIGINT NOT NULL,
        life TEXT NOT NULL,
        until DOUBLE PRECISION,
        PRIMARY KEY (namespace, number)
    )
    """,
    """
    CREATE TABLE taskbridge_mark (
        namespace TEXT NOT NULL,
        life TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        owner TEXT NOT NULL,
        until DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (namespace, life, attempt)
    )
    """,
    "CREATE INDEX taskbridge_mark_until ON taskbridge_mark (until)",
    """
    CREATE TABLE taskbridge_worker (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        until DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (namespace, name)
    )
    """,
    """
    CREATE TABLE taskbridge_schedule (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        settled_until DOUBLE PRECISION NOT NULL,
        paused INTEGER NOT NULL,
        last_id TEXT NOT NULL,
        last_planned_at DOUBLE PRECISION,
        missed INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    )
    """,
    """
    CREATE TABLE taskbridge_tick (
        namespace TEXT NOT NULL,
        schedule TEXT NOT NULL,
        planned_at DOUBLE PRECISION NOT NULL,
        claimant TEXT NOT NULL,
        until DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (namespace, schedule, planned_at)
    )
    """,
)

MIGRATIONS: Final[Sequence[Sequence[str]]] = (_FIRST,)
"""The statements that make each version of the schema of the one before; the first makes it of nothing.

One that was released is never changed. A release reads and writes tables of its own version only, so a new version
takes an `init` before its workers start.
"""

VERSION: Final = len(MIGRATIONS)
"""The version that this release works with."""

_LOCK: Final = 0x7461736B62726467  # "taskbrdg"
"""The key of PostgreSQL's advisory lock under which the schema is made."""


def make(engine: Engine) -> tuple[int, int]:
    """Make the tables, or bring them up to date, in one transaction; return the versions before and after.

    Several processes may do so at once: one does it, and the others find it done.

    Raises:
        StoreNotReady: A later release has made them.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        before = version_of(connection)
        _check_not_later(engine, before)
        if before == VERSION:
            return before, before
        if before == 0:
            connection.execute(text("CREATE TABLE taskbridge_schema (version INTEGER NOT NULL PRIMARY KEY)"))
        for statements in MIGRATIONS[before:]:
            for statement in statements:
                connection.execute(text(statement))
        connection.execute(SCHEMA.delete())
        connection.execute(SCHEMA.insert().values(version=VERSION))
        return before, VERSION


def version_of(connection: Connection) -> int:
    """Return the version of the schema; 0 if there is none."""
    if not inspect(connection).has_table(SCHEMA.name):
        return 0
    return connection.execute(select(SCHEMA.c.version)).scalar() or 0


def check(engine: Engine, connection: Connection) -> None:
    """Return if the schema is this release's.

    Raises:
        StoreNotReady: It is not; the text says what to do.
    """
    found = version_of(connection)
    _check_not_later(engine, found)
    if found == 0:
        raise StoreNotReady("the store has no tables yet", url=shown(engine))
    if found < VERSION:
        raise StoreNotReady(f"the store's tables have version {found}, not {VERSION}", url=shown(engine))


def shown(engine: Engine) -> str:
    """Return the URL of a database without anything secret."""
    return engine.url.set(drivername=engine.dialect.name, query={}).render_as_string(hide_password=True)


def _check_not_later(engine: Engine, found: int) -> None:
    if found > VERSION:
        raise StoreNotReady(
            f"the store's tables have version {found}, and this release knows {VERSION}; update taskbridge, and then",
            url=shown(engine),
        )
