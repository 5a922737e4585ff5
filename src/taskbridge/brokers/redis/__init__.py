"""The Redis broker: a Redis server of version 5 or newer (tested with 7.0), or Valkey, by `redis://`, `rediss://` or `unix://`.

On Redis Cluster the namespace is to be in braces: a message and what has to change with it lie under several keys, and
braces keep these on one node. What Redis has acknowledged is as durable as the server's own settings make it
(`appendonly yes`; never an eviction policy other than `noeviction`).
"""

from taskbridge.brokers.redis.broker import RedisBroker, connect

__all__ = ["RedisBroker", "connect"]
