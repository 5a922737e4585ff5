"""Calls to Redis that end in time, on redis-py's connections.

redis-py reads the URL, connects, logs in and reads replies. It limits each read of a socket by itself, so a server that
sends a byte now and then could hold a call for ever; here one deadline holds for all that a call does.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import redis
from redis import connection as _connection
from redis import exceptions as errors

from taskbridge.background import in_time
from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis.places import REFUSALS, TROUBLE, Address, Place
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import without_credentials

Word = str | bytes | int | float  # a part of a command
Request = Sequence[Sequence[Word]]  # commands that are carried out together: one as it is, several in a transaction
Outcome = Any  # what became of a request: the reply (of a transaction, the list of replies), or a `BrokerUnavailable`

_LONGEST_IDLE_S: Final = 30.0
"""A connection that was idle for longer is not used again: what stands between may have dropped it silently."""

_SPARE_S: Final = 5.0
"""A connection beside others that nobody needed for so long is closed: a burst of calls leaves several."""

_WINDOW_BYTES: Final = 1 << 20  # about how much is sent before the replies are read
_AGAIN_S: Final = 0.1  # how long it takes until what no server has taken is tried again, where another one may take it

_CONTEXT_S: Final = 60.0
"""How long connections share what TLS needs, such as the certificates of the system; files may be renewed."""

_PART_OF_WAIT: Final = 0.9
"""For which part of the time that is left Redis waits for replicas; the rest is for its answer."""

_OF_ALL: Final = (errors.TimeoutError, TimeoutError, errors.ReadOnlyError, errors.MasterDownError, errors.MovedError)
"""What befell one connection that will befall the others."""

_NOT_YET: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket raises that can't do something at once."""

_NOT_TAKEN: Final = (errors.OutOfMemoryError, errors.ReadOnlyError)
"""What refuses a script's first write, and no later one."""

_redis_py: Final[Any] = _connection  # which has few types


class Link:
    """An open connection. To redis-py it is the socket, so that each of its calls ends by a deadline.

    The socket itself (`raw`) never blocks: who has to wait polls it, until `deadline` by the monotonic clock.
    """

    def __init__(self, raw: Any, timeout_s: float) -> None:
        raw.setblocking(False)
        self.raw: Any = raw
        self.owner: Any = None  # the connection of redis-py's
        self.parser: Any = None  # of replies, the connection's
        self.deadline: float = time.monotonic() + timeout_s
        self.used_at: float = 0.0  # when a client has last used it
        self.address: Address | None = None  # where it leads, if it may lead elsewhere some day
        self._pid = os.getpid()
        self._waits = True
        self._send: Final[Callable[[bytes | memoryview], int]] = raw.send
        self._recv: Final[Callable[[int, int], bytes]] = raw.recv
        self._decrypted: Final[Callable[[], int]] = getattr(raw, "pending", int)
        self._poll = select.poll()  # unlike select(), for any number of open files; unlike epoll, it opens none itself
        self._poll.register(raw, select.POLLIN)
        weakref.finalize(self, raw.close).atexit = False  # else the socket warns where all of this is garbage together

    def __getattr__(self, name: str) -> Any:
        """Return what the socket itself has: shutdown, fileno, ..."""
        return getattr(self.raw, name)

    def send(self, data: bytes) -> None:
        """Send all bytes; raises `OSError` if the connection is closed, or the deadline is over."""
        rest: bytes | memoryview = data
        while rest:
            try:
                sent = self._send(rest)
            except _NOT_YET:
                sent = 0
            if sent == len(rest):
                return
            rest = memoryview(rest)[sent:]
            room = select.poll()
            room.register(self.raw, select.POLLOUT)
            room.poll(_left_s(self.deadline) * 1000)

    def read(self) -> Any:
        """Return a reply, in bytes; an error in a list is an item of it.

        Raises `redis.ResponseError` if the reply is an error; another of `TROUBLE` if there is none, or none of Redis'.
        """
        reply = self.parser.read_response(disable_decoding=True)  # the connection's own does more, unused here
        if isinstance(reply, Exception):
            raise reply
        return reply

    def ask(self, *command: Word) -> Any:
        """Return the reply to a command, by RESP2 or RESP3; raises as `send` and `read` do."""
        self.send(pack([command]))
        return self.owner.read_response(disable_decoding=True)

    def can_read(self, wait_s: float = 0.0) -> bool:
        """Return whether there is something to read, at once or within so many seconds; or the connection is closed."""
        try:
            return bool(self.parser.can_read(0)) or (wait_s > 0 and self.has_come(wait_s))
        except TROUBLE:
            return True

    def has_come(self, wait_s: float) -> bool:
        """Return whether the socket has something, at once or within so many seconds; it may be the end."""
        return bool(self._decrypted()) or bool(self._poll.poll(wait_s and math.ceil(wait_s * 1000)))

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

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive bytes."""
        while True:
            if self._waits and not self.has_come(_left_s(self.deadline)):
                raise TimeoutError
            try:
                return self._recv(size, flags)
            except _NOT_YET:
                if not self._waits:
                    raise  # else a part of what TLS has to decrypt has come

    def recv_into(self, buffer: bytearray) -> int:
        """Receive bytes into a buffer, and return how many; hiredis' parser calls this."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Contexts:
    """What connections to one place need for TLS; redis-py makes it for each of them, which takes 20 ms."""

    def __init__(self) -> None:
        self._last: tuple[ssl.SSLContext, float] | None = None  # and when it was made

    def connected(self, connection: Any, connect: Callable[[], Any]) -> Any:
        """Return the socket of a connection of redis-py's, whose own way is `connect`."""
        last = self._last  # read once: another thread may connect at the same time
        if last is None or time.monotonic() - last[1] > _CONTEXT_S:
            made = connect()
            self._last = made.context, time.monotonic()
            return made
        raw: socket.socket = _redis_py.Connection._connect(connection)
        try:
            return last[0].wrap_socket(raw, server_hostname=connection.host)
        except BaseException:
            self._last = None  # certificates may have been renewed
            raw.close()
            raise


