"""A connection to RabbitMQ: pika's codec over a socket, and a deadline for every wait.

By default one thread at a time uses a connection: it writes, and reads the replies itself, so no other thread is woken
for a confirm. A `Pool` keeps idle connections and serves their heartbeats. With `read_in_thread`, which consumers need,
a thread of the connection's own reads, and any thread may write.

pika's own connections are not used: a `BlockingConnection` takes 1.24 to 1.36 times the CPU time for a single confirmed
send, a `SelectConnection` in a thread 1.5 times, and closing one waits for a server that may be silent. A thread that
only reads, in place of reading by the sender, took 1.1 to 1.2 times the CPU time, and up to 1.4 times as long.
"""

from __future__ import annotations

import logging
import os
import platform
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from pika import spec, tcp_socket_opts

from taskbridge import locks
from taskbridge._version import __version__
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.frames import FRAME_MAX, HEAD, HEARTBEAT, KINDS, PREAMBLE, method_bytes, method_of

if TYPE_CHECKING:
    from taskbridge.brokers.rabbitmq.channel import Channel

_READ_BYTES: Final = 1 << 16
_LONGEST_READ_S: Final = 1.0
_CHANNEL_MAX: Final = 2047
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logging.getLogger("taskbridge.rabbitmq")


class ClientError(Exception):
    """RabbitMQ can't be reached, refused, or the connection is lost.

    Attributes:
        again: Whether another attempt may succeed at once.
        code: AMQP's reply code if the server closed the channel; else 0.
        maybe_done: Whether a part of what was asked may have been done.
    """

    def __init__(self, problem: str, *, again: bool = False, code: int = 0, maybe_done: bool = False) -> None:
        super().__init__(problem)
        self.again: bool = again
        self.code: int = code
        self.maybe_done: bool = maybe_done


class TimedOutError(ClientError):
    """A deadline passed."""


