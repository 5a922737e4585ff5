"""The keys of the Redis broker.

All times are in milliseconds since the epoch, and the server's own clock's, so that no two computers' clocks are
compared; only a dead letter's is that of the worker that buried it.

A release may add keys, but never changes the type of one: a worker that finds another type takes that for somebody
else's, and moves it out of the way, to `KEY:odd`.

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
"""

from __future__ import annotations

from typing import Final


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
