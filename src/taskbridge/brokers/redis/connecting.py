"""How connections to a Redis server are made.

To where a plain `redis://` or `unix://` URL leads they are made here; all that asks for more (TLS, further options) is
redis-py's affair. For importing redis-py takes 80 ms and 15 MB: more than all else that a process needs that sends.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from taskbridge.brokers.redis.replies import OutOfTime, RedisTrouble, Replies, ReplyError
from taskbridge.exceptions import NotInstalledError, SettingsError
from taskbridge.settings import without_credentials

Word = str | bytes | int | float
"""A part of a command."""

Request = Sequence[Sequence[Word]]
"""Commands that are carried out together: one as it is, several in a transaction."""

_PORT: Final = 6379

_PLAIN_OPTIONS: Final = frozenset({"db", "client_name"})
"""The options of a URL that need no redis-py."""

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""When the system asks a silent peer whether it is there, as redis-py sets it (redis/connection.py)."""

# Limits of a pool of redis-py's, retries of its own, and what would change the type of replies.
_NOT_FOR_CONNECTIONS: Final = frozenset(
    {
        "max_connections",
        "timeout",
        "retry_on_timeout",
        "retry_on_error",
        "health_check_interval",
        "decode_responses",
        "socket_timeout",
        "socket_connect_timeout",
    }
)

_PROTOCOL: Final = re.compile(r"([?&])protocol=[^&]*&?")
"""The version of the protocol in a URL."""


class Connection:
    """An open connection, ready for commands; closed when nobody refers to it.

    Attributes:
        socket: The socket; one of TLS, if the URL asks for it.
    """

    __slots__ = ("_maker", "_pid", "socket")

    def __init__(self, socket: Any = None, maker: Any = None) -> None:
        self.socket: Any = socket
        self._maker = maker  # redis-py's own connection closes the socket when it goes
        self._pid = os.getpid()

    def close(self) -> None:
        """Close it, and end what another thread does with it."""
        if self._maker is not None:
            self._maker.disconnect()
            return
        if self._pid == os.getpid():  # of a forked process's socket only this end is closed
            with suppress(OSError):  # it is closed already
                self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __del__(self) -> None:
        if self._maker is None and self.socket is not None:
            self.socket.close()


def nothing_yet(used: socket.socket) -> tuple[type[OSError], ...]:
    """Return what a socket raises that doesn't wait, if nothing has arrived."""
    if type(used) is socket.socket:
        return (BlockingIOError,)
    import ssl  # here, for it takes 5 ms

    return ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError


Connect = Callable[[float], Connection]
"""Makes a connection within so many seconds, about; raises RedisTrouble, OSError or UnicodeError if it can't."""


def connector(url: str) -> Connect:
    """Return what makes connections to a URL, as redis-py reads it.

    Raises:
        SettingsError: redis-py can't read the URL.
    """
    try:
        return _direct(url) or _by_redis_py(url)
    except (TypeError, ValueError) as exc:
        problem = f"redis-py can't read {without_credentials(url)} and its options: {exc}"
        raise SettingsError("url", problem) from exc


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


