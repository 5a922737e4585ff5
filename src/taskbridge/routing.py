"""The names of queues, and the rules that send tasks to them (rules Q1 and Q2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal, NamedTuple

from taskbridge.exceptions import UnknownQueue

_QUEUE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,99}")

# Dramatiq keeps these endings for its own delay and dead-letter queues (dramatiq/common.py, q_name and dq_name).
_RESERVED_ENDINGS: Final = (".DQ", ".XQ")


def check_queue_name(name: object) -> str:
    """Return a queue's name if it is one; else raise `ValueError`."""
    if not isinstance(name, str) or not _QUEUE_NAME.fullmatch(name):
        raise ValueError(
            f"queue name {name!r} must be up to 100 letters, digits, '.', '_' or '-', and start with a letter or '_'"
        )
    if name.endswith(_RESERVED_ENDINGS):
        raise ValueError(f"queue name {name!r} has an ending that Dramatiq keeps for itself (.DQ, .XQ)")
    return name


QueueType = Literal["classic", "quorum"]
"""What RabbitMQ makes of a queue: a classic one is on one node, a quorum queue on several, and outlives one of them."""

QUEUE_TYPES: Final[tuple[QueueType, ...]] = ("classic", "quorum")


def check_queue_type(value: object) -> QueueType:
    """Return the type of a queue if it is one; else raise `ValueError`."""
    if value not in QUEUE_TYPES:
        raise ValueError(f"a queue's type is 'classic' or 'quorum', not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Queue:
    """A known queue, for the setting `queues`: `Queue("bulk", type="quorum")`; `ValueError` if name or type is wrong.

    Args:
        name: Its name.
        type: Its type on RabbitMQ; None is that of the setting `queue_type`. On other brokers it says nothing.
    """

    name: str
    _: KW_ONLY
    type: QueueType | None = None

    def __post_init__(self) -> None:
        check_queue_name(self.name)
        if self.type is not None:
            check_queue_type(self.type)


class Route(NamedTuple):
    """A rule that sends the tasks whose names match a glob to a queue."""

    pattern: str
    queue: str


def check_known(queue: str, known: Sequence[str]) -> None:
    """Raise `UnknownQueue` for a queue that is not among the known ones."""
    if queue not in known:
        raise UnknownQueue(queue, known)
