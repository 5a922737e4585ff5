"""Writes the page of differences between workers: `python docs/write_differences.py > docs/differences.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from taskbridge.contract.differences import DIFFERENCES, KINDS

HEAD = """\
# Differences

<!-- Written by docs/write_differences.py: change contract/differences.py, not this page. -->

Nothing but the URL changes when you change the engine: that is what the [rules](semantics.md) say. What is left comes
from how the engines make their processes, and is all here. With `--threads 1`, a Celery worker is a main process that
forks children, and each child runs one task at a time. With more threads on Celery, and always on Dramatiq, each
process of a worker is independent of the others and runs tasks in threads beside its main one.

A [scenario](scenarios.md#n) starts workers of each kind and compares what it sees with this table. `inline://` and the
memory brokers run tasks in threads of your own process, as in the last two columns.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_table(), "", *_remedies()]) + "\n"


def _table() -> Iterator[str]:
    yield f"| | {' | '.join(KINDS.values())} |"
    yield f"|---|{'---|' * len(KINDS)}"
    for number, each in enumerate(DIFFERENCES.values(), 1):
        brokers = "" if len(each.brokers) > 1 else " (On Redis.)"
        cells = ["yes" if kind in each.on else "no" for kind in KINDS]
        yield f"| {number}. {each.what}{brokers} | {' | '.join(cells)} |"


def _remedies() -> Iterator[str]:
    yield "Where one of these matters to you:\n"
    yield from (f"{number}. {each.remedy}" for number, each in enumerate(DIFFERENCES.values(), 1))


if __name__ == "__main__":
    sys.stdout.write(page())
