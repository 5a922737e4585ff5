"""A connection to RabbitMQ: pika's codec over a socket, and a deadline for every wait.

One thread at a time uses a connection: it writes, and reads the replies itself, so no other thread is woken for a
confirm. A `Pool` keeps idle connections and serves their heartbeats. `SharedConnection` is for consumers: a thread of
its own reads, and any thread may write.

Methods, properties and tables are pika's (`pika.spec`, `pika.data`). Its connections are not used: a
`BlockingConnection` takes 1.24 to 1.36 times the CPU time for a single confirmed send, a `SelectConnection` in a thread
1.5 times, and closing one waits for a server that may be silent. A thread that only reads, in place of reading by the
sender, took 1.1 to 1.2 times the CPU time, and up to 1.4 times as long on the clock. Frames are cut here:
`pika.frame.decode_frame` decodes all properties of each delivery, which are not needed, and takes 25 us for them.
"""

from __future__ import annotations

import errno
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
from queue import Empty, SimpleQueue
from struct import Struct
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

import pika
from pika import frame, spec, tcp_socket_opts

from taskbridge import locks
from taskbridge._version import __version__
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError

FRAME_MAX: Final = 1 << 17
"""The size of the largest frame, in bytes, unless the server or the URL asks for smaller ones; RabbitMQ's default."""

OVERHEAD: Final = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
"""How many bytes a frame has beside its payload."""

CONTENT_SIZE: Final = 12
"""How many bytes stand before the properties in a header frame."""

PROPERTIES_ROOM: Final = FRAME_MAX - OVERHEAD - CONTENT_SIZE
"""How many bytes encoded properties may have: they can't be split."""

_PREAMBLE: Final = frame.ProtocolHeader().marshal()
_HEARTBEAT: Final = frame.Heartbeat().marshal()
_HEAD: Final = Struct(">BHI")  # kind, channel, size
_KINDS: Final = frozenset({spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT})
_READ_BYTES: Final = 1 << 16
_LONGEST_READ_S: Final = 1.0
_CHANNEL_MAX: Final = 2047
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logging.getLogger("taskbridge.rabbitmq")


class ConnectionLostError(Exception):
    """The connection is lost, or could not be made.

    Attributes:
        was_open: Whether it was usable before; then another attempt may succeed at once.
    """

    def __init__(self, problem: str, *, was_open: bool = False) -> None:
        super().__init__(problem)
        self.was_open: bool = was_open