class Connection:
    """One connection; it never reconnects.

    What takes a deadline raises `ClientError`: a `TimedOutError` if the server does not do its part in time.

    Args:
        parameters: Host, credentials and options: pika's `Parameters`.
        heartbeat_s: The heartbeat interval in seconds, if it is shorter than that of the URL or the server.

    Attributes:
        where: The server's host and port.
        problem: Why the connection is lost; None while it is not.
        blocked: That and why the server takes no messages now (`connection.blocked`); None if it does.
        frame_max: The size of the largest frame, in bytes.
        read_s: The longest time that `read` waits, so that heartbeats are in time.
    """

    _socket: socket.socket | None = None
    _reader: threading.Thread | None = None

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        self.where: str = f"{parameters.host}:{parameters.port}"
        self.problem: str | None = None
        self.blocked: str | None = None
        self.frame_max: int = FRAME_MAX
        self.read_s: float = _LONGEST_READ_S
        self._parameters = parameters
        self._heartbeat_s = heartbeat_s or 0.0
        self._heard_at = self._sent_at = self._blocked_at = time.monotonic()
        self._is_open = False
        self._poll = select.poll()
        self._is_tls = parameters.ssl_options is not None
        self._sending = locks.Lock()
        # OpenSSL takes one thread at a time on a connection.
        self._receiving = self._sending if self._is_tls else locks.Lock()
        self._changed = locks.Condition()
        self._unsent = b""
        self._rest = b""
        self._replies: list[Any] = []
        self._channels: dict[int, Channel] = {}
        self._channel_max = _CHANNEL_MAX
        _living.add(self)

    def open(self, deadline: Deadline) -> None:
        """Connect and log in. Call this once, before anything else."""
        deadline = deadline.within(self._parameters.stack_timeout)
        try:
            self._socket = _connected(self._parameters, deadline)
        except TimeoutError as exc:
            raise TimedOutError(f"RabbitMQ at {self.where} does not answer") from exc
        except OSError as exc:
            raise ClientError(f"no connection to RabbitMQ at {self.where}: {exc}") from exc
        self._log_in(deadline)
        self._is_open = True

    def _log_in(self, deadline: Deadline) -> None:
        parameters = self._parameters
        self.write(PREAMBLE, deadline)
        start = self._expect(spec.Connection.Start, deadline)
        mechanism, response = parameters.credentials.response_for(start)
        if mechanism is None:
            raise ClientError(
                f"RabbitMQ at {self.where} offers no way to log in that is supported, but {start.mechanisms!r}"
            )
        properties = {**_client_properties(), **(parameters.client_properties or {})}
        self._tell(spec.Connection.StartOk(properties, mechanism, response, parameters.locale), deadline)
        tune = self._expect(spec.Connection.Tune, deadline)
        self.frame_max = _smaller(tune.frame_max, parameters.frame_max)
        self._channel_max = _smaller(tune.channel_max, parameters.channel_max)
        named_s = parameters.heartbeat
        self._heartbeat_s = _smaller(named_s if isinstance(named_s, int) else tune.heartbeat, self._heartbeat_s)
        if self._heartbeat_s:
            self.read_s = min(_LONGEST_READ_S, self._heartbeat_s / 4)
        self._tell(spec.Connection.TuneOk(self._channel_max, self.frame_max, int(self._heartbeat_s)), deadline)
        self._tell(spec.Connection.Open(parameters.virtual_host), deadline)
        self._expect(spec.Connection.OpenOk, deadline)

    def _tell(self, method: Any, deadline: Deadline) -> None:
        self.write(method_bytes(0, method), deadline)

    def _expect(self, kind: type[Any], deadline: Deadline) -> Any:
        self.wait(lambda: bool(self._replies), deadline)
        reply = self._replies.pop(0)
        if not isinstance(reply, kind):
            raise ClientError(f"RabbitMQ at {self.where} sent {reply.NAME} when {kind.NAME} was due")
        return reply

    # Use

    def check(self) -> None:
        """Raise `ClientError` if the connection is lost."""
        if self.problem is not None:
            raise ClientError(self.problem, again=self._is_open)

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes; what is left at the deadline is sent before later bytes."""
        self.check()
        self.send(data)
        if self._unsent:
            self.wait(lambda: not self._unsent, deadline, f"RabbitMQ at {self.where} does not read what is sent to it")
        self.check()

    def wait(self, condition: Callable[[], bool], deadline: Deadline, problem: str | None = None) -> None:
        """Wait until a condition holds that depends on what arrives; `problem` is the text if it does not in time."""
        while not condition():
            self.check()
            if deadline.passed:
                raise TimedOutError(self.blocked or problem or f"RabbitMQ at {self.where} does not answer")
            if self._reader is None or threading.current_thread() is self._reader:
                self.read(deadline.slice_s)
                continue
            with self._changed:
                if self.problem is None and not condition():
                    self._changed.wait(deadline.slice_s)

    def wait_unblocked(self, deadline: Deadline) -> None:
        """Wait until the server takes messages."""
        self.wait(lambda: self.blocked is None, deadline)

    def read_in_thread(self) -> None:
        """From now on, have a thread read, so that threads can share the connection."""
        reader = threading.Thread(target=self._read_on, name="taskbridge-rabbitmq", daemon=True)
        reader.start()
        self._reader = reader

    def _read_on(self) -> None:
        try:
            while self.problem is None:
                self.read(self.read_s)
                with self._changed:
                    self._changed.notify_all()
        finally:
            self.lose(f"the thread that reads from RabbitMQ at {self.where} has ended")
            self._hang_up()

    def read(self, timeout_s: float = 0.0) -> None:
        """Process what has arrived, or else what arrives within so many seconds, and send a heartbeat if one is due.

        If the connection is lost it does not raise, but sets `problem`.
        """
        if self._socket is not None and self.problem is None:
            self._poll.register(self._socket, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
            if self._poll.poll(min(timeout_s, self.read_s) * 1000):
                self._receive(self._socket)
                if self._unsent:
                    self.send(b"")
            self._keep_alive()

    def send(self, data: bytes) -> None:
        """Send bytes without waiting; any thread may. What the system does not take now is sent by a later `read`."""
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
            self._is_open = False  # another connection would be blocked as well
            self.lose(f"{self.blocked}, for longer than blocked_connection_timeout")
        elif self._heartbeat_s and now - self._heard_at > 2 * self._heartbeat_s:
            if not self._poll.poll(0):  # else the process was suspended, and has not read yet
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
            return number

    def detach(self, number: int) -> None:
        """Release the number of a channel that is closed on both sides."""
        self._channels.pop(number, None)

    # The end

    def lose(self, problem: str) -> None:
        """Give the connection up, and tell its channels."""
        if self.problem is not None:
            return
        self.problem = problem
        for channel in list(self._channels.values()):
            channel.shut(ClientError(problem, again=True))
        if self._socket is not None:
            with suppress(OSError):
                # Wakes a thread that reads, which then closes it. (SSLSocket.shutdown would forget its cipher.)
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            if self._reader is None:
                self._hang_up()

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the connection."""
        deadline = Deadline(timeout_s)
        try:
            if self._is_open and self.problem is None:
                self._tell(spec.Connection.Close(200, "Normal shutdown", 0, 0), deadline)
                self.wait(lambda: self.problem is not None, deadline)
        except ClientError as exc:
            _log.debug("connection to RabbitMQ at %s closed: %s", self.where, exc)
        self.lose("the connection was closed")

    def forget(self) -> None:
        """Close this process's copy of the socket after a fork; the parent goes on using the connection."""
        self.problem = "the connection belongs to the parent process"
        self._hang_up()

    def __del__(self) -> None:
        """Close the socket of a connection that was dropped, as when a time limit interrupts a thread that takes it."""
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
        if isinstance(method, spec.Connection.Close):
            self.send(method_bytes(0, spec.Connection.CloseOk()))
            self.lose(f"RabbitMQ at {self.where} closed the connection: {method.reply_text}")
        elif isinstance(method, spec.Connection.CloseOk):
            self.lose("the connection was closed")
        elif isinstance(method, spec.Connection.Blocked):
            self.blocked = f"RabbitMQ at {self.where} takes no messages at the moment: {method.reason}"
            self._blocked_at = time.monotonic()
        elif isinstance(method, spec.Connection.Unblocked):
            self.blocked = None
        else:
            self._replies.append(method)


