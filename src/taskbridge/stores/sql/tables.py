"""The tables, as statements name them; `taskbridge.stores.sql.schema` makes them.

Times are in seconds since the epoch. `until` is when a row may be forgotten; nothing is kept for ever where it is set.
Every row belongs to a namespace, so that bridges share a database.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text

_metadata: Final = MetaData()

SCHEMA: Final = Table("taskbridge_schema", _metadata, Column("version", Integer, primary_key=True))
"""One row: the version of the schema."""

RECORDS: Final = Table(
    "taskbridge_record",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("enqueued_at", Float, nullable=False),
    Column("due_at", Float),
    Column("ended_at", Float),
    Column("result", Text),
    Column("rest", Text, nullable=False),
    Column("until", Float),
)
"""A row for each record; `result` is what the task returned, in the codec's form, and `rest` all else, as JSON."""

CANCELLED: Final = Table(
    "taskbridge_cancelled",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("life", Text, nullable=False),
    Column("until", Float),
)
"""A row for each cancellation, by a number that grows in the order in which they are committed."""

MARKS: Final = Table(
    "taskbridge_mark",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("life", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("until", Float, nullable=False),
)
"""A row for each attempt that was started: the worker's name, or `ended`."""

WORKERS: Final = Table(
    "taskbridge_worker",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("until", Float, nullable=False),
)
"""A row for each worker process: until when it counts as alive, by the database's clock."""

SCHEDULES: Final = Table(
    "taskbridge_schedule",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("settled_until", Float, nullable=False),
    Column("paused", Integer, nullable=False),
    Column("last_id", Text, nullable=False),
    Column("last_planned_at", Float),
    Column("missed", Integer, nullable=False),
)
"""A row for each schedule."""

TICKS: Final = Table(
    "taskbridge_tick",
    _metadata,
    Column("namespace", Text, primary_key=True),
    Column("schedule", Text, primary_key=True),
    Column("planned_at", Float, primary_key=True),
    Column("claimant", Text, nullable=False),
    Column("until", Float, nullable=False),
)
"""A row for each tick that is claimed and not settled; `until` is when the claim ends, by the claimants' clock."""

TABLES: Final = tuple(_metadata.sorted_tables)
"""All of them."""
