"""Calls to one Redis server that end in time: connections, deadlines, and what an error says about the message."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from taskbridge import locks
from taskbridge.brokers.redis.connecting import Connect, Connection, Request, Word, connector, pack
from taskbridge.brokers.redis.replies import NotRedis, OutOfTime, RedisTrouble, Replies, ReplyError
from taskbridge.brokers.redis.scripts import Script
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import without_credentials

Outcome = Any
"""What became of a request: the reply (of a transaction, the list of replies), or a `BrokerUnavailable`."""

_LONGEST_IDLE_S: Final = 30.0
"""A connection that was idle for longer is not used again: what stands between may have dropped it silently."""

_WINDOW_BYTES: Final = 1 << 20
"""About how much is sent before the replies are read."""

_SMALL_BYTES: Final = 8192
"""What an idle connection takes in one call, whatever its peer does."""

_SLICE_S: Final = 0.1
"""How long a call that can be interrupted waits before it looks whether it is."""

_TROUBLE: Final = (RedisTrouble, OSError, UnicodeError)
"""What making or using a connection may raise; UnicodeError for a host that can't be a name."""

_SILENCE: Final = (OutOfTime, TimeoutError, BlockingIOError)
"""The same, if there was no answer in time."""


class _InterruptedError(RedisTrouble):
    """A call was given up because its caller is to stop."""


class _Link:
    """An open connection."""

    __slots__ = ("_poll", "_replies", "_timeout_s", "_waits_in_kernel", "connection", "released_at", "socket")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.socket = connection.socket
        self._replies = Replies(self.socket)
        self._timeout_s = 0.0
        self._waits_in_kernel = sys.platform == "linux" and type(self.socket) is socket.socket  # not TLS
        if self._waits_in_kernel:
            self.socket.settimeout(None)
        self._poll = select.poll()  # unlike select(), for any number of open files; unlike epoll, it opens none itself
        self._poll.register(self.socket, select.POLLIN)
        self.released_at: float = 0.0

    def rest(self) -> None:
        """Note that the connection is idle from now on."""
        self.released_at = time.monotonic()

    @property
    def is_stale(self) -> bool:
        return time.monotonic() - self.released_at > _LONGEST_IDLE_S

    def is_fit(self, trusted_s: float) -> bool:
        """Return whether it can be used again: an idle connection with something to read is closed, or out of step.

        Args:
            trusted_s: One that was in use so shortly before is not looked at.
        """
        idle_s = time.monotonic() - self.released_at
        if self._replies.has_more or idle_s > _LONGEST_IDLE_S:
            return False
        return idle_s < trusted_s or not self._poll.poll(0)

    def send(self, packed: bytes, deadline: float) -> None:
        if self._waits_in_kernel and len(packed) > _SMALL_BYTES:  # it may take several calls, each with its own time
            self.socket.settimeout(_left_s(deadline))
            self.socket.sendall(packed)
            self.socket.settimeout(None)
        else:
            self._limit(deadline)
            self.socket.sendall(packed)

    def read(self, deadline: float, stop: threading.Event | None) -> Any:
        """Return a reply; an error reply is raised."""
        if stop is not None:
            while not self._has_reply(min(_SLICE_S, _left_s(deadline))):
                _check(stop)
        self._limit(deadline)
        return self._replies.read()

    def _has_reply(self, timeout_s: float) -> bool:
        """Return whether there is something to read, at once or within so many seconds."""
        if self._replies.has_more or getattr(self.socket, "pending", _none)():  # TLS holds back what it has decrypted
            return True
        return bool(self._poll.poll(math.ceil(timeout_s * 1000)))

    def _limit(self, deadline: float) -> None:
        """Have the socket's calls end in time; a system call is spared where nearly the same time is left as before."""
        left_s = _left_s(deadline)
        if left_s * 0.98 < self._timeout_s <= left_s * 1.02:
            return
        if self._waits_in_kernel:
            limit_in_kernel(self.socket, left_s)
        else:
            self.socket.settimeout(left_s)
        self._timeout_s = left_s

    def close(self) -> None:
        self.connection.close()


def limit_in_kernel(blocking: socket.socket, timeout_s: float) -> None:
    """Have each call on a blocking socket fail with `BlockingIOError` after so many seconds.

    Python's own timeouts are two system calls for each one, and the interpreter's lock is let go for each: with many
    threads that takes longer than the call.
    """
    limit = struct.pack("ll", int(timeout_s), max(1, int(timeout_s % 1 * 1e6)))
    blocking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    blocking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _none() -> int:
    return 0


