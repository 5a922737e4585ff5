"""The page: what was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from benchmarks.guarantees.columns import COLUMNS, Column
from benchmarks.guarantees.results import Cell, Cells
from benchmarks.guarantees.table import ROWS, Row

FILE: Final = "guarantees.md"
"""The file's name in the folder of the documentation."""

_HEAD: Final = """\
# Guarantees, measured

<!-- Written by `python -m benchmarks.guarantees --write docs`: change benchmarks.guarantees, not this page. -->

What goes wrong in production, tried on Celery and on Dramatiq, alone and under taskbridge, over Redis and RabbitMQ.
Workers run in processes of their own, servers are real, and so are the kills and the cut connections. Each cell is one
run of a small experiment; its figures are [below](#row-by-row). A cell shows that something happens, or that it did not
happen in this run. It is not a rate: where chance decides, another run may give another figure.

"kept" means that the row's guarantee held in that run. Otherwise the table has the figure that shows it. A message
counts as lost if it had not run when the observation ended. Some come back much later, such as after Celery's
visibility timeout on Redis, an hour by default. No column promises that a task is run exactly once, and taskbridge does
not either: messages are run at least once.
"""

_SETTINGS: Final = """\
## Settings

The engines have the settings that their documentation advises for important tasks. Times that are minutes or hours in
production are seconds here, so that a cell takes less than two minutes; the row says where.

**All**: one process with one slot a worker, a pause of 1 s before a retry, 5 s for a send where that can be set, 4 s
for tasks of a worker that is told to stop. A worker that ends is restarted after a second.

**Celery alone**: `acks_late`, `reject_on_worker_lost` and `retry_on_worker_lost` (since 5.7: it limits runs that
would otherwise be repeated for ever), `worker_prefetch_multiplier=1`, `worker_soft_shutdown_timeout` with
`REMAP_SIGTERM=SIGQUIT`, `broker_channel_error_retry` (without it many errors end the worker),
`broker_connection_max_retries=None`, no gossip and no mingle; `autoretry_for=(Exception,)`. On Redis,
`visibility_timeout` (an hour, unless the row says otherwise), a search each second for messages of dead workers
(`unacked_restore_interval`, `unacked_restore_throttle`), ten `priority_steps`, timeouts for sockets. On RabbitMQ,
`confirm_publish` with a `confirm_timeout`, a heartbeat of 10 s, `task_queue_max_priority`.
`task_publish_retry_policy` is the default, three more tries of a send. Trying for longer would make each send in an
outage take longer. Groups are chords, whose results are in a Redis (`result_backend`), and whose body has an error
callback.

**Dramatiq alone**: `max_retries` and backoff, `dramatiq_queue_prefetch=1`, `--worker-shutdown-timeout`, priorities on
actors and as `broker_priority`. On Redis, `maintenance_chance=50_000` (with the default, messages of a dead
worker wait for minutes), `heartbeat_timeout` where the row names a lease, timeouts for sockets. On RabbitMQ,
`confirm_delivery`, `max_priority`, a heartbeat of 10 s, `blocked_connection_timeout`. Groups have a completion
callback, by `GroupCallbacks` with a Redis; each member has an actor for `on_retry_exhausted`.

**taskbridge**: its defaults, except `lease` where the row names one, `grace`, `send_timeout` and a retry policy with
the same pauses. On RabbitMQ, `store` names a Redis, which holds the attempt marks; on Redis, the broker is the store.
Groups are flows: `group(...).then(...).on_failure(...)`.

**Default settings**, where a row says so, are those of an engine that was just installed.
"""


def page(cells: Cells) -> str:
    """Return the page for these cells."""
    parts = [_HEAD, *_overview(cells), "", _SETTINGS, "## Row by row\n"]
    for row in ROWS.values():
        parts += [*_section(row, cells), ""]
    parts += _end(cells)
    return "\n".join(parts).rstrip() + "\n"


def _overview(cells: Cells) -> Iterator[str]:
    yield "## All rows\n"
    yield from _table(["", *(_short(column) for column in COLUMNS)], (_line(row, cells) for row in ROWS.values()))


def _short(column: Column) -> str:
    broker = "Redis" if column.broker == "redis" else "RabbitMQ"
    return f"{column.engine.capitalize()}, {broker}" + ("" if column.raw else ": taskbridge")


def _line(row: Row, cells: Cells) -> list[str]:
    marks = [_short_mark(cells.get((row.name, column.name))) for column in COLUMNS]
    return [f"[{row.words}](#{row.name})", *marks]


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    return "kept" if cell.outcome.kept else "**broken**"


def _short_mark(cell: Cell | None) -> str:
    """Return the verdict if it is good, with its time if it has one; else the figures that are not."""
    if cell is None:
        return _mark(cell)
    outcome = cell.outcome
    time = () if outcome.seconds is None else (f"{max(0.0, outcome.seconds):.1f} s",)
    if outcome.kept:
        return ", ".join(("kept", *time))
    lost = (f"lost {outcome.lost} of {outcome.sent}",) if outcome.lost else ()
    again = (f"run again {outcome.twice}",) if outcome.twice else ()
    remark = (outcome.remark.replace("|", "/"),) if outcome.remark else ()
    return f"**{', '.join((*lost, *again, *time, *remark))}**"


def _section(row: Row, cells: Cells) -> Iterator[str]:
    yield f"({row.name})="
    yield f"### {row.words}\n"
    yield f"{row.how}\n"
    yield f"Kept if {row.kept}.\n"
    if row.issues:
        yield f"Upstream: {'; '.join(_issues(row))}.\n"
    yield from _table(
        ["`--row " + row.name + "`", "", "figures", "measured (UTC)"],
        (_details(column, cells[row.name, column.name]) for column in COLUMNS if (row.name, column.name) in cells),
    )


def _issues(row: Row) -> Iterator[str]:
    for issue in row.issues:
        yield f"[{issue.place}]({issue.url}), {issue.says}"


def _details(column: Column, cell: Cell) -> list[str]:
    return [f"`--column {column.name}`", _mark(cell), cell.outcome.figure.replace("|", "/"), cell.measured_at]


def _end(cells: Cells) -> Iterator[str]:
    yield "## Measuring again\n"
    yield "```shell"
    yield "python -m benchmarks.guarantees --row killed-worker --column celery+redis:raw   # a cell"
    yield "python -m benchmarks.guarantees --row killed-worker                             # a row"
    yield "python -m benchmarks.guarantees --write docs                                    # all of it, and this page"
    yield "```\n"
    yield "It needs both engines, `redis-server` and `rabbitmq-server`, starts its own servers, and touches no other."
    yield "A row's table has the words that choose its row and its columns.\n"
    yield f"The times of all cells add up to {_minutes(cells.values())}; measured eight at a time, they take about a"
    yield "quarter of an hour. Measured with:\n"
    yield from _table(["", "versions"], ([name, found] for name, found in _versions(cells.values())))


def _minutes(cells: Iterable[Cell]) -> str:
    return f"{sum(cell.took_s for cell in cells) / 60:.0f} minutes"


def _versions(cells: Iterable[Cell]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for name, version in cell.versions.items():
            found.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(found[name]))) for name in sorted(found)]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield f"| {' | '.join(line)} |"
