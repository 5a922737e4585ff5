"""The controls: the cheapest way to give the same server a message of the same size, which no queue can beat."""

from __future__ import annotations

import socket
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.apps import work

_SIZE: Final = 900
"""About what a Celery message takes."""


def _item(payload: str) -> bytes:
    return payload.encode().ljust(_SIZE, b".")


class _Socket:
    """One connection, and no parsing beyond the first line of a reply."""

    def __init__(self) -> None:
        place = urlsplit(work.URL)
        self._socket = socket.create_connection((place.hostname or "", place.port or 6379))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def push(self, items: list[bytes]) -> None:
        words = [b"LPUSH", work.QUEUE.encode(), *items]
        packed = b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)])
        self._socket.sendall(packed)
        self._socket.recv(64)


class _RedisPy:
    """redis-py's own call."""

    def __init__(self) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(work.URL)

    def push(self, items: list[bytes]) -> None:
        self._client.lpush(work.QUEUE, *items)


class _Pika:
    """pika's blocking channel, which confirms one by one."""

    def __init__(self) -> None:
        import pika

        self._channel: Any = pika.BlockingConnection(pika.URLParameters(work.URL)).channel()
        self._channel.queue_declare(work.QUEUE, durable=True)
        self._properties: Any = pika.BasicProperties(delivery_mode=2)
        if work.CONFIRMS:
            self._channel.confirm_delivery()

    def push(self, items: list[bytes]) -> None:
        for item in items:
            self._channel.basic_publish("", work.QUEUE, item, properties=self._properties)


_KINDS: Final[dict[str, Any]] = {"socket": _Socket, "redis-py": _RedisPy, "pika": _Pika}
_client: Final[Any] = _KINDS[work.OPTION]()


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        _client.push([_item(payload)])


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        _client.push([_item(payload) for _ in range(size)])