def _direct(url: str) -> Connect | None:
    """Return what makes connections to a plain URL; None if it is not plain, or wrong."""
    parts = urlsplit(url)
    options = dict(reversed(parse_qsl(parts.query)))  # of an option that comes twice, the first counts
    if parts.scheme not in ("redis", "unix") or parts.fragment or not options.keys() <= _PLAIN_OPTIONS:
        return None
    db = options.get("db", parts.path.strip("/") if parts.scheme == "redis" else "") or "0"
    if not (db.isascii() and db.isdigit()):
        return None
    at: str | tuple[str, int] = unquote(parts.path)
    if parts.scheme == "redis":
        at = unquote(parts.hostname or "localhost"), parts.port or _PORT
    elif not at:
        return None
    return _Direct(
        at=at,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        db=int(db),
        client_name=options.get("client_name", ""),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Direct:
    """Connects to a host and port, or to the path of a socket."""

    at: str | tuple[str, int]
    user: str = field(repr=False)
    password: str = field(repr=False)
    db: int
    client_name: str

    def __call__(self, timeout_s: float) -> Connection:
        deadline = time.monotonic() + timeout_s
        made = Connection()  # before its socket, so that in a cycle it is finalized first, and closes that
        made.socket = self._open(deadline)
        try:
            self._begin(made.socket, deadline)
        except BaseException:
            made.close()
            raise
        return made

    def _open(self, deadline: float) -> socket.socket:
        error: OSError | None = None
        for family, kind, protocol, address in self._addresses():
            try:
                made = socket.socket(family, kind, protocol)
            except OSError as exc:  # the system has no such family
                error = exc
                continue
            try:
                _prepare(made)
                _limit(made, deadline)
                made.connect(address)
            except OSError as exc:
                made.close()
                error = exc
            except BaseException:
                made.close()
                raise
            else:
                return made
        raise error or OSError("the host has no address")

    def _addresses(self) -> Iterator[tuple[int, int, int, Any]]:
        if isinstance(self.at, str):
            yield socket.AF_UNIX, socket.SOCK_STREAM, 0, self.at
            return
        for family, kind, protocol, _, address in socket.getaddrinfo(*self.at, 0, socket.SOCK_STREAM):
            yield family, kind, protocol, address

    def _begin(self, made: socket.socket, deadline: float) -> None:
        """Log in and choose the database; the first reply also shows that this is Redis."""
        replies = Replies(made)
        if self.password or self.user:
            try:
                _ask(made, replies, deadline, "AUTH", *([self.user] if self.user else ()), self.password)
            except ReplyError as exc:
                if "wrong number of arguments" not in exc.text.lower():
                    raise ReplyError(f"WRONGPASS {exc.text}") from None
                _ask(made, replies, deadline, "AUTH", self.password)  # before Redis 6 there were no users
        if self.client_name:
            _ask(made, replies, deadline, "CLIENT", "SETNAME", self.client_name)
        try:
            _ask(made, replies, deadline, "CLIENT", "SETINFO", "LIB-NAME", "taskbridge")
        except ReplyError as exc:  # new in Redis 7.2, and proxies say in many ways that they don't know it
            if exc.breaks:
                raise
        if self.db:
            _ask(made, replies, deadline, "SELECT", self.db)


def _prepare(made: socket.socket) -> None:
    if made.family == socket.AF_UNIX:
        return
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)


def _ask(made: socket.socket, replies: Replies, deadline: float, *command: Word) -> None:
    _limit(made, deadline)
    made.sendall(pack([command]))
    replies.read()


def _limit(made: socket.socket, deadline: float) -> None:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise OutOfTime
    made.settimeout(left_s)


def _by_redis_py(url: str) -> Connect:
    """Return what has redis-py make connections."""
    try:
        from redis.exceptions import AuthenticationError, RedisError, ResponseError
        from redis.exceptions import TimeoutError as RedisTimeoutError
    except ModuleNotFoundError as exc:
        raise NotInstalledError("redis-py, which this URL needs,", "redis") from exc

    try:
        kind, options = _known_to_redis_py(url)
        if options["protocol"] != 2:  # replies are read in that one, which needs no round trip to agree
            kind, options = _known_to_redis_py(_PROTOCOL.sub(r"\1", url))
    except RedisError as exc:
        raise ValueError(str(exc)) from exc

    def connect(timeout_s: float) -> Connection:
        made = kind(**options, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        try:
            made.connect()
        except AuthenticationError as exc:  # whose own text, here and below, may hold the password
            raise ReplyError(f"WRONGPASS {exc}") from None
        except RedisTimeoutError as exc:
            raise OutOfTime from exc
        except ResponseError as exc:
            raise ReplyError(f"ERR {exc}") from None
        except RedisError as exc:
            raise RedisTrouble(str(exc)) from exc
        return Connection(made._sock, made)  # redis-py has no public way to it

    return connect


def _known_to_redis_py(url: str) -> tuple[Any, dict[str, Any]]:
    """Return what connections to a URL are made of; redis-py checks most options only when it makes one."""
    from redis import ConnectionPool
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool_type: Any = ConnectionPool  # its types leave out or misstate most of what is used of it
    pool: Any = pool_type.from_url(url, protocol=2)
    options = {key: value for key, value in pool.connection_kwargs.items() if key not in _NOT_FOR_CONNECTIONS}
    options["retry"] = Retry(NoBackoff(), 0)
    pool.connection_class(**options)
    return pool.connection_class, options
