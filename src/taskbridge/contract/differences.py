"""How workers of different kinds differ: what the page of differences says, and scenarios check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from taskbridge.contract.target import Target

Kind = Literal["children", "threads", "dramatiq"]

KINDS: Final[Mapping[Kind, str]] = {
    "children": "Celery, `--threads 1`",
    "threads": "Celery, more threads",
    "dramatiq": "Dramatiq",
}
"""The kinds of workers, as the page calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Something that is so on some kinds of workers and not on others.

    Attributes:
        what: It, as a sentence.
        on: The kinds on which it is so.
        brokers: On which brokers.
    """

    what: str
    on: tuple[Kind, ...]
    brokers: tuple[str, ...] = ("redis", "amqp")


DIFFERENCES: Final[Mapping[str, Difference]] = {
    "main thread": Difference(
        what="A task runs in the main thread of its process.",
        on=("children",),
    ),
    "forked": Difference(
        what="The application is imported once, and its processes are forked from that one.",
        on=("children",),
    ),
    "interrupted in C": Difference(
        what="The end of the grace interrupts a run inside a long call, such as `time.sleep` or `recv`.",
        on=("children",),
    ),
    "hooks elsewhere": Difference(
        what=(
            "Hooks about what no task ran are called in a process without `worker_started`: about a message of an "
            "unknown task, and about what a schedule sends."
        ),
        on=("children",),
    ),
    "served by each": Difference(
        what="Each process promotes what is due and follows the schedules, not one for all processes.",
        on=("threads", "dramatiq"),
    ),
    "leased by each": Difference(
        what="A call that holds the interpreter's lock for longer than `lease` makes its worker count as dead.",
        on=("threads", "dramatiq"),
        brokers=("redis",),
    ),
    "threads awaited": Difference(
        what="As a worker stops, threads that a task has started have the rest of the grace, unless they are daemons.",
        on=("threads", "dramatiq"),
    ),
}
"""Every difference, by a name for what a scenario looks at."""


def kind_of(target: Target, *, threads: int) -> Kind:
    """Return what kind of worker a target has with so many threads in each process."""
    if target.address.engine == "dramatiq":
        return "dramatiq"
    return "children" if threads == 1 else "threads"


def expected(target: Target, *, threads: int) -> dict[str, bool]:
    """Return what is to be seen of such a worker, by the names of differences."""
    kind = kind_of(target, threads=threads)
    return {name: kind in each.on for name, each in DIFFERENCES.items() if target.address.broker in each.brokers}
