"""What happens on the Redis server in one step: the Lua scripts in `lua/`, and the keys that they work on.

All times are in milliseconds since the epoch, and the server's own clock's, so that no two computers' clocks are
compared; only a dead letter's is that of the worker that buried it.

| key | type | holds |
|---|---|---|
| `{ns}:parked:{engine}` | sorted set | `id:attempt` of each parked message, by when it is due |
| `{ns}:parked:{engine}:messages` | hash | the message of each, as `Message.dumps` wrote it |
| `{ns}:engines` | set | the engines whose bridges have parked something |
| `{ns}:pumps:{engine}` | sorted set | the engine's living pumps, by when they will have been silent for too long |
| `{ns}:dead` | sorted set | the id of each dead letter, by when it died |
| `{ns}:dead:letters` | hash | each dead letter, as `DeadLetter.dumps` wrote it |

A script that fails at its first write, for want of memory or on a replica, has changed nothing; Redis refuses no later
write of a script for these reasons. A `kill -9` of the server keeps all of a script's changes or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Final, NamedTuple

Word = str | bytes | int | float
"""A part of a command."""


class Call(NamedTuple):
    """A script with what it is to work on, for `Client.run(*call, timeout_s=...)`.

    A function for each script makes them, so that keys and arguments have names and types, and their order is known in
    one place.
    """

    script: Script
    keys: Sequence[str]
    args: Sequence[Word]


class Script:
    """A Lua script, and the name by which the server knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text: str = text
        self.sha: str = sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], *args: Word) -> Call:
        """Return a call of the script."""
        return Call(self, keys, args)


def script(beside: str, *names: str) -> Script:
    """Return the script in the file `lua/{name}.lua` beside a module, whose `__file__` that is; several are joined."""
    folder = Path(beside).parent / "lua"
    return Script("\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a namespace, as one engine's bridges use them."""

    namespace: str
    engine: str

    @property
    def due(self) -> str:
        """What the engine's bridges have parked, by when it is due."""
        return f"{self.namespace}:parked:{self.engine}"

    @property
    def messages(self) -> str:
        """The messages that they have parked."""
        return f"{self.due}:messages"

    @property
    def pumps(self) -> str:
        """The engine's living pumps."""
        return f"{self.namespace}:pumps:{self.engine}"

    @property
    def engines(self) -> str:
        """The engines whose bridges have parked something."""
        return f"{self.namespace}:engines"

    @property
    def dead(self) -> str:
        """The ids of the dead, by when they died."""
        return f"{self.namespace}:dead"

    @property
    def letters(self) -> str:
        """The dead letters."""
        return f"{self.dead}:letters"


_PARK: Final = script(__file__, "park")
_LOOK: Final = script(__file__, "look")
_SETTLE: Final = script(__file__, "settle")
_BEAT: Final = script(__file__, "beat")
_BURY: Final = script(__file__, "bury")
_TAKE_DEAD: Final = script(__file__, "take_dead")
_COUNT: Final = script(__file__, "count")


def park(keys: Keys, *entries: Word) -> Call:
    """Park messages; the same member again replaces the first.

    Args:
        keys: The engine's.
        *entries: Of each message its member, its delay in ms, and its text.
    """
    return Call(_PARK, (keys.due, keys.messages, keys.engines), (keys.engine, *entries))


def look(keys: Keys, *, claim_ms: int, offset: int, most: int, most_bytes: int) -> Call:
    """Look for due messages, and claim them: other pumps don't see them for a while, and if this one dies, they will.

    Returns:
        A call that returns the milliseconds until there is more (0: more is due; -1: nothing more is parked), then of
        each message its member, its score and its text (None if there is none).
    """
    return Call(_LOOK, (keys.due, keys.messages), (claim_ms, offset, most, most_bytes))


def settle(keys: Keys, words: Sequence[Word]) -> Call:
    """Do with parked messages what was decided, each only if nobody has moved it since it was looked up.

    Args:
        keys: The engine's that parked them.
        words: Of each message, as `settle.lua` says.

    Returns:
        A call that returns how many were published, then of each that could not be its member and the error.
    """
    return Call(_SETTLE, (keys.due, keys.messages, keys.dead, keys.letters), words)


def beat(keys: Keys, *, pump: str, life_ms: int) -> Call:
    """Say that a pump lives, count those that do, and find whose parked messages nobody promotes.

    Returns:
        A call that returns how many of the engine's pumps live, then the other engines that have something parked and
        no pump.
    """
    return Call(_BEAT, (keys.engines, keys.pumps), (keys.namespace, keys.engine, pump, life_ms))


def bury(keys: Keys, *, ttl_ms: int, message_id: str, died_at_ms: int, letter: str) -> Call:
    """Keep a dead letter, and forget those whose time is over."""
    return Call(_BURY, (keys.dead, keys.letters), (ttl_ms, message_id, died_at_ms, letter))


def forget_dead(keys: Keys, *, ttl_ms: int) -> Call:
    """Forget dead letters whose time is over, up to 1,000; the call returns whether there may be more."""
    return Call(_BURY, (keys.dead, keys.letters), (ttl_ms,))


def take_dead(keys: Keys, words: Sequence[Word]) -> Call:
    """Take dead letters out; those that are replayed are parked in the same step, due now.

    Args:
        keys: The engine's that replays them.
        words: Of each letter its id, the SHA-1 of its text as it was read, and the member and the text of the message
            that is due now, empty if there is none.

    Returns:
        A call that returns for each letter whether it was taken out: 0 if it is gone, or another one is there.
    """
    parked = (keys.due, keys.messages, keys.engines)
    return Call(_TAKE_DEAD, (keys.dead, keys.letters, *parked), (keys.engine, *words))


def count(keys: Keys, lists: Sequence[str], *, ttl_ms: int) -> Call:
    """Count what is delayed, what is dead and not to be forgotten, and what is in each list; returned in this order."""
    return Call(_COUNT, (keys.engines, keys.dead, *lists), (keys.namespace, ttl_ms))
