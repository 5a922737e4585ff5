"""How the store's parts make their connections to Redis."""

from __future__ import annotations

from typing import Any

from redis import ConnectionPool, Redis


def connect(url: str, *, timeout_s: float, connect_timeout_s: float) -> Any:
    """Return a client for a URL, which connects when it is first used.

    What the URL says of time limits, of the type of replies and of regular health checks does not count: a check reads
    a reply, and on some of these connections none ever comes.
    """
    pool: Any = ConnectionPool.from_url(url, protocol=2)
    pool.connection_kwargs.update(
        socket_timeout=timeout_s,
        socket_connect_timeout=connect_timeout_s,
        health_check_interval=0,
        decode_responses=False,
    )
    return Redis.from_pool(pool)
