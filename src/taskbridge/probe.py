"""Probes: messages that a worker answers by itself, and the signs that workers leave in the broker.

A probe waits in a queue like any other message and takes a worker's slot for a moment, so that an answer shows that
the queue is consumed, and not only that somebody is connected. No hook hears of it and no mark is written.
"""

from __future__ import annotations

from inspect import Signature
from typing import Final

from taskbridge.declaration import Declaration
from taskbridge.message import Message, new_id

PROBE: Final = "taskbridge.probe"  # the task of a probe; no application can declare one of this name
ANSWER_LIFE_S: Final = 60.0  # how long an answer can be seen, if who asked doesn't remove it
BUSY_LIFE_S: Final = 2.5  # how long a worker counts as busy after it last said so


DECLARATION: Final = Declaration(
    name=PROBE, function=lambda: None, signature=Signature(), is_coroutine=False, priority="critical"
)
"""What engines know of the task; a probe is answered before its function would be called (`engines.settle`)."""


def make_probe(queue: str, *, now: float, life_s: float) -> Message:
    """Return a probe for a queue, which nobody answers when its life is over."""
    return Message(
        id=new_id(),
        task=PROBE,
        queue=queue,
        priority="critical",
        args_json="[]",
        kwargs_json="{}",
        enqueued_at=now,
        expires_at=now + life_s,
    )


def answer_sign(probe: Message) -> str:
    """Return the name of the sign that answers a probe."""
    return f"answer.{probe.id}"


def busy_sign(engine: str, queue: str) -> str:
    """Return the name of the sign that a worker leaves which consumes this queue and has no slot free."""
    return f"busy.{engine}.{queue}"