ConnectionT = TypeVar("ConnectionT", bound=Connection)


def connect(
    hosts: Sequence[Any], deadline: Deadline, *, kind: Callable[..., ConnectionT], heartbeat_s: float | None = None
) -> ConnectionT:
    """Return an open connection to the first host that accepts one; each is tried `connection_attempts` times.

    Raises:
        ClientError: The last attempt failed.
    """
    tries = [parameters for parameters in hosts for _ in range(parameters.connection_attempts)]
    while True:
        parameters = tries.pop(0)
        connection = kind(parameters, heartbeat_s=heartbeat_s)
        try:
            connection.open(deadline)
            return connection
        except BaseException as exc:
            connection.lose("it could not be opened")
            is_final = isinstance(exc, TimedOutError) or not isinstance(exc, ClientError)
            if is_final or not tries or deadline.left_s <= parameters.retry_delay:
                raise
        pause = deadline.within(parameters.retry_delay)
        while not pause.passed:
            time.sleep(pause.slice_s)


def _smaller(proposed: float, ours: float) -> Any:
    """Return the limit that both sides agree on; 0 is no limit."""
    return min(proposed, ours) if proposed and ours else max(proposed, ours)


def _connected(parameters: Any, deadline: Deadline) -> socket.socket:
    """Return a connected socket; a thread makes it, as a name's lookup has no timeout, and `stop` may be set meanwhile.

    Raises:
        OSError: The server can't be reached; a `TimeoutError` if it does not answer.
    """
    results: SimpleQueue[socket.socket | Exception] = SimpleQueue()

    def make() -> None:
        try:
            results.put(_dialled(parameters, deadline))
        except Exception as exc:
            results.put(exc)

    try:
        threading.Thread(target=make, name="taskbridge-rabbitmq-connect", daemon=True).start()
    except RuntimeError:  # the interpreter is shutting down
        make()
    while True:
        with suppress(Empty):
            result = results.get(timeout=deadline.slice_s)
            break
        if deadline.passed:
            raise TimeoutError
    if isinstance(result, Exception):
        raise result
    return result


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
            if deadline.passed:  # nobody waits for it any longer
                raise TimeoutError
            return made
        except OSError as exc:
            made.close()
            failure = exc
    raise failure


def _client_properties() -> dict[str, Any]:
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    return {
        "product": "taskbridge",
        "version": __version__,
        "platform": f"Python {platform.python_version()}",
        "connection_name": f"taskbridge {program} {os.getpid()}",
        "capabilities": {
            "authentication_failure_close": True,
            "basic.nack": True,
            "connection.blocked": True,
            "consumer_cancel_notify": True,
            "publisher_confirms": True,
        },
    }


_living: Final[WeakSet[Connection]] = WeakSet()


def _forget_all() -> None:
    for connection in list(_living):
        connection.forget()


os.register_at_fork(after_in_child=_forget_all)
