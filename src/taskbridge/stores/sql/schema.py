"""The tables, and how they are made and brought up to date.

Times are in seconds since the epoch; `until`, when a row may be forgotten, is by the database's clock. Every row
belongs to a namespace, so that bridges share a database.

| table | a row for |
|---|---|
| `taskbridge_text` | each text: its first line (`head`), the others (`rest`), and whether the last write tells of it |
| `taskbridge_cancelled` | each cancellation, by a number that grows in the order in which they are committed |
| `taskbridge_outbox` | each entry of the outbox, by its message's id: its text, and when it is due (since version 2) |
| `taskbridge_listing` | each message that is listed: its state, and the queue in which it waits (since version 3) |
| `taskbridge_member` | each member of a group that has ended, how, and what is kept of that (since version 4) |
| `taskbridge_group` | each sixteenth of a group, with its counts, and each group (`shard` -1; since version 4) |
| `taskbridge_schema` | there is one: the version of the schema |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskbridge.exceptions import StoreNotReady

Run = Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]
"""Carries a statement out, in which `:name` stands for a value, and returns its rows."""

MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        "CREATE TABLE taskbridge_schema (version INTEGER NOT NULL)",
        """CREATE TABLE taskbridge_text (
            namespace TEXT NOT NULL, key TEXT NOT NULL, head TEXT NOT NULL, rest TEXT NOT NULL, told BOOLEAN NOT NULL,
            until DOUBLE PRECISION, PRIMARY KEY (namespace, key))""",
        "CREATE INDEX taskbridge_text_until ON taskbridge_text (until)",
        """CREATE TABLE taskbridge_cancelled (
            namespace TEXT NOT NULL, number BIGINT NOT NULL, life TEXT NOT NULL, until DOUBLE PRECISION,
            PRIMARY KEY (namespace, number))""",
    ),
    (
        """CREATE TABLE taskbridge_outbox (
            namespace TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, due_at DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (namespace, id))""",
        "CREATE INDEX taskbridge_outbox_due ON taskbridge_outbox (namespace, due_at)",
    ),
    (
        """CREATE TABLE taskbridge_listing (
            namespace TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, queue TEXT, at DOUBLE PRECISION NOT NULL,
            until DOUBLE PRECISION, PRIMARY KEY (namespace, id))""",
        "CREATE INDEX taskbridge_listing_state ON taskbridge_listing (namespace, state, at, id)",
        "CREATE INDEX taskbridge_listing_queue ON taskbridge_listing (namespace, queue, at, id)",
        "CREATE INDEX taskbridge_listing_until ON taskbridge_listing (until)",
    ),
    (
        """CREATE TABLE taskbridge_member (
            namespace TEXT NOT NULL, key TEXT NOT NULL, number BIGINT NOT NULL, ended TEXT NOT NULL, text TEXT,
            PRIMARY KEY (namespace, key, number))""",
        """CREATE TABLE taskbridge_group (
            namespace TEXT NOT NULL, key TEXT NOT NULL, shard INTEGER NOT NULL, done BIGINT NOT NULL,
            dead BIGINT NOT NULL, discarded BIGINT NOT NULL, cancelled BIGINT NOT NULL, sent BIGINT NOT NULL,
            until DOUBLE PRECISION,
            PRIMARY KEY (namespace, key, shard))""",
        "CREATE INDEX taskbridge_group_until ON taskbridge_group (until) WHERE until IS NOT NULL",
    ),
)
"""The statements that make each version of the schema of the one before; the first is made of nothing.

One that was released is never changed. A release reads and writes tables of its own version only, so a new version
takes an `init` before its workers start.
"""

VERSION: Final = len(MIGRATIONS)
"""The version that this release works with."""

TABLES: Final = (
    *("taskbridge_text", "taskbridge_cancelled", "taskbridge_outbox", "taskbridge_listing"),
    *("taskbridge_member", "taskbridge_group"),
)
"""Those whose rows belong to a namespace."""


def make(run: Run, finds_schema: str, url: str) -> tuple[int, int]:
    """Make the tables, or bring them up to date, and return the versions before and after.

    It is in a transaction that nobody else makes tables beside. `finds_schema` is a statement that returns a row if
    there are tables. Raises `StoreNotReady` if a later release has made them.
    """
    before = version_of(run, finds_schema)
    if before > VERSION:
        check(before, url)
    if before < VERSION:
        for statements in MIGRATIONS[before:]:
            for statement in statements:
                run(statement, {})
        run("DELETE FROM taskbridge_schema", {})
        run("INSERT INTO taskbridge_schema (version) VALUES (:version)", {"version": VERSION})
    return before, VERSION


def version_of(run: Run, finds_schema: str) -> int:
    """Return the version of the schema; 0 if there is none."""
    if not run(finds_schema, {}):
        return 0
    found = run("SELECT version FROM taskbridge_schema", {})
    version: int = found[0][0] if found else 0
    return version


def check(found: int, url: str) -> None:
    """Return if a version of the schema is this release's, else raise `StoreNotReady`, which says what to do."""
    if found == VERSION:
        return
    problem = f"the store's tables have version {found}, not {VERSION}"
    if found == 0:
        problem = "the store has no tables yet"
    elif found > VERSION:
        problem = (
            f"the store's tables have version {found}, and this release knows {VERSION}; update taskbridge, and then"
        )
    raise StoreNotReady(problem, url=url)
