"""Connections to a Redis server: redis-py's own, on sockets that end whatever is done with them by a deadline.

redis-py reads the URL, connects, logs in and reads replies. It limits each read of a socket by itself, so a server that
sends a byte now and then could hold a call for ever; here the limit is one for all that a call does.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

import redis
from redis import connection as _connection
from redis.exceptions import RedisError

from taskbridge import locks
from taskbridge.brokers.redis.scripts import Word
from taskbridge.exceptions import SettingsError
from taskbridge.settings import without_credentials

__all__ = [
    "TROUBLE",
    "BoundedSocket",
    "Connect",
    "Link",
    "Request",
    "StoppedError",
    "Word",
    "connected",
    "connector",
    "left_s",
    "pack",
]

Request = Sequence[Sequence[Word]]
"""Commands that are carried out together: one as it is, several in a transaction."""

TROUBLE: Final = (RedisError, OSError, ValueError, RecursionError)
"""What making or using a connection may raise: the last two if what answers is not Redis."""

_SLICE_S: Final = 0.1
"""How long a call that can be stopped waits before it looks whether it is."""

_SMALL_BYTES: Final = 8192
"""What an idle connection takes in one call, whatever its peer does."""

# Limits of a pool of redis-py's, retries of its own, and what would change the type of replies.
_NOT_FOR_CONNECTIONS: Final = frozenset(
    {
        "max_connections",
        "timeout",
        "retry",
        "retry_on_timeout",
        "retry_on_error",
        "health_check_interval",
        "decode_responses",
        "socket_timeout",
        "socket_connect_timeout",
    }
)


_redis_py: Any = _connection  # which has few types


class StoppedError(RedisError):
    """A call was given up because its caller is to stop."""


class BoundedSocket:
    """A socket whose calls end by a deadline, or soon after an event is set.

    Attributes:
        deadline: When calls end, by the monotonic clock.
        stop: Ends them with `StoppedError` when set; None if nothing does.
    """

    __slots__ = ("_in_kernel", "_limit_s", "_poll", "_recv", "_send", "_socket", "_waits", "deadline", "stop")

    def __init__(self, connected: Any, deadline: float) -> None:
        self._socket = connected
        self._recv: Callable[..., bytes] = connected.recv
        self._send: Callable[[bytes], None] = connected.sendall
        self.deadline: float = deadline
        self.stop: threading.Event | None = None
        self._waits = True
        self._limit_s = 0.0
        self._in_kernel = sys.platform == "linux" and type(connected) is socket.socket  # not TLS
        if self._in_kernel:
            connected.settimeout(None)
        self._poll = select.poll()  # unlike select(), for any number of open files; unlike epoll, it opens none itself
        self._poll.register(connected, select.POLLIN)

    def __getattr__(self, name: str) -> Any:
        """Return what the socket itself has: shutdown, close, fileno, ..."""
        return getattr(self._socket, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Don't wait from now on, if the time is 0; how long calls wait otherwise is for the deadline to say."""
        self._waits = timeout_s != 0
        if not self._in_kernel:
            self._socket.settimeout(0 if timeout_s == 0 else max(1e-6, self.deadline - time.monotonic()))
            self._limit_s = 0.0

    def recv(self, size: int) -> bytes:
        """Receive bytes."""
        if self._waits:
            if self.stop is not None:
                self._await(self.stop)
            self._limit()
            try:
                return self._recv(size)
            except BlockingIOError as exc:  # the kernel's own limit
                raise TimeoutError from exc
        return self._recv(size, socket.MSG_DONTWAIT) if self._in_kernel else self._recv(size)

    def recv_into(self, buffer: bytearray) -> int:
        """Receive bytes into a buffer, and return how many; hiredis' parser calls this."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _await(self, stop: threading.Event) -> None:
        while not self.can_read(min(_SLICE_S, left_s(self.deadline))):
            if stop.is_set():
                raise StoppedError

    def sendall(self, data: bytes) -> None:
        """Send all bytes."""
        if self._in_kernel and len(data) > _SMALL_BYTES:  # it may take several calls, each with a time of its own
            self._socket.settimeout(left_s(self.deadline))
            self._send(data)
            self._socket.settimeout(None)
            return
        self._limit()
        try:
            self._send(data)
        except BlockingIOError as exc:
            raise TimeoutError from exc

    def can_read(self, wait_s: float) -> bool:
        """Return whether there is something to read, at once or within so many seconds; it may be the end."""
        if not self._in_kernel and self._socket.pending():  # TLS holds back what it has decrypted
            return True
        return bool(self._poll.poll(math.ceil(wait_s * 1000)))

    def _limit(self) -> None:
        """Have the socket's calls end in time; a system call is spared where nearly the same time is left as before."""
        left = left_s(self.deadline)
        if left * 0.98 < self._limit_s <= left * 1.02:
            return
        if self._in_kernel:
            # Python's own timeouts are two system calls for each one, and the interpreter's lock is let go for each:
            # with many threads that takes longer than the call.
            limit = struct.pack("ll", int(left), max(1, int(left % 1 * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            self._socket.settimeout(left)
        self._limit_s = left


def left_s(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        TimeoutError: It is over.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Link:
    """An open connection.

    Attributes:
        socket: The socket under it.
        used_at: When it was last used, by the monotonic clock.
    """

    __slots__ = ("__weakref__", "_disconnect", "_is_closed", "_parser", "send", "socket", "used_at")

    def __init__(self, connection: Any, parser: Any, bounded: BoundedSocket) -> None:
        # Also where it is forgotten: of what is garbage together, sockets may be told before the connection, and warn.
        self._disconnect = weakref.finalize(self, connection.disconnect)
        self._disconnect.atexit = False
        self._parser = parser
        self._is_closed = False
        self.socket: BoundedSocket = bounded
        self.send: Callable[[bytes], None] = bounded.sendall
        self.used_at: float = 0.0

    def read(self) -> Any:
        """Return a reply, in bytes, by the socket's deadline; an error in a list is an item of it.

        Raises:
            redis.ResponseError: The reply is an error.
        """
        reply = self._parser.read_response(disable_decoding=True)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def can_read(self) -> bool:
        """Return whether there is something to read, or the connection is closed."""
        if self._is_closed:
            return True
        try:
            return bool(self._parser.can_read(0))
        except TROUBLE:
            return True

    def close(self) -> None:
        """Close it, and end what another thread does with it."""
        self._is_closed = True
        self._disconnect()


Connect = Callable[[float], Link]
"""Makes a connection within so many seconds, about; raises one of `TROUBLE` if it can't."""


def connector(url: str) -> Connect:
    """Return what makes connections to a URL, as redis-py reads it, but for timeouts, retries and limits of pools.

    Raises:
        SettingsError: redis-py can't read the URL.
    """
    try:
        kind, options = _known_to_redis_py(url)
    except (TypeError, ValueError, RedisError) as exc:
        problem = f"redis-py can't read {without_credentials(url)} and its options: {exc}"
        raise SettingsError("url", problem) from exc
    bounded = _bounded(kind)

    def connect(timeout_s: float) -> Link:
        parsers: list[Any] = []

        def parser(**given: Any) -> Any:
            parsers.append(_redis_py.DefaultParser(**given))  # hiredis', where that is installed
            return parsers[0]

        # Its own read_response() does more for each reply than the parser, for what is not used here.
        made = bounded(**options, parser_class=parser, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        made.connect()
        return Link(made, parsers[0], made.bounded)

    return connect


def _known_to_redis_py(url: str) -> tuple[Any, dict[str, Any]]:
    """Return what connections to a URL are made of; redis-py checks most options only when it makes one."""
    given: dict[str, Any] = {"db": 0, **_redis_py.parse_url(url)}
    kind: Any = given.pop("connection_class", redis.Connection)
    options = {key: value for key, value in given.items() if key not in _NOT_FOR_CONNECTIONS}
    kind(**options)
    options["protocol"] = 2  # in which replies have the same types whatever the version of redis-py
    if not issubclass(kind, redis.UnixDomainSocketConnection):
        options.setdefault("socket_keepalive", True)
    return kind, options


def _bounded(kind: Any) -> Any:
    """Return a class of connections like another one, on bounded sockets."""

    class Bounded(kind):  # type: ignore[misc]  # redis-py's own class depends on the URL
        """A connection of redis-py's."""

        def _connect(self) -> BoundedSocket:
            stock: Any = super()
            self.bounded = BoundedSocket(stock._connect(), time.monotonic() + self.socket_timeout)
            return self.bounded

    return Bounded


def connected(connect: Connect, deadline: float, stop: threading.Event | None = None) -> Link:
    """Make a connection in a thread, so that no part of it (looking the host up, TLS, AUTH) outlasts a deadline.

    Raises:
        redis.RedisError, OSError, ValueError: It can't be made, or not in time.
    """
    timeout_s = left_s(deadline)
    made: SimpleQueue[Link | Exception] = SimpleQueue()
    given_up = locks.Event()

    def run() -> None:
        try:
            made.put(connect(timeout_s))
        except Exception as exc:
            made.put(exc)
        if given_up.is_set():
            _close_made(made)

    try:
        threading.Thread(target=run, name="taskbridge-redis-connect", daemon=True).start()
    except RuntimeError:  # no thread is to be had, as when the interpreter ends
        run()
    try:
        outcome = _awaited(made, deadline, stop)
    except BaseException:
        given_up.set()
        _close_made(made)
        raise
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _awaited(made: SimpleQueue[Link | Exception], deadline: float, stop: threading.Event | None) -> Link | Exception:
    while True:
        wait_s = left_s(deadline)
        with suppress(Empty):
            return made.get(timeout=wait_s if stop is None else min(_SLICE_S, wait_s))
        if stop is not None and stop.is_set():
            raise StoppedError


def _close_made(made: SimpleQueue[Link | Exception]) -> None:
    with suppress(Empty):
        outcome = made.get_nowait()
        if isinstance(outcome, Link):
            outcome.close()


def pack(request: Request) -> bytes:
    """Return what is sent for a request; redis-py's own way takes twice as long."""
    if len(request) == 1:
        return b"".join(_parts(request))
    return b"".join([_MULTI, *_parts(request), _EXEC])


def _parts(commands: Request) -> list[bytes]:
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else word.encode() if isinstance(word, str) else b"%r" % word
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return parts


_MULTI: Final = b"".join(_parts([("MULTI",)]))
_EXEC: Final = b"".join(_parts([("EXEC",)]))
