"""A connection to RabbitMQ: pika's codec over a socket, and a deadline for every wait.

Whoever waits for a reply reads it, so no other thread is woken for a confirm. Any thread may write and read.

pika's own connections are not used: a `BlockingConnection` takes 1.24 to 1.36 times the CPU time for a single confirmed
send, a `SelectConnection` in a thread 1.5 times, and closing one waits for a server that may be silent. A thread that
only reads, in place of reading by the sender, took 1.1 to 1.2 times the CPU time, and up to 1.4 times as long.
"""

from __future__ import annotations

import math
import os
import platform
import re
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from pika import spec, tcp_socket_opts

from taskbridge import locks
from taskbridge._version import __version__
from taskbridge.background import in_time
from taskbridge.brokers.rabbitmq.frames import FRAME_MAX, HEAD, HEARTBEAT, KINDS, PREAMBLE, method_bytes, method_of
from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.brokers.rabbitmq.channel import Channel

HEARTBEAT_S: Final = 10
"""The longest interval between heartbeats, if the URL names none: who only reads notices a dead connection by two that
are missing. RabbitMQ's own default is 60."""

_STOP_LOOK_S: Final = 0.1
_LEAVE_S: Final = 0.3
_READ_BYTES: Final = 1 << 16
_LONGEST_READ_S: Final = 1.0
_CHANNEL_MAX: Final = 2047
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logger("taskbridge.rabbitmq")


class ClientError(Exception):
    """RabbitMQ can't be reached, refused, or the connection is lost. What takes a deadline or a time raises it."""

    def __init__(self, problem: str, *, again: bool = False, code: int = 0) -> None:
        super().__init__(problem)
        self.again: bool = again  # whether another attempt may succeed at once
        self.code: int = code  # AMQP's reply code if the server closed the channel


class TimedOutError(ClientError):
    """A deadline passed before the server had done its part."""


class Deadline:
    """A moment after which nothing is waited for.

    Args:
        timeout_s: How far away it is; infinite if only `stop` ends the wait.
        stop: Once it is set, the moment is 0.3 s away at most.
    """

    __slots__ = ("_at", "_stop", "timeout_s")

    def __init__(self, timeout_s: float = math.inf, stop: threading.Event | None = None) -> None:
        self.timeout_s: float = timeout_s
        self._at = time.monotonic() + timeout_s
        self._stop = stop

    @property
    def left_s(self) -> float:
        """The seconds until then, at least 0."""
        now = time.monotonic()
        if self._stop is not None and self._stop.is_set():
            self._at = min(self._at, now + _LEAVE_S)
            self._stop = None
        return max(0.0, self._at - now)

    @property
    def slice_s(self) -> float:
        """How long to wait at a time: all the time that is left, or so long that `stop` is seen soon."""
        return self.left_s if self._stop is None else min(self.left_s, _STOP_LOOK_S)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s == 0.0

    def within(self, timeout_s: float | None) -> Deadline:
        """Return this deadline, or one so many seconds from now if that is earlier; None is no other."""
        return self if timeout_s is None or timeout_s >= self.left_s else Deadline(timeout_s, self._stop)


