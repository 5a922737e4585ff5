"""Calls to one Redis server that end in time, on redis-py's connections.

redis-py reads the URL, connects, logs in and reads replies. It limits each read of a socket by itself, so a server that
sends a byte now and then could hold a call for ever; here one deadline holds for all that a call does.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Final

import redis
from redis import connection as _connection
from redis import exceptions as errors

from taskbridge.brokers.redis.scripts import Call, Word
from taskbridge.exceptions import BrokerUnavailable, SettingsError
from taskbridge.settings import without_credentials

Request = Sequence[Sequence[Word]]
"""Commands that are carried out together: one as it is, several in a transaction."""

Outcome = Any
"""What became of a request: the reply (of a transaction, the list of replies), or a `BrokerUnavailable`."""

TROUBLE: Final = (errors.RedisError, OSError, ValueError, RecursionError)
"""What making or using a connection may raise: the last two if what answers is not Redis."""

_REFUSALS: Final = (errors.ResponseError, errors.AuthenticationError, errors.BusyLoadingError)
"""What came as a reply: the command was not carried out."""

_LONGEST_IDLE_S: Final = 30.0
"""A connection that was idle for longer is not used again: what stands between may have dropped it silently."""

_SPARE_S: Final = 5.0
"""A connection beside others that nobody needed for so long is closed: a burst of calls leaves several."""

_WINDOW_BYTES: Final = 1 << 20
"""About how much is sent before the replies are read."""

_SLICE_S: Final = 0.1
"""How long a call that can be stopped waits before it looks whether it is."""

_SMALL_BYTES: Final = 8192
"""What an idle connection takes in one system call, whatever its peer does."""

# Limits of a pool of redis-py's, retries of its own, and what would change the type of replies.
_NOT_FOR_CONNECTIONS: Final = {
    *("max_connections", "timeout", "retry", "retry_on_timeout", "retry_on_error", "health_check_interval"),
    *("decode_responses", "socket_timeout", "socket_connect_timeout"),
}

_redis_py: Final[Any] = _connection  # which has few types


class Link:
    """An open connection. To redis-py it is the socket, so that each of its calls ends by a deadline.

    Attributes:
        raw: The socket itself.
        owner: The connection of redis-py's.
        parser: Its parser of replies.
        deadline: When calls end, by the monotonic clock.
        used_at: When a client has last used it.
    """

    def __init__(self, raw: Any, timeout_s: float) -> None:
        self.raw: Any = raw
        self.owner: Any = None
        self.parser: Any = None
        self.deadline: float = time.monotonic() + timeout_s
        self.used_at: float = 0.0
        self._sendall: Final[Callable[[bytes], None]] = raw.sendall
        self._recv: Final[Callable[[int, int], bytes]] = raw.recv
        self._pid = os.getpid()
        self._waits = True
        self._limit_s = 0.0
        self._in_kernel = sys.platform == "linux" and type(raw) is socket.socket  # not TLS
        if self._in_kernel:
            raw.settimeout(None)
        self._poll = select.poll()  # unlike select(), for any number of open files; unlike epoll, it opens none itself
        self._poll.register(raw, select.POLLIN)
        weakref.finalize(self, raw.close).atexit = False  # else the socket warns where all of this is garbage together

    def __getattr__(self, name: str) -> Any:
        """Return what the socket itself has: shutdown, fileno, ..."""
        return getattr(self.raw, name)

    def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            OSError: The connection is closed, or the deadline is over.
        """
        if self._in_kernel and len(data) > _SMALL_BYTES:  # it may take several calls, each with a time of its own
            self.raw.settimeout(left_s(self.deadline))
            self.raw.sendall(data)
            self.raw.settimeout(None)
            return
        self._limit()
        try:
            self._sendall(data)
        except BlockingIOError as exc:  # the kernel's own limit
            raise TimeoutError from exc

    def read(self) -> Any:
        """Return a reply, in bytes; an error in a list is an item of it.

        Raises:
            redis.ResponseError: The reply is an error.
            redis.RedisError, OSError, ValueError, RecursionError: There is none, or what answers is not Redis.
        """
        reply = self.parser.read_response(disable_decoding=True)  # the connection's own does more, unused here
        if isinstance(reply, Exception):
            raise reply
        return reply

    def can_read(self, wait_s: float = 0.0) -> bool:
        """Return whether there is something to read, at once or within so many seconds; or the connection is closed."""
        try:
            return bool(self.parser.can_read(0)) or (wait_s > 0 and self.has_come(wait_s))
        except TROUBLE:
            return True

    def has_come(self, wait_s: float) -> bool:
        """Return whether the socket has something, at once or within so many seconds; it may be the end."""
        if not self._in_kernel and self.raw.pending():  # TLS holds back what it has decrypted
            return True
        return bool(self._poll.poll(wait_s and math.ceil(wait_s * 1000)))

    def close(self) -> None:
        """Close the connection, and end what another thread does with it."""
        if self._pid == os.getpid():
            with suppress(OSError):
                self.raw.shutdown(socket.SHUT_RDWR)
        self.raw.close()

    # What redis-py calls

    sendall = send

    def settimeout(self, timeout_s: float | None) -> None:
        """Don't wait from now on, if the time is 0; how long calls wait otherwise is for the deadline to say."""
        self._waits = timeout_s != 0
        if not self._in_kernel:
            self.raw.settimeout(None if self._waits else 0)
            self._limit_s = 0.0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive bytes."""
        if self._waits:
            self._limit()
        elif self._in_kernel:
            flags |= socket.MSG_DONTWAIT
        try:
            return self._recv(size, flags)
        except BlockingIOError as exc:
            if self._waits:
                raise TimeoutError from exc
            raise

    def recv_into(self, buffer: bytearray) -> int:
        """Receive bytes into a buffer, and return how many; hiredis' parser calls this."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _limit(self) -> None:
        """Have the socket's calls end in time; a system call is spared where nearly the same time is left as before."""
        left = left_s(self.deadline)
        if left * 0.98 < self._limit_s <= left * 1.02:
            return
        if self._in_kernel:
            # Python's own timeouts are two system calls for each one, and the interpreter's lock is let go for each:
            # with many threads that takes longer than the call.
            limit = struct.pack("ll", int(left), max(1, int(left % 1 * 1e6)))
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            self.raw.settimeout(left)
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


