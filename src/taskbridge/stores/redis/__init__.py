"""The store in a Redis database, normally the broker's own."""

from __future__ import annotations

from taskbridge.brokers.redis.client import client_of
from taskbridge.settings import Settings
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.marks import RedisMarks
from taskbridge.stores.redis.records import RedisRecords
from taskbridge.stores.redis.ticks import RedisTicks


class RedisStore:
    """A store in Redis.

    Attributes:
        marks: The attempt marks.
        records: The records.
        ticks: The ticks of schedules.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self._client = client_of(url)
        self._unanswered = FireAndForget(settings, url)
        self.marks: RedisMarks = RedisMarks(settings, self._client, self._unanswered)
        self.records: RedisRecords = RedisRecords(settings, url, self._client, self._unanswered)
        self.ticks: RedisTicks = RedisTicks(settings, self._client)

    def ping(self, *, timeout_s: float) -> None:
        """Return if Redis answers."""
        self._client.execute([("PING",)], timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self.marks.close()
        self.records.close()
        self._unanswered.close()
        self._client.close()


def open_store(settings: Settings, url: str) -> RedisStore:
    """Return a store; connects when it is first used."""
    return RedisStore(settings, url)
