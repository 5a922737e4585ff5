"""The store in a Redis database, normally the broker's own."""

from __future__ import annotations

from taskbridge.settings import Settings
from taskbridge.stores.redis.marks import RedisMarks


class RedisStore:
    """A store in Redis.

    Attributes:
        marks: The attempt marks.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self.marks: RedisMarks = RedisMarks(settings, url)

    def close(self) -> None:
        """Close the connections."""
        self.marks.close()


def open_store(settings: Settings, url: str) -> RedisStore:
    """Return a store; connects when it is first used."""
    return RedisStore(settings, url)