class Endpoint(Protocol):
    """A channel, as its connection sees it."""

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame. It must not wait."""
        ...

    def lose(self, problem: str) -> None:
        """Learn that the connection is gone."""
        ...


class Connection:
    """One connection; it never reconnects. One thread at a time uses it.

    Args:
        parameters: Host, credentials and options: pika's `Parameters`.
        heartbeat_s: The heartbeat interval in seconds, if it is shorter than that of the URL or the server.

    Attributes:
        where: The server's host and port.
        problem: Why the connection is lost; None while it is not.
        blocked_by: Why the server takes no messages now (`connection.blocked`), such as `low on memory`; or None.
        frame_max: The size of the largest frame, in bytes.
        server_version: Such as (3, 10, 8).
        read_s: The longest time that `read` waits, so that heartbeats are in time.
        used_at: When it was last used, by the monotonic clock; set by the pool.
        channel: The channel that is kept open; set by its user.
        declared: The destinations that are known to be declared; set by its user.
    """

    _socket: socket.socket | None = None

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        self.where: str = f"{parameters.host}:{parameters.port}"
        self.problem: str | None = None
        self.blocked_by: str | None = None
        self.frame_max: int = FRAME_MAX
        self.server_version: tuple[int, ...] = ()
        self.read_s: float = _LONGEST_READ_S
        self.used_at: float = 0.0
        self.channel: Any = None
        self.declared: set[object] = set()
        self._parameters = parameters
        self._asked_heartbeat_s = heartbeat_s
        self._heartbeat_s = 0.0
        self._heard_at = self._sent_at = self._blocked_at = time.monotonic()
        self._is_open = False
        self._poll = select.poll()
        self._polled = select.POLLIN
        self._is_tls = parameters.ssl_options is not None
        self._sending = locks.Lock()
        # OpenSSL takes one thread at a time on a connection.
        self._receiving = self._sending if self._is_tls else locks.Lock()
        self._unsent = b""
        self._rest = b""
        self._replies: list[Any] = []
        self._endpoints: dict[int, Endpoint] = {}
        self._channel_max = _CHANNEL_MAX
        _living.add(self)

    def open(self, deadline: Deadline) -> None:
        """Connect and log in. Call this once, before anything else.

        Raises:
            ConnectionLostError: The server can't be reached, or refuses.
            TimedOutError: The server does not answer.
        """
        deadline = deadline.within(self._parameters.stack_timeout)
        try:
            self._dial(deadline)
            self._log_in(deadline)
        except TimeoutError as exc:
            raise TimedOutError(f"RabbitMQ at {self.where} does not answer") from exc
        except OSError as exc:
            raise ConnectionLostError(f"no connection to RabbitMQ at {self.where}: {exc}") from exc
        self._is_open = True

    def _dial(self, deadline: Deadline) -> None:
        parameters = self._parameters
        made = _connected(_addresses(parameters.host, parameters.port, deadline), deadline, parameters.socket_timeout)
        self._socket = made
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tcp_socket_opts.set_sock_opts(parameters.tcp_options, made)
        if self._is_tls:
            self._socket = made = _encrypted(made, parameters, deadline)
        self._poll.register(made, self._polled)

    def _log_in(self, deadline: Deadline) -> None:
        parameters = self._parameters
        self.write(_PREAMBLE, deadline)
        start = self._expect(spec.Connection.Start, deadline)
        self.server_version = _version(start.server_properties)
        mechanism, response = parameters.credentials.response_for(start)
        if mechanism is None:
            raise ConnectionLostError(
                f"RabbitMQ at {self.where} offers no way to log in that is supported, but {start.mechanisms!r}"
            )
        properties = {**_client_properties(), **(parameters.client_properties or {})}
        self._tell(spec.Connection.StartOk(properties, mechanism, response, parameters.locale), deadline)
        tune = self._expect(spec.Connection.Tune, deadline)
        self.frame_max = _smaller(tune.frame_max, parameters.frame_max)
        self._channel_max = _smaller(tune.channel_max, parameters.channel_max)
        self._heartbeat_s = self._agreed_heartbeat_s(tune.heartbeat)
        if self._heartbeat_s:
            self.read_s = min(_LONGEST_READ_S, self._heartbeat_s / 4)
        self._tell(spec.Connection.TuneOk(self._channel_max, self.frame_max, int(self._heartbeat_s)), deadline)
        self._tell(spec.Connection.Open(parameters.virtual_host), deadline)
        self._expect(spec.Connection.OpenOk, deadline)

    def _tell(self, method: Any, deadline: Deadline) -> None:
        self.write(method_bytes(0, method), deadline)

    def _expect(self, kind: type[Any], deadline: Deadline) -> Any:
        self.wait(lambda: bool(self._replies), deadline, f"RabbitMQ at {self.where} does not answer")
        reply = self._replies.pop(0)
        if not isinstance(reply, kind):
            raise ConnectionLostError(f"RabbitMQ at {self.where} sent {reply.NAME} when {kind.NAME} was due")
        return reply

    def _agreed_heartbeat_s(self, proposed_s: int) -> float:
        named_s = self._parameters.heartbeat
        agreed_s: float = named_s if isinstance(named_s, int) else proposed_s
        asked_s = self._asked_heartbeat_s
        if asked_s is None:
            return agreed_s
        return min(agreed_s, asked_s) if agreed_s else asked_s

    # Use

    def check(self) -> None:
        """Raise `ConnectionLostError` if the connection is lost."""
        if self.problem is not None:
            raise ConnectionLostError(self.problem, was_open=self._is_open)

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes; what is left at the deadline is sent before later bytes.

        Raises:
            ConnectionLostError: The connection is lost.
            TimedOutError: The server does not read.
        """
        self.check()
        self.send(data)
        if self._unsent:
            self.wait(lambda: not self._unsent, deadline, f"RabbitMQ at {self.where} does not read what is sent to it")
        self.check()

    def wait(self, condition: Callable[[], bool], deadline: Deadline, problem: str) -> None:
        """Read until a condition holds.

        Raises:
            ConnectionLostError: The connection is lost.
            TimedOutError: The condition did not hold in time; its text is `problem`, or that the server is blocked.
        """
        while not condition():
            self.check()
            if deadline.passed:
                raise TimedOutError(self._blocked_problem() or problem)
            self.read(deadline.slice_s)

    def wait_unblocked(self, deadline: Deadline) -> None:
        """Wait until the server takes messages; raises as `wait`."""
        self.wait(lambda: self.blocked_by is None, deadline, "")

    def _blocked_problem(self) -> str | None:
        if self.blocked_by is None:
            return None
        return f"RabbitMQ at {self.where} takes no messages at the moment: {self.blocked_by}"

    def read(self, timeout_s: float = 0.0) -> None:
        """Process what has arrived, or else what arrives within so many seconds, and send a heartbeat if one is due.

        If the connection is lost it does not raise, but sets `problem`.
        """
        polled = select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN
        if polled != self._polled and self._socket is not None:
            self._polled = polled
            self._poll.modify(self._socket, polled)
        if self.problem is None and self._poll.poll(min(timeout_s, self.read_s) * 1000):
            self._receive()
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

    def _receive(self) -> None:
        try:
            while self._socket is not None and self.problem is None:
                with self._receiving:
                    data = self._socket.recv(_READ_BYTES)
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
        if self.blocked_by is not None and blocked_s is not None and now - self._blocked_at > blocked_s:
            self._is_open = False  # another connection would be blocked as well
            self.lose(f"{self._blocked_problem()}, for longer than blocked_connection_timeout")
        elif self._heartbeat_s and now - self._heard_at > 2 * self._heartbeat_s:
            if not self._poll.poll(0):  # else the process was suspended, and has not read yet
                self.lose(f"RabbitMQ at {self.where} has shown no sign of life for {now - self._heard_at:.1f} s")
        elif self._heartbeat_s and now - self._sent_at > self._heartbeat_s / 2 and not self._unsent:
            self.send(_HEARTBEAT)

    # Channels

    @property
    def has_room(self) -> bool:
        """Whether another channel can be opened."""
        return len(self._endpoints) < self._channel_max

    def attach(self, endpoint: Endpoint) -> int:
        """Register a new channel, and return its number.

        Raises:
            ConnectionLostError: The connection is lost, or has no channel left.
        """
        self.check()
        with self._sending:
            number = next((each for each in range(1, self._channel_max + 1) if each not in self._endpoints), None)
            if number is None:
                raise ConnectionLostError(f"RabbitMQ at {self.where} allows {self._channel_max} channels a connection")
            self._endpoints[number] = endpoint
            return number

    def detach(self, number: int) -> None:
        """Release the number of a channel that is closed on both sides."""
        self._endpoints.pop(number, None)

    # The end

    def lose(self, problem: str) -> None:
        """Give the connection up, and tell its channels."""
        if self.problem is None:
            self.problem = problem
            for endpoint in list(self._endpoints.values()):
                endpoint.lose(problem)
            self._end()

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the connection."""
        deadline = Deadline(timeout_s)
        try:
            if self._is_open and self.problem is None:
                self._tell(spec.Connection.Close(200, "Normal shutdown", 0, 0), deadline)
                self.wait(lambda: self.problem is not None, deadline, "no answer")
        except (ConnectionLostError, TimedOutError) as exc:
            _log.debug("connection to RabbitMQ at %s closed: %s", self.where, exc)
        self.lose("the connection was closed")

    def forget(self) -> None:
        """Close this process's copy of the socket after a fork; the parent goes on using the connection."""
        self.problem = "the connection belongs to the parent process"
        if self._socket is not None:
            self._socket.close()

    def __del__(self) -> None:
        """Close the socket of a connection that was dropped, as when a time limit interrupts a thread that takes it."""
        if self._socket is not None:
            self._socket.close()

    # What arrives

    def _take(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        start = 0
        try:
            while len(data) - start >= _HEAD.size:
                kind, channel, size = _HEAD.unpack_from(data, start)
                end = start + _HEAD.size + size
                if kind not in _KINDS or (len(data) > end and data[end] != spec.FRAME_END):
                    said = data[start : start + 8]
                    self.lose(f"RabbitMQ at {self.where} doesn't speak AMQP 0-9-1, but sent {said!r}")
                if len(data) <= end or self.problem is not None:
                    break
                self._take_frame(kind, channel, data[start + _HEAD.size : end])
                start = end + 1
        except Exception as exc:
            _log.exception("what RabbitMQ at %s sent can't be read", self.where)
            self.lose(f"what RabbitMQ at {self.where} sent can't be read: {exc!r}")
        self._rest = data[start:]

    def _take_frame(self, kind: int, channel: int, payload: bytes) -> None:
        if channel:
            endpoint = self._endpoints.get(channel)
            if endpoint is not None:
                endpoint.take(kind, payload)
        elif kind == spec.FRAME_METHOD:
            self._take_method(method_of(payload))

    def _take_method(self, method: Any) -> None:
        if isinstance(method, spec.Connection.Close):
            self.send(method_bytes(0, spec.Connection.CloseOk()))
            self.lose(f"RabbitMQ at {self.where} closed the connection: {method.reply_text}")
        elif isinstance(method, spec.Connection.CloseOk):
            self.lose("the connection was closed")
        elif isinstance(method, spec.Connection.Blocked):
            self.blocked_by, self._blocked_at = str(method.reason), time.monotonic()
        elif isinstance(method, spec.Connection.Unblocked):
            self.blocked_by = None
        else:
            self._replies.append(method)


class SharedConnection(Connection):
    """A connection that threads share: a thread of its own reads, and wakes those that wait after each read."""

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        super().__init__(parameters, heartbeat_s=heartbeat_s)
        self._changed = locks.Condition()
        self._reader: threading.Thread | None = None

    def open(self, deadline: Deadline) -> None:
        """Connect, log in, and start the thread that reads."""
        super().open(deadline)
        self._reader = threading.Thread(target=self._run, name="taskbridge-rabbitmq", daemon=True)
        self._reader.start()

    def _run(self) -> None:
        try:
            while self.problem is None:
                self.read(self.read_s)
                with self._changed:
                    self._changed.notify_all()
        finally:
            self.lose(f"the thread that reads from RabbitMQ at {self.where} has ended")
            super()._end()

    def wait(self, condition: Callable[[], bool], deadline: Deadline, problem: str) -> None:
        """Wait until a condition holds; raises as `Connection.wait`."""
        if self._reader is None or threading.current_thread() is self._reader:
            return super().wait(condition, deadline, problem)
        with self._changed:
            while not condition():
                self.check()
                if deadline.passed:
                    raise TimedOutError(self._blocked_problem() or problem)
                self._changed.wait(deadline.slice_s)
        return None

    def _end(self) -> None:
        if self._reader is None or not self._reader.is_alive():
            super()._end()
        elif self._socket is not None:
            try:
                # This wakes the thread, which closes it. (SSLSocket.shutdown would forget its cipher.)
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError as exc:
                _log.debug("the socket was shut down already: %s", exc)


ConnectionT = TypeVar("ConnectionT", bound=Connection)


def connect(
    hosts: Sequence[Any],
    deadline: Deadline,
    *,
    heartbeat_s: float | None = None,
    kind: Callable[..., ConnectionT],
) -> ConnectionT:
    """Return an open connection to the first host that accepts one; each is tried `connection_attempts` times.

    Raises:
        ConnectionLostError, TimedOutError: The last attempt failed.
    """
    tries = [parameters for parameters in hosts for _ in range(parameters.connection_attempts)]
    while True:
        parameters = tries.pop(0)
        connection = kind(parameters, heartbeat_s=heartbeat_s)
        try:
            connection.open(deadline)
        except BaseException as exc:
            connection.lose("it could not be opened")
            again = isinstance(exc, ConnectionLostError) and tries and deadline.left_s > parameters.retry_delay
            if not again:
                raise
            pause = deadline.within(parameters.retry_delay)
            while not pause.passed:
                time.sleep(pause.slice_s)
        else:
            return connection


def parameters_of(url: str) -> Any:
    """Return pika's parameters of a URL.

    Raises:
        ValueError, TypeError: The URL is wrong.
        OSError: A file that it names can't be read.
    """
    return pika.URLParameters(url)


def method_bytes(channel: int, method: Any) -> bytes:
    """Return the frame of a method."""
    marshalled: bytes = frame.Method(channel, method).marshal()
    return marshalled


def method_of(payload: bytes) -> Any:
    """Return the method in a method frame."""
    return spec.methods[int.from_bytes(payload[:4], "big")]().decode(payload, 4)


def _smaller(proposed: int, ours: int) -> int:
    """Return the limit that both sides agree on; 0 is no limit."""
    return min(proposed, ours) if proposed and ours else max(proposed, ours)


def _addresses(host: str, port: int, deadline: Deadline) -> list[Any]:
    """Return the addresses of a host. A name is looked up in a thread, because the lookup itself has no timeout."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found: SimpleQueue[list[Any] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as exc:
            found.put(exc)

    threading.Thread(target=look_up, name="taskbridge-rabbitmq-name", daemon=True).start()
    while True:
        try:
            answer = found.get(timeout=deadline.slice_s)
        except Empty:
            if deadline.passed:
                raise TimeoutError from None
        else:
            break
    if isinstance(answer, OSError):
        raise answer
    return answer


def _connected(addresses: list[Any], deadline: Deadline, most_s: float | None) -> socket.socket:
    """Return a socket that is connected to the first address that answers; each address gets its share of the time."""
    problem: OSError | None = None
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            code = made.connect_ex(address)
            if code == errno.EINPROGRESS:
                share = deadline.within(most_s)
                _wait_for(made, select.POLLOUT, share.within(share.left_s / (len(addresses) - number)))
                code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except OSError as exc:
            made.close()
            problem = exc
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise problem or OSError("its name has no address")


def _encrypted(plain: socket.socket, parameters: Any, deadline: Deadline) -> ssl.SSLSocket:
    """Return a connected socket with TLS."""
    tls = parameters.ssl_options
    name = tls.server_hostname or parameters.host
    made: ssl.SSLSocket = tls.context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
    try:
        while True:
            try:
                made.do_handshake()
            except ssl.SSLWantReadError:
                _wait_for(made, select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                _wait_for(made, select.POLLOUT, deadline)
            else:
                return made
    except BaseException:
        made.close()
        raise


def _wait_for(made: socket.socket, event: int, deadline: Deadline) -> None:
    """Wait until a socket is ready; in slices, so that a stop is noticed."""
    poll = select.poll()
    poll.register(made, event)
    while not poll.poll(deadline.slice_s * 1000):
        if deadline.passed:
            raise TimeoutError


def _version(server_properties: Any) -> tuple[int, ...]:
    """Return a server's version as numbers, such as (3, 10, 8); empty if it doesn't tell."""
    text = (server_properties or {}).get("version", b"")
    words = (text.decode() if isinstance(text, bytes) else str(text)).split("-")[0].split("+")[0].split(".")
    return tuple(int(word) for word in words if word.isdecimal())


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
