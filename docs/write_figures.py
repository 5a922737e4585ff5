"""Writes the tables of figures on the home page and on *How it compares*: `python docs/write_figures.py`.

The figures are those of the pages Guarantees and Performance, which have them from measurements.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.guarantees.results import Cells, load
from benchmarks.results import Result, loads, ratio

DOCS: Final = Path(__file__).parent
PAGES: Final = ("index.md", "how-it-compares.md")

GUARANTEES: Final[Mapping[str, str]] = {
    "killed-worker": "A worker is killed in the middle of a task; settings as each engine advises",
    "killed-worker-defaults": "The same, with default settings",
    "stopped-worker": "A deploy stops a worker in the middle of a long task",
    "deadly-message-for-the-worker": "A message takes its worker down each time",
    "failure-with-default-options": "A task fails once, with default options",
    "retry-in-an-outage": "The broker is away just when a task is to be retried",
    "connection-lost-with-delays": "The worker's connection drops while delayed tasks wait",
    "short-delay-behind-long-ones": "A short delay comes behind 1,500 long ones",
    "unknown-task": "A deploy: tasks come that the old worker doesn't know",
    "send-into-a-black-hole": "The broker stops answering as a message is sent",
    "connection-lost-in-a-task": "The worker's connection drops while a task runs",
    "deadly-member-of-a-group": "A member of a group takes its worker down each time; the application is to be told",
    "killed-workers-in-groups": "Workers are killed again and again while groups run; a callback follows each",
}
"""The rows of the first table: what they are, in few words."""

FIGURES: Final = {
    ("send-redis", "us"): ("Send, Redis", "µs"),
    ("many-redis", "us"): ("Send 100 at once, Redis, each", "µs"),
    ("send-amqp", "us"): ("Send, RabbitMQ, confirmed", "µs"),
    ("many-amqp", "us"): ("Send 100 at once, RabbitMQ, each", "µs"),
    ("worker-redis", "tasks/s"): ("Run, Redis", "tasks/s"),
    ("worker-amqp", "tasks/s"): ("Run, RabbitMQ", "tasks/s"),
    ("idle-redis", "p50 ms"): ("Start on an idle worker, Redis", "ms"),
    ("idle-amqp", "p50 ms"): ("Start on an idle worker, RabbitMQ", "ms"),
    ("first-send", "ms"): ("Import and first message", "ms"),
    ("memory", "MB"): ("Memory of a sender", "MB"),
}
"""The rows of the second: its name and its metric there, what it is here, and its unit."""

QUEUES: Final = ("taskbridge on Celery", "taskbridge on Dramatiq", "Celery", "Dramatiq", "RQ", "Huey", "arq", "taskiq")
"""Those of the table of queues, as the page Performance calls them."""

OF_QUEUES: Final = {
    ("send-redis", "us"): "send, µs",
    ("many-redis", "us"): "100 at once, each, µs",
    ("worker-redis", "tasks/s"): "run, tasks/s",
    ("idle-redis", "p50 ms"): "start, ms",
    ("memory", "MB"): "sender, MB",
}
"""Its columns."""

CELERY_ALONE: Final = {"many-redis": "Celery, loop"}
"""What Celery alone is called in rows that have it in several ways: the plain one."""

BROKERS: Final = {"redis": "Redis", "amqp": "RabbitMQ"}


def guarantees(cells: Cells) -> Iterator[str]:
    """Yield the lines of the table of what goes wrong."""
    yield "| | Celery alone | Dramatiq alone | taskbridge on either |"
    yield "|---|---|---|---|"
    for row, what in GUARANTEES.items():
        found = [_verdict(cells, row, f"{engine}+{{}}:raw") for engine in ("celery", "dramatiq")]
        ours = {_verdict(cells, row, f"{engine}+{{}}:taskbridge") for engine in ("celery", "dramatiq")}
        yield f"| [{what}](guarantees.md#{row}) | {' | '.join(found)} | {', '.join(sorted(ours))} |"
    yield ""
    yield _sum(cells)


def _verdict(cells: Cells, row: str, column: str) -> str:
    broken = [name for broker, name in BROKERS.items() if not cells[row, column.format(broker)].outcome.kept]
    if not broken:
        return "kept"
    return "**broken**" if len(broken) == len(BROKERS) else f"**broken on {broken[0]}**"


def _sum(cells: Cells) -> str:
    def kept(engine: str, kind: str) -> str:
        chosen = [cell for cell in cells.values() if re.fullmatch(rf"{engine}\+\w+:{kind}", cell.column)]
        return f"{sum(cell.outcome.kept for cell in chosen)} of {len(chosen)}"

    days = {cell.measured_at[:10] for cell in cells.values()}
    rows = len({cell.row for cell in cells.values()})
    alone = f"Celery alone kept {kept('celery', 'raw')}, Dramatiq alone {kept('dramatiq', 'raw')}"
    ours = f"taskbridge on both engines {kept('(celery|dramatiq)', 'taskbridge')}"
    return (
        f"Of all {rows} rows, each on Redis and on RabbitMQ, {alone} and {ours}, "
        f"measured until {max(days)}: [all rows, with the settings and the command that repeats each](guarantees.md)."
    )


def performance(result: Result) -> Iterator[str]:
    """Yield the lines of the table of what a message costs."""
    yield "| | taskbridge on Celery | Celery alone | taskbridge on Dramatiq | Dramatiq alone |"
    yield "|---|--:|--:|--:|--:|"
    for (row, metric), (what, unit) in FIGURES.items():
        cells = [
            cell
            for engine, alone in (("Celery", CELERY_ALONE.get(row, "Celery")), ("Dramatiq", "Dramatiq"))
            for cell in _pair(result, row, metric, f"taskbridge on {engine}", alone)
        ]
        yield f"| {what}, {unit} | {' | '.join(cells)} |"
    yield ""
    eager = [result.find(row, "Dramatiq, prefetch 128", "tasks/s") for row in ("worker-redis", "worker-amqp")]
    fast = " and ".join(f"{each.median:,.0f}" for each in eager if each is not None)
    yield (
        f"Medians of the run of {result.date}, with settings that promise the same as far as the engines can: "
        f"[all rows, other queues and the settings](performance.md). With a prefetch of 128 messages, which other "
        f"workers then wait for, Dramatiq alone runs {fast} tasks/s."
    )


def _pair(result: Result, row: str, metric: str, ours: str, alone: str) -> tuple[str, str]:
    one, other = result.find(row, ours, metric), result.find(row, alone, metric)
    assert one is not None, (row, ours)
    assert other is not None, (row, alone)
    times = ratio(one, other) if metric == "tasks/s" else ratio(other, one)
    return _number(one.median), f"{_number(other.median)} ({times:.1f}x)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def queues(result: Result) -> Iterator[str]:
    """Yield the lines of the table of what a message costs with each queue, on Redis."""
    yield f"| | {' | '.join(OF_QUEUES.values())} |"
    yield f"|---|{'--:|' * len(OF_QUEUES)}"
    for queue in QUEUES:
        cells = (_figure(result, row, queue, metric) for row, metric in OF_QUEUES)
        yield f"| {queue} | {' | '.join(cells)} |"
    yield ""
    names = [queue.lower() for queue in QUEUES]
    versions = [
        f"{name.partition(' ')[0]} {version}"
        for name, version in result.versions.items()
        if name.partition(" ")[0] in names or name == "taskiq-redis (peers)"
    ]
    yield f"Medians of the run of {result.date}, with {', '.join(versions)}: [how it was measured](performance.md)."


def _figure(result: Result, row: str, queue: str, metric: str) -> str:
    queue = CELERY_ALONE.get(row, queue) if queue == "Celery" else queue
    found = result.find(row, queue, metric)
    return "" if found is None else _number(found.median)


def written(page: str) -> str:
    """Return a page with its tables as they should be."""
    result = loads((DOCS / "performance.json").read_text(encoding="utf-8"))
    tables = {
        "guarantees": guarantees(load(DOCS / "guarantees.json")),
        "performance": performance(result),
        "queues": queues(result),
    }
    for name, lines in tables.items():
        begin, end = (f"<!-- {name}, by docs/write_figures.py: {word} -->" for word in ("begin", "end"))
        before, found, rest = page.partition(begin)
        if found:
            text = "\n".join(lines)
            page = f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    for each in PAGES:
        file = DOCS / each
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