def _has_plain_tls(place: Place) -> bool:
    """Return whether connections to a place have TLS, and redis-py does no more for it than to wrap the socket."""
    kind: type[object] = place.kind
    return issubclass(kind, redis.SSLConnection) and not any("ocsp" in name for name in place.options)


Connect = Callable[[float], Link]
"""Makes a connection within so many seconds, about; raises one of `TROUBLE` if it can't."""


def connector(place: Place, *, protocol: int = 2) -> Connect:
    """Return what makes connections to a place.

    `protocol` 2 is RESP2, in which replies have the same types whatever the version of redis-py. The replies of RESP3
    only the connection of redis-py's (`Link.owner`) can read.
    """
    kind: Any = place.kind
    contexts = _Contexts() if _has_plain_tls(place) else None

    class Bounded(kind):  # type: ignore[misc]  # redis-py's own class depends on the URL
        def _connect(self) -> Link:
            stock: Any = super()
            raw = stock._connect() if contexts is None else contexts.connected(self, stock._connect)
            self.link = Link(raw, self.socket_timeout)
            return self.link

    options = {**place.options, "protocol": protocol}
    if not issubclass(kind, redis.UnixDomainSocketConnection):
        options.setdefault("socket_keepalive", True)

    def connect(timeout_s: float, **address: Any) -> Link:
        parsers: list[Any] = []

        def parser(**given: Any) -> Any:
            parsers.append(_redis_py.DefaultParser(**given))  # hiredis', where that is installed
            return parsers[0]

        limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        made: Any = Bounded(**{**options, **address}, parser_class=parser, **limits)
        made.connect()
        link: Link = made.link
        link.owner, link.parser = made, parsers[0]
        return link

    def connect_to(address: Address, timeout_s: float) -> Link:
        link = connect(timeout_s, host=address[0], port=address[1])
        link.address = address
        return link

    return partial(place.connect, connect_to) if place.may_move else connect


