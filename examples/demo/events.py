"""What happens in the shop, written by hooks to a file that all its processes share, a line an event."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from taskbridge import Event, codec, default_bridge
from taskbridge.hooks import HookName
from taskbridge.message import Message

EVENTS_VARIABLE: Final = "SHOP_EVENTS"
"""The environment variable with the path of the file."""

_RECORDED: Final[tuple[HookName, ...]] = ("after_send", "before_run", "succeeded", "retrying", "dead", "discarded")


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One event.

    Attributes:
        at: In seconds since the epoch.
        what: The hook's name, or `opened`, `all_sent` and `closed`, which the sending process writes.
        id: The message's.
        task: The task's name, without its module.
        subject: The message's first argument.
        queue: Where the message waits, or waited.
        priority: The message's.
        attempt: The number of the run.
        delay_s: Seconds until the next attempt or, of what was sent, until the start.
        text: The result, the error, or why it was discarded.
        reason: Why it is dead.
        sent_at: When the message was made: before the broker had it, while `at` is after that.
        left: For `closed`, how many messages are then waiting, delayed and dead.
    """

    at: float
    what: str
    id: str = ""
    task: str = ""
    subject: str = ""
    queue: str = ""
    priority: str = ""
    attempt: int = 0
    delay_s: float = 0.0
    text: str = ""
    reason: str = ""
    sent_at: float = 0.0
    left: tuple[int, int, int] | None = None


def write(note: Note) -> None:
    """Append an event to the file."""
    place = os.open(os.environ[EVENTS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(place, f"{json.dumps(asdict(note))}\n".encode())  # in one piece, between those of other processes
    finally:
        os.close(place)


def record() -> None:
    """Write what happens to the default bridge's messages to the file from now on."""
    for name in _RECORDED:
        default_bridge().on(name)(_write_event)


def _write_event(event: Event) -> None:
    at = time.time()
    if event.message is not None:
        write(_note(event, event.message, at))


def _note(event: Event, message: Message, at: float) -> Note:
    if event.error is not None:
        text = f"{type(event.error).__name__}: {event.error}"
    elif event.name == "succeeded":
        text = str(event.result)
    else:
        text = event.reason
    return Note(
        at=at,
        what=event.name,
        id=message.id,
        task=message.task.rpartition(".")[2],
        subject=str(next(iter(codec.loads_array(message.args_json)), "")),
        queue=message.queue,
        priority=message.priority,
        attempt=message.attempt,
        delay_s=event.delay_s,
        text=text,
        reason=event.reason,
        sent_at=message.enqueued_at,
    )


class Tail:
    """Reads a file's events as they are written."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open(encoding="utf-8")
        self._rest = ""

    def read(self) -> Iterator[Note]:
        """Return the events since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            data = json.loads(line)
            left = data.pop("left")
            yield Note(left=None if left is None else tuple(left), **data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
