"""What an outbox holds of a message: a line that says when it starts, and what it is, and the message's own text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

from taskbridge.exceptions import DecodeError
from taskbridge.message import END_OF_TIME, Message, loads

Kind = Literal["sent", "follows", "replayed"]
"""`sent`: it is to be published. `follows`: that waits for the end of the message that holds its key. `replayed`: its
dead letter is taken away first."""

OF_FLOWS: Final = "flow\t"
"""What the ids of entries begin with that have a flow looked after, and hold no message: no message's id has a tab."""

LOOK: Final = '0 sent\n{"id":"flow","task":"flow","args":[],"kwargs":{},"form":3}'
"""The text of such an entry; an earlier release takes it for a message of a later one, which it leaves alone."""

KEPT: Final = '0 sent\n{"id":"flow","task":"flow","args":[],"kwargs":{},"form":4,"flow":'
KEPT_END: Final = "}"
"""What the text of a flow in an application's outbox begins and ends with, so that earlier releases leave it alone."""

_KINDS: Final = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Held:
    """A message in an outbox, when it starts, in seconds since the epoch (0 is at once), and what it is."""

    message: Message
    starts_at: float = 0.0
    kind: Kind = "sent"

    @property
    def key(self) -> str:
        """The id of its entry: the message's, and which replay it is, for an entry of the life before may be left."""
        message = self.message
        return f"{message.id}\t{message.replays}" if message.replays else message.id  # no message's id has a tab

    def dumps(self) -> str:
        """Return it as the text of an entry, which `loads_held` reads."""
        return f"{self.starts_at!r} {self.kind}\n{self.message.dumps()}"


def held(message: Message, delay_s: float, kind: Kind = "sent") -> Held:
    """Return what an outbox holds of a message that is to start so many seconds after it was sent."""
    return Held(replace(message, relayed=True), message.enqueued_at + delay_s if delay_s > 0 else 0.0, kind)


def loads_held(text: str) -> Held:
    """Return what an entry holds; raises `NewerFormError` if a newer release wrote it, `DecodeError` if it is none."""
    line, _, rest = text.partition("\n")
    starts_at, _, kind = line.partition(" ")
    try:
        is_sound = 0 <= float(starts_at) <= END_OF_TIME and kind in _KINDS
    except ValueError:
        is_sound = False
    if not is_sound:
        raise DecodeError(f"not an entry of an outbox: it begins with {line[:100]!r}")
    return Held(loads(rest), float(starts_at), cast("Kind", kind))
