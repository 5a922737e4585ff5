"""The tables, and how they are made and brought up to date.

Times are in seconds since the epoch; `until`, when a row may be forgotten, is by the database's clock. Every row
belongs to a namespace, so that bridges share a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    select,
    text,
)

from taskbridge.exceptions import StoreNotReady

METADATA: Final = MetaData(naming_convention={"ix": "%(table_name)s_%(column_0_name)s"})

SCHEMA: Final = Table("taskbridge_schema", METADATA, Column("version", Integer, primary_key=True, autoincrement=False))
"""One row: the version of the schema."""

RECORDS: Final = Table(
    "taskbridge_record",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("enqueued_at", Double, nullable=False),
    Column("due_at", Double),
    Column("ended_at", Double),
    Column("result", Text),
    Column("version", Integer, nullable=False),
    Column("rest", Text, nullable=False),
    Column("until", Double, index=True),
)
"""A row for each record; `result` is what the task returned, in the codec's form, and `rest` all else, as JSON."""

CANCELLED: Final = Table(
    "taskbridge_cancelled",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("life", Text, nullable=False),
    Column("until", Double),
)
"""A row for each cancellation, by a number that grows in the order in which they are committed."""

TEXTS: Final = Table(
    "taskbridge_text",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("until", Double, index=True),
)
"""A row for each attempt mark, each living worker and each schedule."""

TABLES: Final = tuple(METADATA.sorted_tables)
"""All of them."""

MIGRATIONS: Final[Sequence[Sequence[str]]] = tuple[tuple[str, ...], ...]()
"""The statements that make each version of the schema of the one before, from version 2 on.

One that was released is never changed. A release reads and writes tables of its own version only, so a new version
takes an `init` before its workers start.
"""

VERSION: Final = 1 + len(MIGRATIONS)
"""The version that this release works with: that of the tables above."""

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
            METADATA.create_all(connection, checkfirst=False)
        for statements in MIGRATIONS[before - 1 :] if before else ():
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


def check(engine: Engine, found: int) -> None:
    """Return if the schema is this release's.

    Args:
        engine: The database.
        found: The version of its schema.

    Raises:
        StoreNotReady: It is not; the text says what to do.
    """
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
