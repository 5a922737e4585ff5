"""Makes the tables, and brings those of an earlier release up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Engine, inspect, select, text

from taskbridge.exceptions import StoreNotReady
from taskbridge.stores.sql.tables import METADATA, SCHEMA

MIGRATIONS: Final[Sequence[Sequence[str]]] = tuple[tuple[str, ...], ...]()
"""The statements that make each version of the schema of the one before, from version 2 on.

One that was released is never changed. A release reads and writes tables of its own version only, so a new version
takes an `init` before its workers start.
"""

VERSION: Final = 1 + len(MIGRATIONS)
"""The version that this release works with, which is what `taskbridge.stores.sql.tables` describes."""

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
