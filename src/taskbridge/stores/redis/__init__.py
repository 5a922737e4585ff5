"""The store in a Redis database, normally the broker's own."""

from __future__ import annotations

from taskbridge.settings import Settings
from taskbridge.stores.base import Store
from taskbridge.stores.redis.backend import RedisBackend


def open_store(settings: Settings, url: str) -> Store:
    """Return a store; connects when it is first used."""
    return Store(settings, RedisBackend(settings, url))
