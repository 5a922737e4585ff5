"""A connection to RabbitMQ that threads share: any thread writes, and whoever waits for an answer reads.

pika's own connections belong to one thread each, are alive only while that thread is inside them, and can't be given up
at once: closing one waits for a server that may be silent. Here every wait has a deadline, a connection that was closed
is noticed before a message is written to it, and a silent one is dropped.

Of the threads that wait, one leads: it reads what arrives, for the others too, until it has its own answer; then
another one leads. So a confirmed message needs no other thread. The connection's own thread reads while nobody leads,
or so many wait that handing on costs more than it saves, and sends heartbeats. It stands back for a moment after
somebody led, else the next answer would wake it as well.
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
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeVar

import pika
from pika import spec

from taskbridge import locks
from taskbridge._version import __version__
from taskbridge.brokers.rabbitmq.frames import (
    FRAME_MAX,
    HEARTBEAT,
    PREAMBLE,
    FrameReader,
    NotAMQPError,
    method_bytes,
    method_of,
)
from taskbridge.brokers.rabbitmq.waiting import Awaited, Deadline, Lock, TimedOutError

_READ_BYTES: Final = 1 << 16
_IDLE_S: Final = 30.0
_PENDING_S: Final = 0.5
_CLOSE_S: Final = 1.0

_REST_S: Final = 0.1
"""For how long its own thread does not look after somebody else has read, and who reads does not look at the time."""

_MOMENT_S: Final = 0.01

_LEFT_BEHIND_S: Final = 1.0
"""After this the right to read was left behind by a thread that was interrupted."""

_CROWD: Final = 3
"""With so many threads that wait, its own thread reads for all: to wake it takes less than to hand the reading on."""

_CALM_READS: Final = 50

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logging.getLogger("taskbridge.rabbitmq")


class ConnectionLostError(Exception):
    """The connection is gone, or could not be made."""


class Endpoint(Protocol):
    """A channel, as its connection sees it."""

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame; called by one thread at a time, and must not wait."""
        ...

    def lose(self, problem: str) -> None:
        """Learn that the connection is gone."""
        ...