class Connection:
    """A connection by pika's `Parameters`, which is open before a deadline; it never reconnects."""

    _socket: socket.socket | None = None

    def __init__(self, parameters: Any, deadline: Deadline) -> None:
        self.where: str = f"{parameters.host}:{parameters.port}"
        self.problem: str | None = None  # why the connection is lost
        self.blocked: str | None = None  # that and why the server takes no messages now (`connection.blocked`)
        self.version: tuple[int, ...] = (0,)  # the server's, such as (3, 10); (0,) if it doesn't say
        self.frame_max: int = FRAME_MAX
        self.read_s: float = _LONGEST_READ_S  # the longest time that `read` waits, so that heartbeats are in time
        self._parameters = parameters
        self._heartbeat_s = 0.0
        self._heard_at = self._sent_at = self._blocked_at = time.monotonic()
        self._may_repeat = False  # whether another connection may be better if this one is lost
        self._is_tls = parameters.ssl_options is not None
        self._sending = locks.Lock()
        self._reading = locks.Lock()
        # OpenSSL takes one thread at a time on a connection.
        self._receiving = self._sending if self._is_tls else locks.Lock()
        self._unsent = b""
        self._rest = b""
        self._replies: list[Any] = []
        self._channels: dict[int, Channel] = {}
        self._channel_max = _CHANNEL_MAX
        in_child.add(self)
        deadline = deadline.within(parameters.stack_timeout)
        try:
            self._socket = in_time(
                "rabbitmq-connect",
                lambda: _dialled(parameters, deadline),
                socket.socket.close,
                left_s=lambda: deadline.left_s,
            )
        except TimeoutError as exc:
            raise TimedOutError(f"RabbitMQ at {self.where} does not answer") from exc
        except OSError as exc:
            raise ClientError(f"no connection to RabbitMQ at {self.where}: {exc}") from exc
        try:
            self._log_in(deadline)
        except BaseException:
            self.lose("it could not be opened")
            raise
        self._may_repeat = True

    def _log_in(self, deadline: Deadline) -> None:
        parameters = self._parameters
        start = self._answer(PREAMBLE, spec.Connection.Start, deadline)
        self.version = _version(start.server_properties.get("version"))
        mechanism, response = parameters.credentials.response_for(start)
        if mechanism is None:
            raise ClientError(
                f"RabbitMQ at {self.where} offers no way to log in that is supported, but {start.mechanisms!r}"
            )
        properties = {**_client_properties(), **(parameters.client_properties or {})}
        started = method_bytes(0, spec.Connection.StartOk(properties, mechanism, response, parameters.locale))
        tune = self._answer(started, spec.Connection.Tune, deadline)
        self.frame_max = _smaller(tune.frame_max, parameters.frame_max)
        self._channel_max = _smaller(tune.channel_max, parameters.channel_max)
        named_s = parameters.heartbeat
        self._heartbeat_s = named_s if isinstance(named_s, int) else _smaller(tune.heartbeat, HEARTBEAT_S)
        if self._heartbeat_s:
            self.read_s = min(_LONGEST_READ_S, self._heartbeat_s / 4)
        tuned = spec.Connection.TuneOk(self._channel_max, self.frame_max, int(self._heartbeat_s))
        opening = method_bytes(0, tuned) + method_bytes(0, spec.Connection.Open(parameters.virtual_host))
        self._answer(opening, spec.Connection.OpenOk, deadline)

    def _answer(self, said: bytes, kind: type[Any], deadline: Deadline) -> Any:
        self.write(said, deadline)
        self.wait(lambda: bool(self._replies), deadline)
        reply = self._replies.pop(0)
        if not isinstance(reply, kind):
            raise ClientError(f"RabbitMQ at {self.where} sent {reply.NAME} when {kind.NAME} was due")
        return reply

    # Use

    def check(self) -> None:
        """Raise `ClientError` if the connection is lost."""
        if self.problem is not None:
            raise ClientError(self.problem, again=self._may_repeat)

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes; what is left at the deadline is sent before later bytes."""
        self.check()
        self.send(data)
        if self._unsent:
            self.wait(lambda: not self._unsent, deadline, f"RabbitMQ at {self.where} does not read what is sent to it")
        self.check()

    def wait(self, condition: Callable[[], bool], deadline: Deadline, problem: str | None = None) -> None:
        """Read until a condition holds that depends on what arrives; `problem` is the text if it does not in time."""
        while not condition():
            self.check()
            if deadline.passed:
                raise TimedOutError(self.blocked or problem or f"RabbitMQ at {self.where} does not answer")
            self.read(deadline.slice_s)

    def read(self, timeout_s: float = 0.0) -> None:
        """Process what has arrived, or else what arrives within so many seconds, and send a heartbeat if one is due.

        If the connection is lost it does not raise, but sets `problem`.
        """
        if self.problem is None and self._socket is not None:
            if self._has_input(min(timeout_s, self.read_s)):
                with self._reading:
                    self._receive(self._socket)
                if self._unsent:
                    self.send(b"")
            self._keep_alive()

    def _has_input(self, timeout_s: float) -> bool:
        """Return whether something has arrived, or can be sent that waits for it."""
        poll = select.poll()  # of its own, for one can't be used by two threads
        poll.register(self._socket or 0, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def send(self, data: bytes) -> None:
        """Send bytes without waiting. What the system does not take now is sent by a later `read`."""
        try:
            with self._sending:
                if self._unsent:
                    data = self._unsent + data
                self._unsent = data
                if data and self._socket is not None and self.problem is None:
                    self._unsent = data[self._socket.send(data) :]
                    self._sent_at = time.monotonic()
        except _WOULD_BLOCK:
            return
        except OSError as exc:
            self.lose(f"the connection to RabbitMQ at {self.where} broke: {exc}")
        except BaseException:  # a time limit: nobody knows how much was sent
            self.lose(f"the connection to RabbitMQ at {self.where} was interrupted")
            raise

    def _receive(self, made: socket.socket) -> None:
        try:
            while self.problem is None:
                with self._receiving:
                    data = made.recv(_READ_BYTES)
                if not data:
                    return self.lose(f"RabbitMQ at {self.where} closed the connection")
                self._heard_at = time.monotonic()
                self._take(data)
                if not self._is_tls:  # which holds what poll does not see
                    return None
        except _WOULD_BLOCK:
            return None
        except OSError as exc:
            self.lose(f"the connection to RabbitMQ at {self.where} broke: {exc}")

    def _keep_alive(self) -> None:
        if self.problem is not None:
            return
        now = time.monotonic()
        blocked_s = self._parameters.blocked_connection_timeout
        if self.blocked is not None and blocked_s is not None and now - self._blocked_at > blocked_s:
            self._may_repeat = False  # another connection would be blocked as well
            self.lose(f"{self.blocked}, for longer than blocked_connection_timeout")
        elif self._heartbeat_s and now - self._heard_at > 2 * self._heartbeat_s:
            if not self._has_input(0):  # else the process was suspended, and has not read yet
                self.lose(f"RabbitMQ at {self.where} has shown no sign of life for {now - self._heard_at:.1f} s")
        elif self._heartbeat_s and now - self._sent_at > self._heartbeat_s / 2 and not self._unsent:
            self.send(HEARTBEAT)

    # Channels

    @property
    def has_room(self) -> bool:
        """Whether another channel can be opened."""
        return len(self._channels) < self._channel_max

    def attach(self, channel: Channel) -> int:
        """Register a new channel, and return its number; raises `ClientError` if none is left."""
        self.check()
        with self._sending:
            number = next((each for each in range(1, self._channel_max + 1) if each not in self._channels), None)
            if number is None:
                raise ClientError(f"RabbitMQ at {self.where} allows {self._channel_max} channels a connection")
            self._channels[number] = channel
        self.check()  # it may have been lost meanwhile, and has told only the channels of before
        return number

    def detach(self, number: int) -> None:
        """Release the number of a channel that is closed on both sides."""
        self._channels.pop(number, None)

    # The end

    def lose(self, problem: str) -> None:
        """Give the connection up, and tell its channels; whoever reads from it or waits for it is woken."""
        if self.problem is not None:
            return
        self.problem = problem
        channels, self._channels = self._channels, {}
        for channel in list(channels.values()):
            channel.shut(ClientError(problem, again=True))
        if self._socket is not None:
            with suppress(OSError):  # SSLSocket.shutdown would forget its cipher
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the connection; what is not acknowledged has gone back to its queue then, if the server answers."""
        deadline = Deadline(timeout_s)
        try:
            self.write(method_bytes(0, spec.Connection.Close(200, "Normal shutdown", 0, 0)), deadline)
            self.wait(lambda: self.problem is not None, deadline)
        except ClientError as exc:
            _log.debug("connection to RabbitMQ at %s closed: %s", self.where, exc)
        self.lose("the connection was closed")

    def forget(self) -> None:
        """Close this process's copy of the socket after a fork; the parent goes on using the connection."""
        self.problem = "the connection belongs to the parent process"
        self._hang_up()

    def __del__(self) -> None:
        """Close the socket. Not before, for a thread may wait for it, and its number may be another file's then."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()

    # What arrives

    def _take(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        start = 0
        try:
            while len(data) - start >= HEAD.size:
                kind, number, size = HEAD.unpack_from(data, start)
                end = start + HEAD.size + size
                if kind not in KINDS or (len(data) > end and data[end] != spec.FRAME_END):
                    said = data[start : start + 8]
                    self.lose(f"RabbitMQ at {self.where} doesn't speak AMQP 0-9-1, but sent {said!r}")
                if len(data) <= end or self.problem is not None:
                    break
                payload = data[start + HEAD.size : end]
                if number:
                    channel = self._channels.get(number)
                    if channel is not None:
                        channel.take(kind, payload)
                elif kind == spec.FRAME_METHOD:
                    self._take_method(method_of(payload))
                start = end + 1
        except Exception as exc:
            _log.exception("what RabbitMQ at %s sent can't be read", self.where)
            self.lose(f"what RabbitMQ at {self.where} sent can't be read: {exc!r}")
        self._rest = data[start:]

    def _take_method(self, method: Any) -> None:
        match method:
            case spec.Connection.Close():
                self.send(method_bytes(0, spec.Connection.CloseOk()))
                self.lose(f"RabbitMQ at {self.where} closed the connection: {method.reply_text}")
            case spec.Connection.CloseOk():
                self.lose("the connection was closed")
            case spec.Connection.Blocked():
                self.blocked = f"RabbitMQ at {self.where} takes no messages at the moment: {method.reason}"
                self._blocked_at = time.monotonic()
            case spec.Connection.Unblocked():
                self.blocked = None
            case _:
                self._replies.append(method)


def _version(text: object) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text.decode() if isinstance(text, bytes) else str(text))
    return (0,) if found is None else (int(found[1]), int(found[2]))


def _smaller(proposed: int, ours: int) -> int:
    """Return the limit that both sides agree on; 0 is no limit."""
    return min(proposed, ours) if proposed and ours else max(proposed, ours)


def _dialled(parameters: Any, deadline: Deadline) -> socket.socket:
    """Return a socket, with TLS if the URL says so, to the first address that answers within its share of the time."""
    failure = OSError("its name has no address")
    found = socket.getaddrinfo(parameters.host, parameters.port, type=socket.SOCK_STREAM)
    for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(max(0.001, deadline.within(parameters.socket_timeout).left_s / left))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            tcp_socket_opts.set_sock_opts(parameters.tcp_options, made)
            tls = parameters.ssl_options
            if tls is not None:
                made.settimeout(max(0.001, deadline.left_s))
                made = tls.context.wrap_socket(made, server_hostname=tls.server_hostname or parameters.host)
            made.setblocking(False)
            return made
        except OSError as exc:
            made.close()
            failure = exc
    raise failure


def _client_properties() -> dict[str, Any]:
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    able = ("authentication_failure_close", "basic.nack", "connection.blocked", "consumer_cancel_notify")
    return {
        "product": "taskbridge",
        "version": __version__,
        "platform": f"Python {platform.python_version()}",
        "connection_name": f"taskbridge {program} {os.getpid()}",
        "capabilities": dict.fromkeys((*able, "publisher_confirms"), True),
    }


in_child: Final[WeakSet[Any]] = WeakSet()
"""Whatever has a method `forget`, to be called in a child after a fork."""


def _forget_all() -> None:
    for each in list(in_child):
        each.forget()


os.register_at_fork(after_in_child=_forget_all)