Connect = Callable[[float], Link]
"""Makes a connection within so many seconds, about; raises one of `TROUBLE` if it can't."""


def connector(url: str) -> Connect:
    """Return what makes connections to a URL, as redis-py reads it, but for timeouts, retries and limits of pools.

    Raises:
        SettingsError: redis-py can't read the URL.
    """
    try:
        given: dict[str, Any] = {"db": 0, **_redis_py.parse_url(url)}
        kind: Any = given.pop("connection_class", redis.Connection)
        options = {key: value for key, value in given.items() if key not in _NOT_FOR_CONNECTIONS}
        kind(**options)  # redis-py checks most options only when it makes a connection
    except (TypeError, ValueError, errors.RedisError) as exc:
        problem = f"redis-py can't read {without_credentials(url)} and its options: {exc}"
        raise SettingsError("url", problem) from exc
    options["protocol"] = 2  # in which replies have the same types whatever the version of redis-py
    if not issubclass(kind, redis.UnixDomainSocketConnection):
        options.setdefault("socket_keepalive", True)

    bounded = _bounded(kind)

    def connect(timeout_s: float) -> Link:
        parsers: list[Any] = []

        def parser(**given: Any) -> Any:
            parsers.append(_redis_py.DefaultParser(**given))  # hiredis', where that is installed
            return parsers[0]

        made: Any = bounded(**options, parser_class=parser, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        made.connect()
        link: Link = made.link
        link.owner, link.parser = made, parsers[0]
        return link

    return connect


def _bounded(kind: Any) -> Any:
    """Return a class of connections like another one, with a `Link` for a socket."""

    class Bounded(kind):  # type: ignore[misc]  # redis-py's own class depends on the URL
        def _connect(self) -> Link:
            stock: Any = super()
            self.link = Link(stock._connect(), self.socket_timeout)
            return self.link

    return Bounded


def _connected(connect: Connect, deadline: float, stop: threading.Event | None) -> Link:
    """Make a connection in a thread, so that no part of it (looking the host up, TLS, AUTH) outlasts a deadline.

    Raises:
        redis.RedisError, OSError, ValueError: It can't be made, or not in time.
    """
    timeout_s = left_s(deadline)
    made: Future[Link] = Future()

    def run() -> None:
        try:
            link = connect(timeout_s)
        except Exception as exc:
            if made.set_running_or_notify_cancel():
                made.set_exception(exc)
        else:
            if made.set_running_or_notify_cancel():
                made.set_result(link)
            else:  # nobody waits any longer
                link.close()

    try:
        threading.Thread(target=run, name="taskbridge-redis-connect", daemon=True).start()
    except RuntimeError:  # no thread is to be had, as when the interpreter ends
        run()
    try:
        while not made.done():
            wait([made], left_s(deadline) if stop is None else min(_SLICE_S, left_s(deadline)))
            if stop is not None:
                _raise_if(stop)
        return made.result()
    except BaseException:
        if not made.cancel() and made.exception() is None:
            made.result().close()
        raise


def _raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise errors.RedisError("given up, for the worker stops")


def pack(request: Request) -> bytes:
    """Return what is sent for a request; redis-py's own way takes twice as long."""
    commands = request if len(request) == 1 else (("MULTI",), *request, ("EXEC",))
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else word.encode() if isinstance(word, str) else b"%r" % word
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Client:
    """Sends commands to one Redis server. Threads share it; a forked process makes its own connections.

    A call takes a connection that is idle, and healthy as far as can be seen, or makes one. No call is repeated once
    it may have been taken.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them.

    Raises:
        SettingsError: redis-py can't read the URL.
    """

    def __init__(self, url: str) -> None:
        self._place = without_credentials(url)
        self._connect = connector(url)
        self._idle: deque[Link] = deque()
        self._pid = os.getpid()

    def execute(self, request: Request, *, timeout_s: float, stop: threading.Event | None = None) -> Any:
        """Carry a request out and return its reply.

        Args:
            request: What to carry out.
            timeout_s: How long it may take in all.
            stop: Gives up when set, within 0.3 s.

        Raises:
            BrokerUnavailable: It was not carried out, or it isn't known whether it was.
        """
        [outcome] = self._exchange([request], pack(request), time.monotonic() + timeout_s, stop)
        if isinstance(outcome, BrokerUnavailable):
            raise outcome
        return outcome

    def execute_all(self, requests: Sequence[Request], *, timeout_s: float) -> list[Outcome]:
        """Carry requests out in order, pipelined, each for itself, and return what became of each."""
        deadline = time.monotonic() + timeout_s
        outcomes: list[Outcome] = []
        window: list[Request] = []
        packed: list[bytes] = []
        size = 0
        for request in requests:
            window.append(request)
            packed.append(pack(request))
            size += len(packed[-1])
            if size >= _WINDOW_BYTES:
                outcomes += self._exchange(window, b"".join(packed), deadline)
                window, packed, size = [], [], 0
        return outcomes + self._exchange(window, b"".join(packed), deadline) if window else outcomes

    def run(
        self,
        call: Call,
        *,
        timeout_s: float,
        along: Sequence[Word] | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """Run a script and return what it returns; the server is given its text only if it doesn't know it.

        Args:
            call: The script, and what it works on.
            timeout_s: How long it may take in all.
            along: A command for the same transaction, whose reply comes first then. It is carried out twice where the
                server doesn't know the script.
            stop: Gives up when set, within 0.3 s.

        Raises:
            BrokerUnavailable: As for `execute`.
        """
        deadline = time.monotonic() + timeout_s
        first = () if along is None else (along,)
        rest = (len(call.keys), *call.keys, *call.args)
        try:
            return self.execute((*first, ("EVALSHA", call.script.sha, *rest)), timeout_s=timeout_s, stop=stop)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, errors.NoScriptError):
                raise
        left = deadline - time.monotonic()
        return self.execute((*first, ("EVAL", call.script.text, *rest)), timeout_s=left, stop=stop)

    def close(self) -> None:
        """Close the idle connections, and the others as their calls end; the next call makes new ones."""
        idle, self._idle = self._idle, deque()
        while idle:
            idle.popleft().close()

    # Connections

    def _pool(self) -> deque[Link]:
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._idle = deque()
            self._pid = os.getpid()
        return self._idle

    def _take(self, idle: deque[Link], deadline: float, stop: threading.Event | None) -> Link:
        """Return the connection that was used last, if it is fit, or a new one.

        Raises:
            redis.RedisError, OSError, ValueError: None can be made.
        """
        left_s(deadline)
        while idle:
            try:
                link = idle.pop()
            except IndexError:  # another thread took the last one
                break
            if self._is_fit(link):
                return link
            link.close()
        return _connected(self._connect, deadline, stop)

    def _is_fit(self, link: Link) -> bool:
        """Return whether a connection can be used again: if there is something to read, it is closed or out of step."""
        return time.monotonic() - link.used_at <= _LONGEST_IDLE_S and not link.has_come(0)

    def _give_back(self, link: Link, idle: deque[Link]) -> None:
        if idle is not self._idle:  # closed meanwhile
            link.close()
            return
        link.used_at = now = time.monotonic()
        idle.append(link)
        try:
            oldest = idle.popleft()
        except IndexError:  # another thread took the last one
            return
        if now - oldest.used_at > min(_SPARE_S, _LONGEST_IDLE_S):
            oldest.close()
        else:
            idle.appendleft(oldest)

    # Requests and replies

    def _exchange(
        self, requests: Sequence[Request], packed: bytes, deadline: float, stop: threading.Event | None = None
    ) -> list[Outcome]:
        """Send requests, read their replies, and return what became of each."""
        idle = self._pool()
        try:
            link = self._take(idle, deadline, stop)
        except TROUBLE as exc:
            return [self._unavailable(exc, maybe_taken=False)] * len(requests)
        link.deadline = deadline
        outcomes: list[Outcome] = []
        sent = False
        try:
            link.send(packed)
            sent = True
            while stop is not None and not link.has_come(min(_SLICE_S, left_s(deadline))):
                _raise_if(stop)
            for request in requests:
                outcomes.append(self._read(link, request))
        except TROUBLE as exc:
            link.close()
            if isinstance(exc, (errors.TimeoutError, TimeoutError)):
                _close_older(idle, link.used_at)
            if isinstance(exc, _REFUSALS):
                outcomes.append(self._unavailable(exc, maybe_taken=False))
            # What is not sent to its end is not carried out, but those before it may have been.
            lost = self._unavailable(exc, maybe_taken=sent or len(requests) > 1)
            return outcomes + [lost] * (len(requests) - len(outcomes))
        except BaseException:
            link.close()  # thrown into this thread: replies are still to come
            raise
        self._give_back(link, idle)
        return outcomes

    def _read(self, link: Link, request: Request) -> Outcome:
        """Return what became of a request.

        Raises:
            redis.RedisError, OSError, ValueError: The connection can't be used any longer.
        """
        refusal: errors.ResponseError | None = None
        in_transaction = True
        for number in range(1 + len(request) if len(request) > 1 else 0):  # of MULTI and of what it queues
            try:
                link.read()
            except errors.ResponseError as exc:
                in_transaction = in_transaction and number > 0  # without MULTI, each command is carried out at once
                refusal = refusal or exc
        try:
            reply = link.read()
        except errors.ResponseError as exc:
            return self._unavailable(refusal or exc, maybe_taken=not in_transaction)
        if len(request) == 1:
            return reply
        if reply is None:  # nothing here is watched
            raise errors.InvalidResponse("a transaction was not carried out")
        for each in reply:
            if isinstance(each, Exception):  # the wrong type of key, say; the other commands were carried out
                return self._unavailable(each, maybe_taken=True)
        return reply

    def _unavailable(self, exc: Exception, *, maybe_taken: bool) -> BrokerUnavailable:
        if isinstance(exc, (errors.ReadOnlyError, errors.MasterDownError)):
            self.close()  # the server was the primary: new connections may lead to the one that is now
        made = BrokerUnavailable(f"{self._place}: {_problem(exc)}", maybe_taken=maybe_taken)
        made.__cause__ = None if _QUOTING in str(exc) else exc
        return made


_shared: Final[weakref.WeakValueDictionary[str, Client]] = weakref.WeakValueDictionary()


def client_of(url: str) -> Client:
    """Return the client of a URL that all in this process share.

    Where it is closed, only its idle connections are: whoever else uses it makes new ones.

    Raises:
        SettingsError: redis-py can't read the URL.
    """
    client = _shared.get(url)
    return _shared.setdefault(url, Client(url)) if client is None else client


def _close_older(idle: deque[Link], used_at: float) -> None:
    """Close what has been idle for longer than a connection on which no answer came: it may have been dropped as well.

    Else each of these would cost a call all of its time. One that was new has no older ones beside it.
    """
    with suppress(IndexError):  # another thread took the last one
        while True:
            link = idle.popleft()
            if link.used_at > used_at:  # and so are those to the right of it
                idle.appendleft(link)
                return
            link.close()


_QUOTING: Final = ", with args beginning with"
"""What stands before the arguments that an error quotes: they may be secret."""

_PROBLEMS: Final = (
    ((errors.TimeoutError, TimeoutError), "no answer in time"),
    (errors.AuthenticationError, "Redis refuses the credentials: {}"),
    (errors.BusyLoadingError, "Redis is loading its data"),
    (errors.OutOfMemoryError, "Redis is out of memory: {}"),
    (errors.ReadOnlyError, "this Redis is a read-only replica: {}"),
    (errors.MasterDownError, "this Redis is a replica without its primary: {}"),
    (
        (errors.AskError, errors.TryAgainError, errors.ClusterDownError, errors.ClusterCrossSlotError),
        "Redis Cluster is not supported: {}",
    ),
    (errors.ResponseError, "Redis refuses: {}"),
    (UnicodeError, "{}"),
    ((errors.InvalidResponse, ValueError, RecursionError), "what answers is not Redis: {:.80}"),
)


def _problem(exc: Exception) -> str:
    """Return what an error says, without what was sent, and without where in a script it arose."""
    text = str(exc).partition(_QUOTING)[0].partition(" script: ")[0]
    for kinds, said in _PROBLEMS:
        if isinstance(exc, kinds):
            return said.format(text)
    cause = exc if isinstance(exc, OSError) else exc.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else text
