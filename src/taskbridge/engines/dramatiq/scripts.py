"""The Lua scripts of this engine's Redis broker, in `lua/`; each is carried out as a whole, or not at all.

"Acks" is Dramatiq's name for a set of ids that a worker has taken from a queue and not acknowledged.
"""

from __future__ import annotations

from typing import Final

from taskbridge.brokers.redis.scripts import script

FETCH: Final = script(__file__, "fetch")
ACK: Final = script(__file__, "ack")
NACK: Final = script(__file__, "nack")
RETURN: Final = script(__file__, "return")
RECONCILE: Final = script(__file__, "reconcile")
BEAT: Final = script(__file__, "beat")
MAINTAIN: Final = script(__file__, "maintain")
LEAVE: Final = script(__file__, "leave")