class _Connecting:
    """A connection being made, in a thread: so no part of it (looking the host up, TLS, AUTH) outlasts a deadline."""

    def __init__(self, connect: Connect, timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._lock = locks.Lock()
        self._ended = locks.Event()
        self._given_up = False
        self._made: Connection | None = None
        self._error: Exception | None = None
        try:
            threading.Thread(target=self._run, name="taskbridge-redis-connect", daemon=True).start()
        except RuntimeError:  # no thread is to be had, as when the interpreter ends
            self._run()

    def _run(self) -> None:
        try:
            self._made = self._connect(self._timeout_s)
        except Exception as exc:
            self._error = exc
        with self._lock:
            if self._given_up and self._made is not None:
                self._made.close()
            self._ended.set()

    def wait(self, deadline: float, stop: threading.Event | None) -> _Link:
        """Return the open connection.

        Raises:
            RedisTrouble, OSError, UnicodeError: It can't be made, or not in time.
        """
        try:
            while not self._ended.wait(_left_s(deadline) if stop is None else min(_SLICE_S, _left_s(deadline))):
                if stop is not None:
                    _check(stop)
        finally:
            self._give_up_unless_ended()
        if self._made is None:
            raise self._error or OutOfTime()
        return _Link(self._made)

    def _give_up_unless_ended(self) -> None:
        with self._lock:
            self._given_up = not self._ended.is_set()


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise OutOfTime
    return left_s


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise _InterruptedError


class Client:
    """Sends commands to one Redis server. Threads share it; a forked process makes its own connections.

    A call takes a connection that is idle, and healthy as far as can be seen, or makes one. No call is repeated once
    it may have been taken. Redis Cluster is not supported.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them.
        trusted_s: A connection that was in use so shortly before is not looked at, for a caller whom a failure costs
            nothing but time.

    Raises:
        SettingsError: redis-py can't read the URL.
    """

    def __init__(self, url: str, *, trusted_s: float = 0.0) -> None:
        self._trusted_s = trusted_s
        self._place = without_credentials(url)
        self._connect = connector(url)
        self._idle: deque[_Link] = deque()
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
                outcomes += self._exchange(window, b"".join(packed), deadline, None)
                window, packed, size = [], [], 0
        if window:
            outcomes += self._exchange(window, b"".join(packed), deadline, None)
        return outcomes

    def run(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Word],
        *,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> Any:
        """Run a script and return what it returns; the server is given its text only if it doesn't know it.

        Raises:
            BrokerUnavailable: As for `execute`.
        """
        deadline = time.monotonic() + timeout_s
        rest = (len(keys), *keys, *args)
        try:
            return self.execute([("EVALSHA", script.sha, *rest)], timeout_s=timeout_s, stop=stop)
        except BrokerUnavailable as exc:
            if not _is_unknown_script(exc):
                raise
        left_s = deadline - time.monotonic()
        return self.execute([("EVAL", script.text, *rest)], timeout_s=left_s, stop=stop)

    def run_along(
        self, script: Script, keys: Sequence[str], args: Sequence[Word], along: Sequence[Word], *, timeout_s: float
    ) -> Any:
        """Run a script in one transaction with a command that may be carried out twice, and return both replies.

        Where the server doesn't know the script, the command alone is carried out the first time.

        Raises:
            BrokerUnavailable: As for `execute`.
        """
        deadline = time.monotonic() + timeout_s
        rest = (len(keys), *keys, *args)
        try:
            return self.execute([along, ("EVALSHA", script.sha, *rest)], timeout_s=timeout_s)
        except BrokerUnavailable as exc:
            if not _is_unknown_script(exc):
                raise
        left_s = deadline - time.monotonic()
        return self.execute([along, ("EVAL", script.text, *rest)], timeout_s=left_s)

    def close(self) -> None:
        """Close the idle connections, and the others as their calls end; the next call makes new ones."""
        idle, self._idle = self._idle, deque()
        while idle:
            idle.popleft().close()

    # Connections

    def _pool(self) -> deque[_Link]:
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._idle = deque()
            self._pid = os.getpid()
        return self._idle

    def _take(self, idle: deque[_Link], deadline: float, stop: threading.Event | None) -> _Link:
        """Return the connection that was used last, if it is fit, or a new one.

        Raises:
            RedisTrouble, OSError, UnicodeError: None can be made.
        """
        left_s = _left_s(deadline)
        while idle:
            try:
                link = idle.pop()
            except IndexError:  # another thread took the last one
                break
            if link.is_fit(self._trusted_s):
                return link
            link.close()
        return _Connecting(self._connect, left_s).wait(deadline, stop)

    def _give_back(self, link: _Link, idle: deque[_Link]) -> None:
        if idle is not self._idle:  # closed meanwhile
            link.close()
            return
        try:
            oldest = idle.popleft()
        except IndexError:
            pass
        else:
            if oldest.is_stale:
                oldest.close()
            else:
                idle.appendleft(oldest)
        link.rest()
        idle.append(link)

    # Requests and replies

    def _exchange(
        self, requests: Sequence[Request], packed: bytes, deadline: float, stop: threading.Event | None
    ) -> list[Outcome]:
        """Send requests, read their replies, and return what became of each."""
        idle = self._pool()
        try:
            link = self._take(idle, deadline, stop)
        except _TROUBLE as exc:
            return [self._unavailable(exc, maybe_taken=False)] * len(requests)
        outcomes: list[Outcome] = []
        sent = False
        try:
            link.send(packed, deadline)
            sent = True
            for request in requests:
                outcomes.append(self._read(link, request, deadline, stop))
        except _TROUBLE as exc:
            link.close()
            if isinstance(exc, _SILENCE):
                _close_older(idle, link.released_at)
            if isinstance(exc, ReplyError):
                outcomes.append(self._unavailable(exc, maybe_taken=False))
            # What is not sent to its end is not carried out, but those before it may have been.
            lost = self._unavailable(exc, maybe_taken=sent or len(requests) > 1)
            return outcomes + [lost] * (len(requests) - len(outcomes))
        except BaseException:
            link.close()  # thrown into this thread: replies are still to come
            raise
        self._give_back(link, idle)
        return outcomes

    def _read(self, link: _Link, request: Request, deadline: float, stop: threading.Event | None) -> Outcome:
        """Return what became of a request.

        Raises:
            RedisTrouble, OSError: The connection can't be used any longer.
        """
        if len(request) == 1:
            try:
                return link.read(deadline, stop)
            except ReplyError as exc:
                if exc.breaks:
                    raise
                return self._unavailable(exc, maybe_taken=False)
        return self._read_transaction(link, len(request), deadline, stop)

    def _read_transaction(self, link: _Link, commands: int, deadline: float, stop: threading.Event | None) -> Outcome:
        refusal: ReplyError | None = None
        in_transaction = True
        for number in range(1 + commands):
            try:
                link.read(deadline, stop)
            except ReplyError as exc:
                if exc.breaks:
                    raise
                in_transaction = in_transaction and number > 0  # without MULTI, each command is carried out at once
                refusal = refusal or exc
        try:
            replies = link.read(deadline, stop)
        except ReplyError as exc:
            return self._unavailable(refusal or exc, maybe_taken=not in_transaction)
        if replies is None:  # nothing here is watched
            raise NotRedis("a transaction was not carried out")
        for reply in replies:
            if isinstance(reply, Exception):  # the wrong type of key, say; the other commands were carried out
                return self._unavailable(reply, maybe_taken=True)
        return replies

    def _unavailable(self, exc: Exception, *, maybe_taken: bool) -> BrokerUnavailable:
        if isinstance(exc, ReplyError) and exc.is_of_demoted:
            self.close()
        made = BrokerUnavailable(f"{self._place}: {_problem(exc)}", maybe_taken=maybe_taken)
        made.__cause__ = exc
        return made


def _close_older(idle: deque[_Link], released_at: float) -> None:
    """Close what has been idle for longer than a connection on which no answer came: it may have been dropped as well.

    Else each of these would cost a call all of its time. One that was new has no older ones beside it.
    """
    while idle:
        try:
            link = idle.popleft()
        except IndexError:  # another thread took the last one
            return
        if link.released_at > released_at:  # and so are those to the right of it
            idle.appendleft(link)
            return
        link.close()


def _is_unknown_script(exc: BrokerUnavailable) -> bool:
    return isinstance(exc.__cause__, ReplyError) and exc.__cause__.code == "NOSCRIPT"


def _problem(exc: Exception) -> str:
    """Return what an error says, without what was sent, and without where in a script it arose."""
    match exc:
        case _InterruptedError():
            return "given up, for the worker stops"
        case OutOfTime() | TimeoutError() | BlockingIOError():
            return "no answer in time"
        case ReplyError():
            return exc.problem
        case OSError(strerror=str(text)):
            return text
        case _:
            return str(exc)
