"""Writes the page of differences between workers: `python docs/write_differences.py > docs/differences.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from taskbridge.contract.differences import DIFFERENCES, ON_REDIS

HEAD = """\
# Differences

<!-- Written by docs/write_differences.py: change that and contract/differences.py, not this page. -->

Nothing but the URL changes when you change the engine: that is what the [rules](semantics.md) say. What is left comes
from how the engines make their processes, and is all here. With `--threads 1`, a Celery worker is a main process that
forks children, and each child runs one task at a time. With more threads on Celery, and always on Dramatiq, each
process of a worker is independent of the others and runs tasks in threads beside its main one.

A [scenario](scenarios.md#n) starts workers of each kind and compares what it sees with this table. `inline://` and the
memory brokers run tasks in threads of your own process, as in the last two columns.
"""

KINDS = {"children": "Celery, `--threads 1`", "threads": "Celery, more threads", "dramatiq": "Dramatiq"}

WHAT = {
    "main thread": "A task runs in the main thread of its process.",
    "forked": "The application is imported once, and its processes are forked from that one.",
    "interrupted in C": ("The end of the grace interrupts a run inside a long call, such as `time.sleep` or `recv`."),
    "hooks elsewhere": (
        "Hooks about what no task ran are called in a process without `worker_started`: about a message of an "
        "unknown task, and about what a schedule sends."
    ),
    "served by each": "Each process promotes what is due and follows the schedules, not one for all processes.",
    "leased by each": (
        "A call that holds the interpreter's lock for longer than `lease` makes its worker count as dead."
    ),
    "threads awaited": (
        "As a worker stops, threads that a task has started have the rest of the grace, unless they are daemons."
    ),
}
"""What the differences are."""

REMEDIES = {
    "main thread": (
        "What only a main thread may do, such as `signal.signal`, do when the module is imported. What belongs to "
        "one thread (a `sqlite3` connection, a `decimal` context, a context variable) make in a `before_run` hook, "
        "which runs in the task's thread, and keep it in `threading.local()`."
    ),
    "forked": (
        "Open connections, start threads and seed generators (`numpy.random.seed()`) in `worker_started`, which is "
        "called in each process after the fork, and not when the module is imported."
    ),
    "interrupted in C": (
        "Give such calls a timeout shorter than a second if the run has to clean up. Otherwise the process ends "
        "without it; its message starts again at once, as the same attempt, everywhere."
    ),
    "hooks elsewhere": (
        "In the hooks `dead`, `discarded`, `before_send` and `after_send`, make what they use as they first use "
        "it, or choose `--threads 2`."
    ),
    "served by each": (
        "Nothing: they share the work. With dozens of processes, `--no-scheduler` and one `taskbridge scheduler` "
        "save some load."
    ),
    "leased by each": "Set `lease` above the longest such call, or run these tasks on Celery with `--threads 1`.",
    "threads awaited": (
        "Wait in the task for what it has started. Do what has to be done at a process's end in `worker_stopping`: "
        "functions of `atexit` run with more threads on Celery, and on Dramatiq from Python 3.13 on."
    ),
}
"""What to do where one of them matters."""


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_table(), "", *_remedies()]) + "\n"


def _table() -> Iterator[str]:
    yield f"| | {' | '.join(KINDS.values())} |"
    yield f"|---|{'---|' * len(KINDS)}"
    for number, (name, kinds) in enumerate(DIFFERENCES.items(), 1):
        brokers = " (On Redis.)" if name in ON_REDIS else ""
        cells = ["yes" if kind in kinds else "no" for kind in KINDS]
        yield f"| {number}. {WHAT[name]}{brokers} | {' | '.join(cells)} |"


def _remedies() -> Iterator[str]:
    yield "Where one of these matters to you:\n"
    yield from (f"{number}. {REMEDIES[name]}" for number, name in enumerate(DIFFERENCES, 1))


if __name__ == "__main__":
    sys.stdout.write(page())
