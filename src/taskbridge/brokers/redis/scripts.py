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
| `{ns}:probes` | hash | by the id of each probe: when it expires, and the commands that remove it, as JSON |
| `{ns}:sign:{name}` | string | nothing; it is there while the sign can be seen |

A script that fails at its first write, for want of memory or on a replica, has changed nothing; Redis refuses no later
write of a script for these reasons. A `kill -9` of the server keeps all of a script's changes or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Final, NamedTuple

Word = str | bytes | int | float
"""A part of a command."""


class Call(NamedTuple):
    """A script with the keys and arguments that it is to work on; its file says what they are, and what it returns."""

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


class Keys:
    """The keys of a namespace, as one engine's bridges use them."""

    def __init__(self, namespace: str, engine: str) -> None:
        self.namespace: Final = namespace
        self.engine: Final = engine
        self.due: Final = f"{namespace}:parked:{engine}"
        self.messages: Final = f"{self.due}:messages"
        self.engines: Final = f"{namespace}:engines"
        self.pumps: Final = f"{namespace}:pumps:{engine}"
        self.dead: Final = f"{namespace}:dead"
        self.letters: Final = f"{namespace}:dead:letters"
        self.probes: Final = f"{namespace}:probes"
        self.sign: Final = f"{namespace}:sign:"


_PARK: Final = script(__file__, "park")
_LOOK: Final = script(__file__, "look")
_SETTLE: Final = script(__file__, "settle")
_BEAT: Final = script(__file__, "beat")
_BURY: Final = script(__file__, "bury")
_TAKE_DEAD: Final = script(__file__, "take_dead")
_COUNT: Final = script(__file__, "count")


def park(keys: Keys, *entries: Word) -> Call:
    """Park messages: of each its member, its delay in ms, and its text. The same member again replaces the first."""
    return _PARK((keys.due, keys.messages, keys.engines), keys.engine, *entries)


def look(keys: Keys, *, claim_ms: int, offset: int, most: int, most_bytes: int) -> Call:
    """Look for due messages, and claim them: other pumps don't see them for a while; if this one dies, they will."""
    return _LOOK((keys.due, keys.messages), claim_ms, offset, most, most_bytes)


def settle(keys: Keys, words: Sequence[Word]) -> Call:
    """Do with messages that an engine parked what was decided, each only if nobody has moved it since the look."""
    return _SETTLE((keys.due, keys.messages, keys.dead, keys.letters), *words)


def beat(keys: Keys, *, pump: str, life_ms: int) -> Call:
    """Say that a pump lives, and ask how many do, and which other engines have something parked and no pump."""
    return _BEAT((keys.engines, keys.pumps), keys.namespace, keys.engine, pump, life_ms)


def bury(keys: Keys, *, ttl_ms: int, message_id: str, died_at_ms: int, letter: str) -> Call:
    """Keep a dead letter, and forget those whose time is over."""
    return _BURY((keys.dead, keys.letters), ttl_ms, message_id, died_at_ms, letter)


def forget_dead(keys: Keys, *, ttl_ms: int) -> Call:
    """Forget dead letters whose time is over, up to 1,000; the reply is whether there may be more."""
    return _BURY((keys.dead, keys.letters), ttl_ms)


def take_dead(keys: Keys, words: Sequence[Word]) -> Call:
    """Take dead letters out, and park those that are replayed, due now, in one step; the reply is which were there."""
    return _TAKE_DEAD((keys.dead, keys.letters, keys.due, keys.messages, keys.engines), keys.engine, *words)


def count(keys: Keys, lists: Sequence[str], *, ttl_ms: int) -> Call:
    """Count what is delayed, what is dead and not to be forgotten, and what is in each list; returned in this order."""
    return _COUNT((keys.engines, keys.dead, *lists), keys.namespace, ttl_ms)
