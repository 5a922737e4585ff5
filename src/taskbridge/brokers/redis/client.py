"""Calls to one Redis server that end in time: connections, deadlines, and what an error says about the message."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from redis import exceptions as errors

from taskbridge.brokers.redis.connection import (
    TROUBLE,
    Link,
    Request,
    StoppedError,
    Word,
    connected,
    connector,
    left_s,
    pack,
)
from taskbridge.brokers.redis.scripts import Script
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import without_credentials

Outcome = Any
"""What became of a request: the reply (of a transaction, the list of replies), or a `BrokerUnavailable`."""

_LONGEST_IDLE_S: Final = 30.0
"""A connection that was idle for longer is not used again: what stands between may have dropped it silently."""

_SPARE_S: Final = 5.0
"""A connection beside others that nobody needed for so long is closed: a burst of calls leaves several."""

_WINDOW_BYTES: Final = 1 << 20
"""About how much is sent before the replies are read."""

_SILENCE: Final = (errors.TimeoutError, TimeoutError)
"""What says that there was no answer in time."""

_REFUSALS: Final = (errors.ResponseError, errors.AuthenticationError, errors.BusyLoadingError)
"""What came as a reply: the command was not carried out."""


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
            if not isinstance(exc.__cause__, errors.NoScriptError):
                raise
        return self.execute([("EVAL", script.text, *rest)], timeout_s=deadline - time.monotonic(), stop=stop)

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
            if not isinstance(exc.__cause__, errors.NoScriptError):
                raise
        return self.execute([along, ("EVAL", script.text, *rest)], timeout_s=deadline - time.monotonic())

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
        return connected(self._connect, deadline, stop)

    def _is_fit(self, link: Link) -> bool:
        """Return whether a connection can be used again: if there is something to read, it is closed or out of step."""
        idle_s = time.monotonic() - link.used_at
        return idle_s < self._trusted_s or (idle_s <= _LONGEST_IDLE_S and not link.socket.can_read(0))

    def _give_back(self, link: Link, idle: deque[Link]) -> None:
        if idle is not self._idle:  # closed meanwhile
            link.close()
            return
        link.used_at = now = time.monotonic()
        try:
            oldest = idle.popleft()
        except IndexError:
            pass
        else:
            if now - oldest.used_at > min(_SPARE_S, _LONGEST_IDLE_S):
                oldest.close()
            else:
                idle.appendleft(oldest)
        idle.append(link)

    # Requests and replies

    def _exchange(
        self, requests: Sequence[Request], packed: bytes, deadline: float, stop: threading.Event | None
    ) -> list[Outcome]:
        """Send requests, read their replies, and return what became of each."""
        idle = self._pool()
        try:
            link = self._take(idle, deadline, stop)
        except TROUBLE as exc:
            return [self._unavailable(exc, maybe_taken=False)] * len(requests)
        link.socket.deadline, link.socket.stop = deadline, stop
        outcomes: list[Outcome] = []
        sent = False
        try:
            link.send(packed)
            sent = True
            for request in requests:
                outcomes.append(self._read(link, request))
        except TROUBLE as exc:
            link.close()
            if isinstance(exc, _SILENCE):
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
        if len(request) == 1:
            try:
                return link.read()
            except errors.ResponseError as exc:
                return self._unavailable(exc, maybe_taken=False)
        return self._read_transaction(link, len(request))

    def _read_transaction(self, link: Link, commands: int) -> Outcome:
        refusal: errors.ResponseError | None = None
        in_transaction = True
        for number in range(1 + commands):
            try:
                link.read()
            except errors.ResponseError as exc:
                in_transaction = in_transaction and number > 0  # without MULTI, each command is carried out at once
                refusal = refusal or exc
        try:
            replies = link.read()
        except errors.ResponseError as exc:
            return self._unavailable(refusal or exc, maybe_taken=not in_transaction)
        if replies is None:  # nothing here is watched
            raise errors.InvalidResponse("a transaction was not carried out")
        for reply in replies:
            if isinstance(reply, Exception):  # the wrong type of key, say; the other commands were carried out
                return self._unavailable(reply, maybe_taken=True)
        return replies

    def _unavailable(self, exc: Exception, *, maybe_taken: bool) -> BrokerUnavailable:
        if isinstance(exc, (errors.ReadOnlyError, errors.MasterDownError)):
            self.close()  # the server was the primary: new connections may lead to the one that is now
        made = BrokerUnavailable(f"{self._place}: {_problem(exc)}", maybe_taken=maybe_taken)
        made.__cause__ = None if _QUOTING in str(exc) else exc
        return made


_shared: Final[WeakValueDictionary[str, Client]] = WeakValueDictionary()


def client_of(url: str) -> Client:
    """Return the client of a URL that all in this process share which have no wishes of their own.

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
    while idle:
        try:
            link = idle.popleft()
        except IndexError:  # another thread took the last one
            return
        if link.used_at > used_at:  # and so are those to the right of it
            idle.appendleft(link)
            return
        link.close()


_QUOTING: Final = ", with args beginning with"
"""What stands before the arguments that an error quotes: they may be secret."""


def _problem(exc: Exception) -> str:
    """Return what an error says, without what was sent, and without where in a script it arose."""
    text = str(exc).partition(_QUOTING)[0].partition(" script: ")[0]
    match exc:
        case StoppedError():
            return "given up, for the worker stops"
        case errors.TimeoutError() | TimeoutError():
            return "no answer in time"
        case errors.AuthenticationError():
            return f"Redis refuses the credentials: {text}"
        case errors.BusyLoadingError():
            return "Redis is loading its data"
        case errors.OutOfMemoryError():
            return f"Redis is out of memory: {text}"
        case errors.ReadOnlyError():
            return f"this Redis is a read-only replica: {text}"
        case errors.MasterDownError():
            return f"this Redis is a replica without its primary: {text}"
        case errors.AskError() | errors.TryAgainError() | errors.ClusterDownError() | errors.ClusterCrossSlotError():
            return f"Redis Cluster is not supported: {text}"
        case errors.ResponseError():
            return f"Redis refuses: {text}"
        case errors.InvalidResponse() | ValueError() | RecursionError() if not isinstance(exc, UnicodeError):
            return f"what answers is not Redis: {text[:_MOST_SHOWN]}"
        case OSError(strerror=str(said)) | errors.ConnectionError(__context__=OSError(strerror=str(said))):
            return said
        case _:
            return text


_MOST_SHOWN: Final = 80