def pool(place: Place, **options: Any) -> Any:
    """Return a pool of redis-py's, made with these options, whose connections lead to a place."""
    connect = connector(place)
    kind: Any = place.kind

    class Placed(kind):  # type: ignore[misc]  # as above
        def _connect(self) -> Any:
            if place.may_move:
                link: Any = connect(self.socket_connect_timeout)
                link.close()
                self.host, self.port = link.address
            stock: Any = super()
            return stock._connect()

        def read_response(self, *args: Any, **options: Any) -> Any:
            stock: Any = super()
            try:
                return stock.read_response(*args, **options)
            except (errors.MovedError, errors.ReadOnlyError):
                self.disconnect()  # the next command is to find where it leads now
                raise

    return redis.ConnectionPool(Placed, **{**place.options, **options})


def pack(request: Request) -> bytes:
    """Return what is sent for a request; redis-py's own way takes twice as long."""
    commands = request if len(request) == 1 else (("MULTI",), *request, ("EXEC",))
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word.encode() if isinstance(word, str) else word if isinstance(word, bytes) else b"%r" % word
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


_texts: Final[dict[Word, str]] = {}  # of each script its text, by the name by which a server knows it: the text's SHA-1


class Script:
    """A Lua script; called with its keys and arguments, it is a command. Its file says what they are, and the reply.

    A script that fails for want of memory or on a replica has changed nothing, for Redis refuses its first write then,
    and no later one. A `kill -9` of the server keeps all of a script's changes or none. Its text is in files of the
    folder `lua` beside the module whose `__file__` is given; several are joined.
    """

    def __init__(self, beside: str, *names: str) -> None:
        files = (__file__, "common"), *[(beside, name) for name in names]
        text = "\n".join((Path(module).parent / "lua" / f"{name}.lua").read_text("utf-8") for module, name in files)
        self._sha: Final = sha1(text.encode(), usedforsecurity=False).hexdigest()
        _texts[self._sha] = text

    def __call__(self, keys: Sequence[str], *args: Word) -> RedisCommand:
        """Return a command that runs the script."""
        return "EVALSHA", self._sha, len(keys), *keys, *args


