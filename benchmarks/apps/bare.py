"""The controls: the cheapest way to give the same server a message of the same size, which no queue can beat.

python -m benchmarks.apps.bare    take messages from Redis with BRPOP, and mark when each arrived
"""

from __future__ import annotations

import socket
import struct
from functools import partial
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote, urlsplit

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

    def pop(self) -> bytes:
        """Wait for an item, and take it."""
        self._socket.sendall(b"*3\r\n$5\r\nBRPOP\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(work.QUEUE), work.QUEUE.encode()))
        reply = b""
        while reply.count(b"\r\n") < 5:
            reply += self._socket.recv(1 << 16)
        return reply.split(b"\r\n")[4]


class _RedisPy:
    """redis-py's own call."""

    def __init__(self) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(work.URL)

    def push(self, items: list[bytes]) -> None:
        self._client.lpush(work.QUEUE, *items)


_ID: Final = "0" * 36
_CELERYS: Final[dict[str, Any]] = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "priority": 1,
    "correlation_id": _ID,
    "message_id": _ID,
    "headers": {
        "lang": "py",
        "task": "bench.tick",
        "id": _ID,
        "root_id": _ID,
        "ignore_result": True,
        "argsrepr": "(...)",
        "kwargsrepr": "{}",
        "origin": "gen12345@localhost",
        "taskbridge": "." * 100,
    },
}
"""The properties of a message in Celery's form, as taskbridge sends it: RabbitMQ decodes and keeps each header."""

_CELERYS_BODY: Final = 90
"""About what the body of such a message takes, with small arguments."""


class _AmqpSocket:
    """One connection to RabbitMQ, with frames that are written by hand, and no reply read beyond a confirm's number.

    Args:
        properties: By pika's names, besides that the message is persistent.
        arguments: What the queue is declared with.
        size: How many bytes the body has.
    """

    def __init__(
        self,
        properties: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        size: int = _SIZE,
    ) -> None:
        import pika
        from pika import frame, spec

        def call(method: Any, channel: int = 1) -> None:
            self._socket.sendall(frame.Method(channel, method).marshal())
            self._socket.recv(1 << 16)

        place = urlsplit(work.URL)
        self._socket = socket.create_connection((place.hostname or "", place.port or 5672))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(frame.ProtocolHeader().marshal())
        self._socket.recv(1 << 16)
        call(spec.Connection.StartOk({}, "PLAIN", f"\0{place.username}\0{place.password}", "en_US"), 0)
        self._socket.sendall(frame.Method(0, spec.Connection.TuneOk(2047, 1 << 17, 0)).marshal())
        call(spec.Connection.Open(unquote(place.path[1:])), 0)
        call(spec.Channel.Open())
        call(spec.Queue.Declare(queue=work.QUEUE, durable=True, arguments=arguments))
        call(spec.Confirm.Select())
        publish = spec.Basic.Publish(exchange="", routing_key=work.QUEUE, mandatory=True)
        self._publish: bytes = frame.Method(1, publish).marshal()
        self._properties = b"".join(pika.BasicProperties(delivery_mode=2, **(properties or {})).encode())
        self._size = size
        self._sent = 0

    def push(self, items: list[bytes]) -> None:
        properties, size = self._properties, self._size
        self._socket.sendall(b"".join([self._publish + _content(properties, item[:size]) for item in items]))
        self._sent += len(items)
        rest = b""
        while True:
            rest += self._socket.recv(1 << 16)
            whole = len(rest) - len(rest) % _CONFIRM.size
            if whole and _CONFIRM.unpack_from(rest, whole - _CONFIRM.size)[0] == self._sent:
                return  # one queue confirms in order
            rest = rest[whole:]


_CONFIRM: Final = struct.Struct(">7x4xQxx")
_HEAD: Final = struct.Struct(">BHIHHQ")
_BODY: Final = struct.Struct(">BBHI")


def _content(properties: bytes, item: bytes) -> bytes:
    """Return the frames of a message's content."""
    head = _HEAD.pack(2, 1, 12 + len(properties), 60, 0, len(item))
    return b"%b%b%b%b\xce" % (head, properties, _BODY.pack(0xCE, 3, 1, len(item)), item)


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


_KINDS: Final[dict[str, Any]] = {
    "socket": _Socket,
    "amqp-socket": _AmqpSocket,
    "amqp-socket-celery": partial(_AmqpSocket, _CELERYS, {"x-max-priority": 3}, _CELERYS_BODY),
    "redis-py": _RedisPy,
    "pika": _Pika,
}
_client: Final[Any] = _KINDS[work.OPTION]()


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        _client.push([_item(payload)])


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        _client.push([_item(payload) for _ in range(size)])


def mark(label: str, delay_s: float) -> None:
    _client.push([_item(f"{label} {monotonic()} ")])


def _take_marks() -> None:
    while True:
        label, due_at = _client.pop().split()[:2]
        work.mark(label.decode(), float(due_at))


if __name__ == "__main__":
    _take_marks()
