"""The tables, as statements name them and as `taskbridge.stores.sql.schema` makes them.

Times are in seconds since the epoch. `until` is when a row may be forgotten; nothing is kept for ever where it is set.
Every row belongs to a namespace, so that bridges share a database.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text

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

MARKS: Final = Table(
    "taskbridge_mark",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("life", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("until", Double, nullable=False, index=True),
)
"""A row for each attempt that was started: the worker's name, or `ended`."""

WORKERS: Final = Table(
    "taskbridge_worker",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("until", Double, nullable=False),
)
"""A row for each worker process: until when it counts as alive, by the database's clock."""

SCHEDULES: Final = Table(
    "taskbridge_schedule",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("settled_until", Double, nullable=False),
    Column("paused", Integer, nullable=False),
    Column("last_id", Text, nullable=False),
    Column("last_planned_at", Double),
    Column("missed", Integer, nullable=False),
)
"""A row for each schedule."""

TICKS: Final = Table(
    "taskbridge_tick",
    METADATA,
    Column("namespace", Text, primary_key=True),
    Column("schedule", Text, primary_key=True),
    Column("planned_at", Double, primary_key=True),
    Column("claimant", Text, nullable=False),
    Column("until", Double, nullable=False),
)
"""A row for each tick that is claimed and not settled; `until` is when the claim ends, by the claimants' clock."""

TABLES: Final = tuple(METADATA.sorted_tables)
"""All of them."""