class Connection:
    """One connection, from its making to its end; it is never made again.

    Its thread connects, reads while nobody waits, and sends heartbeats. `start` begins.

    Args:
        parameters: Where to, and as whom.
        timeout_s: How long connecting may take, but for the look-up of the host's name, which can't be interrupted.
        heartbeat_s: The longest time between signs of life; what the server proposes if None.

    Attributes:
        where: The server's host and port.
        problem: Why the connection is gone, or None while it isn't.
        was_open: Whether it was ever usable.
        timed_out: Whether it could not be made in the time of whoever asked for it first.
        blocked_by: Why the server takes no messages at the moment, such as `low on memory`; None if it does.
        heard_at: When bytes came last, by the monotonic clock.
        frame_max: The size of the largest frame, in bytes.
        server_version: Such as (3, 10, 8).
    """

    def __init__(self, parameters: Any, *, timeout_s: float, heartbeat_s: float | None = None) -> None:
        self.where: str = f"{parameters.host}:{parameters.port}"
        self.problem: str | None = None
        self.was_open: bool = False
        self.timed_out: bool = False
        self.blocked_by: str | None = None
        self.heard_at: float = 0.0
        self.frame_max: int = FRAME_MAX
        self.server_version: tuple[int, ...] = ()
        self._begun_at = time.monotonic()
        self._parameters = parameters
        self._timeout_s = timeout_s
        self._asked_heartbeat_s = heartbeat_s
        self._heartbeat_s = 0.0
        self._sent_at = 0.0
        self._socket: socket.socket | None = None
        self._state = locks.RLock()  # guards the state above and the channels
        self._watchers: dict[Awaited, None] = {}  # who waits for a change of the state; used as a set
        self._endpoints: dict[int, Endpoint] = {}
        self._channel_max = 0
        self._reading = Lock()
        self._leads = False  # whether a thread that waits has it
        self._led = False  # whether one had it since its own thread last looked
        self._takes = False  # whether it is at work on what has arrived
        self._consumes = False  # whether messages may be delivered at any time
        self._crowded = False  # whether so many threads wait that their taking turns would cost more than it saves
        self._calm_reads = 0  # how often in a row fewer waited
        self._followers: dict[Awaited, None] = {}  # those who wait for a reader; used as a set
        self._heir: Awaited | None = None  # the one of them that was woken to lead, and does not yet
        self._rests = False  # whether its own thread waits for this
        self._rest: SimpleQueue[None] = SimpleQueue()
        self._writing = Lock()
        self._deaf = f"RabbitMQ at {self.where} does not read what is sent to it"
        self._is_tls = False
        self._tls = Lock()  # OpenSSL takes one thread at a time on a connection
        self._reader = FrameReader()
        self._unsent: deque[memoryview] = deque()
        self._soon: deque[bytes] = deque()
        self._thread = threading.Thread(target=self._run, name="taskbridge-rabbitmq", daemon=True)

    # For any thread

    @property
    def may_be_remade(self) -> bool:
        """Whether another connection may succeed where this one is gone: not after the server refused this one."""
        return self.was_open or self.timed_out

    def was_lost_by_others(self, began: float) -> bool:
        """Return whether it is gone, and was begun before this moment: then it says nothing of the server now.

        Args:
            began: By the monotonic clock.
        """
        return self.problem is not None and self._begun_at < began

    def start(self) -> None:
        """Begin to connect, in a thread.

        Raises:
            ConnectionLostError: The interpreter is at its end and starts no threads any more.
        """
        try:
            self._thread.start()
        except RuntimeError as exc:
            self.lose(f"no connection to RabbitMQ at {self.where}: {exc}")
            raise ConnectionLostError(self.problem) from exc

    def wait_open(self, deadline: Deadline) -> None:
        """Return when the connection is usable.

        Raises:
            ConnectionLostError: It can't be made, or is gone.
            TimedOutError: Neither is known in time.
        """
        if not self.was_open or self.problem is not None:
            self._wait(lambda: self.was_open, deadline, f"RabbitMQ at {self.where} does not answer")

    def wait_unblocked(self, deadline: Deadline) -> None:
        """Return when the server takes messages.

        Raises:
            ConnectionLostError: The connection is gone.
            TimedOutError: It doesn't in time.
        """
        if self.blocked_by is not None:
            self._wait(lambda: self.blocked_by is None, deadline, self.blocked_problem())

    def blocked_problem(self) -> str:
        """Return what to say about a server that takes no messages."""
        return f"RabbitMQ at {self.where} takes no messages at the moment: {self.blocked_by}"

    def _wait(self, condition: Callable[[], bool], deadline: Deadline, problem: str) -> None:
        while self.problem is None and not condition():
            if deadline.passed:
                raise TimedOutError(problem)
            change = Awaited()
            self._watchers[change] = None
            try:
                if self.problem is None and not condition():
                    self.wait(change, deadline)
            finally:
                self._watchers.pop(change, None)
        if self.problem is not None:
            raise ConnectionLostError(self.problem)

    def _changed(self) -> None:
        for watcher in list(self._watchers):
            watcher.finish()

    def attach(self, endpoint: Endpoint) -> int:
        """Take a new channel in, and return its number.

        Raises:
            ConnectionLostError: The connection is gone.
        """
        with self._state:
            if self.problem is not None:
                raise ConnectionLostError(self.problem)
            number = next(each for each in range(1, self._channel_max + 1) if each not in self._endpoints)
            self._endpoints[number] = endpoint
            return number

    def detach(self, number: int) -> None:
        """Free the number of a channel that is closed on both sides."""
        with self._state:
            self._endpoints.pop(number, None)

    @contextmanager
    def writing(self, deadline: Deadline) -> Generator[None, None, None]:
        """Keep other threads from writing during the block.

        Raises:
            ConnectionLostError: The connection is gone.
            TimedOutError: Others write all the time.
        """
        try:
            self.begin_writing(deadline)
            yield
        finally:
            try:
                self.end_writing()
            except BaseException:  # a time limit, as it was called
                self.end_writing()
                raise

    def begin_writing(self, deadline: Deadline) -> None:
        """Do as at the beginning of `writing`; inside `try`, with `end_writing` in its `finally`."""
        if self._writing.is_mine:  # a signal's handler came in between
            self.lose_interrupted()
        else:
            self._writing.take(deadline, self._deaf)
        if self.problem is not None:
            raise ConnectionLostError(self.problem)

    def end_writing(self) -> None:
        """Let other threads write; what was left for who has finished is sent first."""
        self._writing.drop()
        if self._soon and self.problem is None:
            self._push_if_free()

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes, inside `writing`. What the server doesn't read in time will be sent before all else.

        Raises:
            ConnectionLostError: The connection is gone.
            TimedOutError: The server does not read.
        """
        if self._soon:
            self._unsent.extend(memoryview(piece) for piece in self._taken_soon())
        self._unsent.append(memoryview(data))
        while not self._push():
            if deadline.passed:
                raise TimedOutError(self._deaf)
            self._wait_writable(deadline)
        if self.problem is not None:
            raise ConnectionLostError(self.problem)

    def write_soon(self, data: bytes) -> None:
        """Send bytes without waiting: now, or when the thread that is writing has finished."""
        self._soon.append(data)
        self._push_if_free()

    def wait(self, awaited: Awaited, deadline: Deadline) -> bool:
        """Return whether it has come, at the deadline at last; read meanwhile, unless somebody else does."""
        try:
            while not awaited.done and not deadline.passed:
                if self._lead(awaited, deadline):
                    continue
                awaited.arm()
                self._followers[awaited] = None
                # Who led has gone perhaps before it knew of this one; and what came before `arm` has rung for nobody.
                if not self._lead(awaited, deadline) and not awaited.done:
                    awaited.sleep(deadline.slice_s)
                    self._resign(awaited)
        finally:
            self._followers.pop(awaited, None)
            self._resign(awaited)
            self._hand_on()
        return awaited.done

    def _lead(self, awaited: Awaited, deadline: Deadline) -> bool:
        """Read until it has come, and tell whether that was possible."""
        if not self._can_be_led:
            return False
        try:
            if not self._reading.take_if_free():
                return False
            self._read_until(awaited, deadline)
            return True
        finally:
            try:
                self._stop_reading()
            except BaseException:  # a time limit, as it was called: it would keep all others from reading for ever
                self._stop_reading()
                raise

    @property
    def _can_be_led(self) -> bool:
        return self._stands_back and self.was_open and self.problem is None

    @property
    def _stands_back(self) -> bool:
        """Whether its own thread leaves the reading to those who wait."""
        return not self._crowded and not self._consumes

    def _read_until(self, awaited: Awaited, deadline: Deadline) -> None:
        self._heir = None
        while not awaited.done and self.problem is None and self._socket is not None:
            self._leads = self._led = True  # in each turn: a signal's handler may have led meanwhile
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            # In slices: after a signal's handler the call goes on, though the handler may have read all there was.
            if poll.poll(min(_REST_S, deadline.slice_s) * 1000):
                self._read(all_of_it=self._is_tls)  # which holds what poll does not see
            elif deadline.passed:
                return

    def _stop_reading(self) -> None:
        if self._reading.is_mine:
            self._leads = False
            self._reading.drop()

    def _hand_on(self) -> None:
        """Let one of those who wait for a reader be it.

        The one that came last, for its answer will be the last to arrive: it reads for most of the others.
        """
        if not self._followers or self._leads:
            return
        if len(self._followers) >= _CROWD:
            self._crowded = True
        if not self._can_be_led:
            if self._rests:
                self._rest.put(None)
        elif self._heir is None:
            try:
                heir, _ = self._followers.popitem()
            except KeyError:
                return  # they have gone
            self._heir = heir
            heir.ring()

    def _resign(self, awaited: Awaited) -> None:
        if self._heir is awaited:
            self._heir = None

    def keep_reading(self) -> None:
        """Let its own thread read all the time from now on, as deliveries ask for."""
        self._consumes = True
        self._rest.put(None)

    def receive(self) -> None:
        """Take in what has arrived, without waiting for more; so a connection that is closed already is noticed."""
        if self._leads:  # that thread does so; or this one, which a signal's handler has interrupted
            return
        seen_at = time.monotonic()
        try:
            while not self._leads and self.problem is None:
                if self._reading.take_within(_MOMENT_S):
                    self._read(all_of_it=True)
                    break
                if self._takes:
                    seen_at = time.monotonic()
                elif time.monotonic() - seen_at > _LEFT_BEHIND_S:  # whoever has it neither reads nor leads
                    self.lose_interrupted()
        finally:
            try:
                self._stop_reading()
            except BaseException:  # as in `_lead`
                self._stop_reading()
                raise
            self._hand_on()

    def _read(self, *, all_of_it: bool) -> None:
        if self._takes:  # a signal's handler came in between, and can't wait for the rest of what it has interrupted
            self.lose_interrupted()
        try:
            self._takes = True
            while self.problem is None:
                data = self._receive_some()
                if data is None:
                    return
                self.heard_at = time.monotonic()
                self._take(data)
                if not all_of_it:
                    return
        except BaseException:
            self.lose_interrupted()
            raise
        finally:
            self._takes = False

    def lose(self, problem: str) -> None:
        """Give the connection up: everyone who waits for it learns of it, and its thread ends."""
        with self._state:
            if self.problem is not None:
                return
            self.problem = problem
            endpoints = list(self._endpoints.values())
        self._changed()
        for endpoint in endpoints:
            endpoint.lose(problem)
        self._rest.put(None)
        if self._socket is not None:
            try:
                # Wakes the threads that wait for it; its own thread closes it. (SSLSocket.shutdown forgets its cipher.)
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError as exc:
                _log.debug("the socket was shut down already: %s", exc)

    def lose_interrupted(self) -> None:
        """Give the connection up because a signal, or a time limit, interrupted a thread at work on it.

        What it was at can't be known, and if the connection went on, each confirm might be taken for another's.
        """
        self.lose(f"the connection to RabbitMQ at {self.where} was interrupted")

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Take leave of the server, and end the connection; what waits to be confirmed is lost."""
        deadline = Deadline(timeout_s)
        try:
            if self.was_open:
                with self.writing(deadline):
                    self.write(method_bytes(0, spec.Connection.Close(200, "Normal shutdown", 0, 0)), deadline)
                self._wait(lambda: False, deadline, "no answer")
        except (ConnectionLostError, TimedOutError) as exc:
            _log.debug("connection to RabbitMQ at %s closed: %s", self.where, exc)
        self.lose("the connection was closed")
        if self._thread.is_alive():
            self._thread.join(deadline.left_s)

    def forget(self) -> None:
        """Let go of the socket in a forked process; its parent goes on using it."""
        self.problem = "the connection belongs to the parent process"
        if self._socket is not None:
            self._socket.close()

    # Its own thread

    def _run(self) -> None:
        try:
            self._connect()
            self._serve()
        except TimeoutError:
            self.timed_out = True
            self.lose(f"RabbitMQ at {self.where} does not answer")
        except (OSError, NotAMQPError, ConnectionLostError) as exc:
            self.lose(f"no connection to RabbitMQ at {self.where}: {exc}")
        except Exception as exc:
            _log.exception("the connection to RabbitMQ at %s failed", self.where)
            self.lose(f"the connection to RabbitMQ at {self.where} failed: {exc!r}")
        finally:
            with self._writing.held(Deadline(), ""), self._reading.held(Deadline(), ""):
                if self._socket is not None:
                    self._socket.close()

    def _connect(self) -> None:
        addresses = socket.getaddrinfo(self._parameters.host, self._parameters.port, type=socket.SOCK_STREAM)
        deadline = Deadline(self._timeout_s)
        connected = _connected(addresses, deadline)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = connected
        tls = self._parameters.ssl_options
        if tls is not None:
            name = tls.server_hostname or self._parameters.host
            self._socket = connected = tls.context.wrap_socket(connected, server_hostname=name)
            self._is_tls = True
        self._shake_hands(connected, deadline)
        connected.setblocking(False)
        with self._state:
            if self.problem is not None:
                return
            self.was_open = True
        self._changed()

    def _shake_hands(self, connected: socket.socket, deadline: Deadline) -> None:
        def send(data: bytes) -> None:
            connected.settimeout(max(deadline.left_s, 0.001))
            connected.sendall(data)

        def expect(kind: type[Any]) -> Any:
            while True:
                connected.settimeout(max(deadline.left_s, 0.001))
                data = connected.recv(_READ_BYTES)
                if not data:
                    raise ConnectionLostError("it closed the connection before it was open")
                for _, _, payload in self._reader.feed(data):
                    method = method_of(payload)
                    if isinstance(method, kind):
                        return method
                    if isinstance(method, spec.Connection.Close):
                        raise ConnectionLostError(f"it refused: {method.reply_text}")

        send(PREAMBLE)
        start = expect(spec.Connection.Start)
        self.server_version = _version(start.server_properties)
        mechanism, response = self._parameters.credentials.response_for(start)
        if mechanism is None:
            raise ConnectionLostError(f"it takes none of our ways to log in, but {start.mechanisms!r}")
        send(method_bytes(0, spec.Connection.StartOk(_client_properties(), mechanism, response, "en_US")))
        tune = expect(spec.Connection.Tune)
        self.frame_max = min(tune.frame_max or FRAME_MAX, FRAME_MAX)
        self._channel_max = tune.channel_max or 2047
        self._heartbeat_s = self._agreed_heartbeat_s(tune.heartbeat)
        send(method_bytes(0, spec.Connection.TuneOk(self._channel_max, self.frame_max, int(self._heartbeat_s))))
        send(method_bytes(0, spec.Connection.Open(self._parameters.virtual_host)))
        expect(spec.Connection.OpenOk)
        self.heard_at = self._sent_at = time.monotonic()

    def _agreed_heartbeat_s(self, proposed_s: int) -> float:
        asked_s = self._parameters.heartbeat if isinstance(self._parameters.heartbeat, int) else None
        if asked_s is None:
            asked_s = proposed_s
        if self._asked_heartbeat_s is None:
            return asked_s
        return min(asked_s, self._asked_heartbeat_s) if asked_s else self._asked_heartbeat_s

    def _serve(self) -> None:
        poll = select.poll()
        if self._socket is None:
            return
        poll.register(self._socket, select.POLLIN)
        while self.problem is None:
            wait_s = min(_IDLE_S, self._heartbeat_s / 4) if self._heartbeat_s else _IDLE_S
            if self._unsent or self._soon:
                wait_s = min(wait_s, _PENDING_S)
            self._rests = True  # said before it looks whether anybody leads, so that who stops doing so knows
            if self._leads or (self._led and self._stands_back):
                self._led = False
                self._stand_back(min(wait_s, _REST_S))
                self._rests = False
            else:
                self._rests = False
                poll.poll(wait_s * 1000)
            self._note_crowd()
            self.receive()
            self._show_life(poll)

    def _stand_back(self, time_s: float) -> None:
        try:
            self._rest.get(timeout=time_s)
        except Empty:
            return  # now it looks again

    def _note_crowd(self) -> None:
        if self._crowded:
            self._calm_reads = 0 if len(self._followers) >= _CROWD else self._calm_reads + 1
            if self._calm_reads == _CALM_READS:
                self._crowded = False
                self._calm_reads = 0

    def _show_life(self, poll: select.poll) -> None:
        self._push_if_free()
        if not self._heartbeat_s:
            return
        now = time.monotonic()
        if now - self.heard_at > 2 * self._heartbeat_s:
            if not (self._leads and poll.poll(0)):  # the process stood still perhaps, and who leads is about to read
                self.lose(f"RabbitMQ at {self.where} has shown no sign of life for {now - self.heard_at:.1f} s")
        elif now - self._sent_at > self._heartbeat_s / 2 and not self._soon and not self._unsent:
            self.write_soon(HEARTBEAT)

    # Bytes

    def _taken_soon(self) -> list[bytes]:
        return [self._soon.popleft() for _ in range(len(self._soon))]

    def _push_if_free(self) -> None:
        """Send what waits for it, unless another thread is writing, which then does so when it has finished."""
        while (self._soon or self._unsent) and not self._writing.is_mine:  # else this thread does so at the end, too
            with self._writing.tried() as ours:
                if not ours:
                    return
                self._unsent.extend(memoryview(piece) for piece in self._taken_soon())
                if not self._push():
                    return

    def _push(self) -> bool:
        """Send what the system takes at once, and tell whether that was all."""
        try:
            while self._unsent and self._socket is not None:
                view = self._unsent[0]
                sent = self._in_turn(self._socket.send, view) if self._is_tls else self._socket.send(view)
                self._sent_at = time.monotonic()
                if sent < len(view):
                    self._unsent[0] = view[sent:]
                else:
                    self._unsent.popleft()
        except _WOULD_BLOCK:
            return False
        except OSError as exc:
            self._unsent.clear()
            self.lose(f"the connection to RabbitMQ at {self.where} broke: {exc}")
        except BaseException:
            self.lose_interrupted()
            raise
        return True

    def _in_turn(self, call: Callable[[_Argument], _Result], argument: _Argument) -> _Result:
        """Do something with the socket of TLS; each of these takes no time, for none waits."""
        if self._tls.is_mine:  # a signal's handler came in between
            self.lose_interrupted()
            raise BlockingIOError
        with self._tls.held(Deadline(self._timeout_s), self._deaf):
            return call(argument)

    def _wait_writable(self, deadline: Deadline) -> None:
        if self._socket is not None and self.problem is None:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            poll.poll(deadline.slice_s * 1000)

    def _receive_some(self) -> bytes | None:
        """Return bytes, or None if there are none; none will come if the connection has a problem then."""
        if self._socket is None:
            return None
        try:
            data = self._in_turn(self._socket.recv, _READ_BYTES) if self._is_tls else self._socket.recv(_READ_BYTES)
        except _WOULD_BLOCK:
            return None
        except OSError as exc:
            self.lose(f"the connection to RabbitMQ at {self.where} broke: {exc}")
            return None
        if not data:
            self.lose(f"RabbitMQ at {self.where} closed the connection")
            return None
        return data

    def _take(self, data: bytes) -> None:
        try:
            for kind, channel, payload in self._reader.feed(data):
                if channel == 0:
                    self._take_own(kind, payload)
                elif channel in self._endpoints:
                    self._endpoints[channel].take(kind, payload)
        except NotAMQPError as exc:
            self.lose(f"RabbitMQ at {self.where}: {exc}")
        except Exception as exc:
            _log.exception("what RabbitMQ at %s sent can't be read", self.where)
            self.lose(f"what RabbitMQ at {self.where} sent can't be read: {exc!r}")

    def _take_own(self, kind: int, payload: bytes) -> None:
        if kind != spec.FRAME_METHOD:
            return  # a heartbeat
        method = method_of(payload)
        if isinstance(method, spec.Connection.Close):
            self.write_soon(method_bytes(0, spec.Connection.CloseOk()))
            self.lose(f"RabbitMQ at {self.where} closed the connection: {method.reply_text}")
        elif isinstance(method, spec.Connection.CloseOk):
            self.lose("the connection was closed")
        elif isinstance(method, spec.Connection.Blocked):
            self._block(str(method.reason))
        elif isinstance(method, spec.Connection.Unblocked):
            self._block(None)

    def _block(self, reason: str | None) -> None:
        with self._state:
            self.blocked_by = reason
        self._changed()


def _connected(addresses: list[Any], deadline: Deadline) -> socket.socket:
    """Return a socket that is connected to the first address that answers, with a fair part of the time for each."""
    problem: OSError | None = None
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(max(0.001, deadline.left_s / (len(addresses) - number)))
            made.connect(address)
        except OSError as exc:
            made.close()
            problem = exc
        else:
            return made
    raise OSError("its name has no address") if problem is None else problem


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


def parameters_of(url: str) -> Any:
    """Return what a URL says about a connection, as pika reads it.

    Raises:
        ValueError: It can't be read.
    """
    return pika.URLParameters(url)