class Client:
    """Sends commands to the Redis that has a namespace's keys. Threads share it; a forked process connects anew.

    A call takes a connection that is idle, and healthy as far as can be seen, or makes one. No call is repeated once it
    may have been taken. What surely was not is tried again until its time is over, if another server may take it.

    `places` says what URLs there are; raises `SettingsError` if redis-py can't read one. The namespace counts only if
    it is in braces.
    """

    def __init__(self, url: str, namespace: str = "") -> None:
        self._shown = without_credentials(url)
        self.place: Final = Place(url, namespace)
        self._connect = connector(self.place)
        self._packed: Final[Callable[[Request], bytes]] = self._with_absent if self.place.absent else pack
        self._idle: deque[Link] = deque()
        self._pid = os.getpid()

    def execute(self, request: Request, *, timeout_s: float, replicas: int = 0, once: bool = False) -> Any:
        """Carry a request out, in so many seconds at most, and return its reply once so many replicas have confirmed.

        Where another server may take it, it is tried again until then, or `once` where the caller does the rest. Raises
        `BrokerUnavailable` if it was not carried out, or it isn't known whether it was; or if too few replicas have it.
        """
        deadline = time.monotonic() + timeout_s
        [outcome] = self._exchange([request], self._packed(request), deadline, replicas)
        if isinstance(outcome, BrokerUnavailable):
            [outcome] = self._again([request], [outcome], deadline, replicas, once)
            if isinstance(outcome, BrokerUnavailable):
                raise outcome
        return outcome

    def execute_all(
        self, requests: Sequence[Request], *, timeout_s: float, replicas: int = 0, once: bool = False
    ) -> list[Outcome]:
        """Carry requests out, pipelined, each for itself, and return what became of each.

        They are carried out in order, but for those that are tried again.
        """
        deadline = time.monotonic() + timeout_s
        return self._again(requests, self._pipelined(requests, deadline, replicas), deadline, replicas, once)

    def _again(
        self, requests: Sequence[Request], outcomes: list[Outcome], deadline: float, replicas: int, once: bool
    ) -> list[Outcome]:
        """Carry out again what another server may take now, and with the scripts' texts what lacks a script.

        In a transaction that lacks one, the other commands are carried out twice.
        """

        def may_help(outcome: Outcome) -> bool:
            if not isinstance(outcome, BrokerUnavailable) or _lacks_script(outcome):
                return isinstance(outcome, BrokerUnavailable)
            return not outcome.maybe_taken and self.place.passes(outcome.__cause__)

        pause_s = 0.0
        while again := [number for number, outcome in enumerate(outcomes) if may_help(outcome)]:
            if any(_lacks_script(outcomes[number]) for number in again):
                requests = [[_with_text(command) for command in request] for request in requests]
            elif (once and pause_s > 0) or deadline - time.monotonic() < pause_s + _AGAIN_S:
                break  # there is no time to try: the error is to say why
            else:
                time.sleep(pause_s)
                pause_s = _AGAIN_S
            anew = self._pipelined([requests[number] for number in again], deadline, replicas)
            for number, outcome in zip(again, anew, strict=True):
                if _lacks_script(outcomes[number]) or not _came_too_late(outcome):  # which would hide why
                    outcomes[number] = outcome
        return outcomes

    def _with_absent(self, request: Request) -> bytes:
        """Return what is sent for a request, each script of which is given one more key, one that never exists.

        While a cluster moves a slot, a node checks each key as a script touches it, so that the script could end half
        done. With this key, the node refuses it as a whole until the slot has moved; `lua/common.lua` takes it away.
        """
        return pack([_with_key(command, self.place.absent) for command in request])

    def _pipelined(self, requests: Sequence[Request], deadline: float, replicas: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        packed: list[bytes] = []
        size = 0
        for count, request in enumerate(requests, start=1):
            packed.append(self._packed(request))
            size += len(packed[-1])
            if size >= _WINDOW_BYTES or count == len(requests):
                outcomes += self._exchange(requests[len(outcomes) : count], b"".join(packed), deadline, replicas)
                packed, size = [], 0
        return outcomes

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

    def _take(self, idle: deque[Link], deadline: float) -> Link:
        """Return the connection that was used last, if it is fit, or a new one; raises one of `TROUBLE`."""
        timeout_s = _left_s(deadline)
        while idle:
            try:
                link = idle.pop()
            except IndexError:  # another thread took the last one
                break
            if self._is_fit(link):
                return link
            link.close()
        # No part of it (looking the host up, TLS, AUTH) may outlast the deadline.
        return in_time(
            "redis-connect", lambda: self._connect(timeout_s), Link.close, left_s=lambda: deadline - time.monotonic()
        )

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
            if now - idle[0].used_at > _SPARE_S:
                idle.popleft().close()
        except IndexError:  # other threads took them all
            pass

    # Requests and replies

    def _exchange(self, requests: Sequence[Request], packed: bytes, deadline: float, replicas: int) -> list[Outcome]:
        idle = self._pool()
        try:
            link = self._take(idle, deadline)
        except TROUBLE as exc:
            return [self._unavailable(exc, maybe_taken=False)] * len(requests)
        link.deadline = deadline
        outcomes: list[Outcome] = []
        sent = False
        try:
            link.send(packed)
            sent = True
            for request in requests:
                outcomes.append(self._read(link, request))
            if replicas and not all(isinstance(each, BrokerUnavailable) for each in outcomes):
                self._wait(link, replicas)
        except TROUBLE as exc:
            link.close()
            if isinstance(exc, REFUSALS) and len(outcomes) < len(requests):
                outcomes.append(self._unavailable(exc, maybe_taken=False))
            # What is not sent to its end is not carried out, but those before it may have been.
            lost = self._unavailable(exc, maybe_taken=sent or len(requests) > 1)
            kept = [each if isinstance(each, BrokerUnavailable) or not replicas else lost for each in outcomes]
            return kept + [lost] * (len(requests) - len(outcomes))
        except BaseException:
            link.close()  # thrown into this thread: replies are still to come
            raise
        self._give_back(link, idle)
        return outcomes

    def _wait(self, link: Link, replicas: int) -> None:
        """Return when so many replicas have what was written on a connection; raises one of `TROUBLE` if they don't."""
        left_ms = (link.deadline - time.monotonic()) * 1000
        count = link.ask("WAIT", replicas, max(1, round(left_ms * _PART_OF_WAIT)))
        if count < replicas:
            problem = f"{count} of {replicas} replicas confirmed it in time (setting wait_replicas)"
            raise errors.ConnectionError(problem)

    def _read(self, link: Link, request: Request) -> Outcome:
        """Return what became of a request; raises one of `TROUBLE` if the connection can't be used any longer."""
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
            error, in_script = _told_apart(refusal or exc)
            return self._unavailable(error, maybe_taken=not in_transaction or in_script)
        if len(request) == 1:
            return reply
        if reply is None:  # nothing here is watched
            raise errors.InvalidResponse("a transaction was not carried out")
        for each in reply:
            if isinstance(each, Exception):  # the wrong type of key, say; the other commands were carried out
                return self._unavailable(each, maybe_taken=True)
        return reply

    def _unavailable(self, exc: Exception, *, maybe_taken: bool) -> BrokerUnavailable:
        # What dropped one connection silently has dropped the others, and each would cost a call all of its time; and
        # where the server was the primary or had the slot, new connections may lead to the one that is now, or has it.
        if isinstance(exc, _OF_ALL):
            self.close()
        made = BrokerUnavailable(f"{self._shown}: {_problem(exc)}", maybe_taken=maybe_taken)
        made.__cause__ = None if _QUOTING in str(exc) else exc
        return made


_shared: Final[weakref.WeakValueDictionary[tuple[str, str], Client]] = weakref.WeakValueDictionary()


def client_of(url: str, namespace: str = "") -> Client:
    """Return the client of a URL and namespace that all in this process share; only one in braces has its own.

    Where it is closed, only its idle connections are: whoever else uses it makes new ones. Raises as `Client` does.
    """
    namespace = namespace if namespace.startswith("{") else ""
    client = _shared.get((url, namespace))
    return _shared.setdefault((url, namespace), Client(url, namespace)) if client is None else client


def _told_apart(error: errors.ResponseError) -> tuple[errors.ResponseError, bool]:
    """Return an error of the kind that it is, and whether it may have ended a script that had written before."""
    text = str(error)
    if "Error running script" in text:  # Redis before 7 quotes what it was
        kinds = {"-OOM ": errors.OutOfMemoryError, "-READONLY ": errors.ReadOnlyError}
        error = next((kind for name, kind in kinds.items() if name in text), type(error))(text)
    at_first = isinstance(error, _NOT_TAKEN) or "MISCONF " in text or "NOREPLICAS " in text
    return error, ("Error running script" in text or " script: " in text) and not at_first


def _lacks_script(outcome: Outcome) -> bool:
    return isinstance(outcome, BrokerUnavailable) and isinstance(outcome.__cause__, errors.NoScriptError)


def _came_too_late(outcome: Outcome) -> bool:
    """Return whether there was no time left to try something."""
    if not isinstance(outcome, BrokerUnavailable) or outcome.maybe_taken:
        return False
    return isinstance(outcome.__cause__, (errors.TimeoutError, TimeoutError))


def _with_text(command: Sequence[Word]) -> Sequence[Word]:
    return ("EVAL", _texts[command[1]], *command[2:]) if command[0] == "EVALSHA" else command


def _with_key(command: Sequence[Word], key: str) -> Sequence[Word]:
    if command[0] not in ("EVALSHA", "EVAL"):
        return command
    name, script, count, *words = command
    keys = int(count)
    return name, script, keys + 1, *words[:keys], key, *words[keys:]


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
        (errors.MovedError, errors.ClusterCrossSlotError),
        "this is a Redis Cluster, which needs a namespace in braces, such as namespace='{{taskbridge}}': {}",
    ),
    ((errors.AskError, errors.TryAgainError), "the namespace's slot is being moved to another node: {}"),
    (errors.ClusterDownError, "the Redis Cluster is down: {}"),
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
