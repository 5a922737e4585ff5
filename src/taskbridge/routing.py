"""Which queue a message goes to (rules Q1 and Q2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from taskbridge.exceptions import UnknownQueue

_QUEUE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,99}")

# Dramatiq keeps these endings for its own delay and dead-letter queues (dramatiq/common.py, q_name and dq_name).
_RESERVED_ENDINGS: Final = (".DQ", ".XQ")


def check_queue_name(name: object) -> str:
    """Return a queue's name if it is one.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(name, str) or not _QUEUE_NAME.fullmatch(name):
        raise ValueError(
            f"queue name {name!r} must be up to 100 letters, digits, '.', '_' or '-', and start with a letter or '_'"
        )
    if name.endswith(_RESERVED_ENDINGS):
        raise ValueError(f"queue name {name!r} has an ending that Dramatiq keeps for itself (.DQ, .XQ)")
    return name


@dataclass(frozen=True, slots=True)
class Route:
    """A rule that sends the tasks whose names match a glob to a queue."""

    pattern: str
    queue: str

    def matches(self, task: str) -> bool:
        """Return whether the rule is for this task; upper and lower case differ."""
        return fnmatchcase(task, self.pattern)


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """The queues of a bridge, and how a message finds its own.

    Attributes:
        default_queue: Where a message goes that nothing else sends elsewhere.
        routes: In order; the first that matches wins.
        declared: Queues known from the setting `queues`.
    """

    default_queue: str
    routes: tuple[Route, ...]
    declared: tuple[str, ...]

    def known(self, task_queues: Iterable[str | None]) -> tuple[str, ...]:
        """Return the names of all known queues, each once, the default one first (rule Q2)."""
        routed = (route.queue for route in self.routes)
        on_tasks = (queue for queue in task_queues if queue is not None)
        return tuple(dict.fromkeys([self.default_queue, *self.declared, *routed, *on_tasks]))

    def queue_of(self, task: str, *, on_task: str | None) -> str:
        """Return a task's queue (rule Q1), unless `using` says otherwise; `on_task` is what the decorator says."""
        for route in self.routes:
            if route.matches(task):
                return route.queue
        return self.default_queue if on_task is None else on_task


def check_known(queue: str, known: Sequence[str]) -> None:
    """Raise `UnknownQueue` for a queue that is not among the known ones."""
    if queue not in known:
        raise UnknownQueue(queue, known)
