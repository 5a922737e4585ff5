"""kombu's transport for RabbitMQ, with fewer system calls: each lets go of the interpreter's lock, and waits for it.

py-amqp asks the system for a frame in three parts, sets the socket's timeout before and after each frame, and writes
each acknowledgement by itself. With a pool of threads, every one of these calls is a chance for another thread to take
the lock, and the main loop then waits until that thread sleeps. Here the loop reads all that has come at once, and
writes the acknowledgements of one of its turns together, before it sleeps. Connections with TLS read as py-amqp does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import UnexpectedFrame
from amqp.transport import TCPTransport as _TCPTransport
from kombu.transport import pyamqp as _pyamqp

from taskbridge.engines.celery.stock import stock

if TYPE_CHECKING:
    from taskbridge.engines.celery.stock import Untyped

    class TCPTransport(Untyped):
        """Stands for `amqp.transport.TCPTransport`."""

    class AmqpChannel(Untyped):
        """Stands for `kombu.transport.pyamqp.Channel`."""

    class AmqpConnection(Untyped):
        """Stands for `kombu.transport.pyamqp.Connection`."""

    class AmqpTransport(Untyped):
        """Stands for `kombu.transport.pyamqp.Transport`."""
else:
    TCPTransport = _TCPTransport
    AmqpChannel = _pyamqp.Channel
    AmqpConnection = _pyamqp.Connection
    AmqpTransport = _pyamqp.Transport

_CHUNK: Final = 65_536
_FRAME_HEAD: Final = Struct(">BHI")
_FRAME_END: Final = 0xCE
_BASIC_ACK: Final = (60, 80)
_ACK: Final = Struct(">BHIHHQBB")
"""A whole frame with `basic.ack`: type, channel, size, class, method, tag, multiple, end."""


class Socket(TCPTransport):
    """A socket from which as much is read at a time as there is."""

    def _read(self, n: int, initial: bool = False, *_: Any) -> bytes:
        """Return exactly so many bytes; what came with them is kept for the next call."""
        held: bytes = self._read_buffer
        if len(held) >= n:
            self._read_buffer = held[n:]
            return held[:n]
        quick: Callable[[int], bytes] = self._quick_recv
        self._quick_recv = lambda size: quick(max(size, _CHUNK))
        try:
            read: bytes = stock(super())._read(n, initial)
        finally:
            self._quick_recv = quick
        return read

    def receive(self) -> None:
        """Read what has come, without waiting.

        Raises:
            OSError: The connection is closed.
        """
        try:
            received: bytes = self.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        if not received:
            raise OSError("Server unexpectedly closed connection")
        self._read_buffer += received

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """Return the next frame of what was read: its type, channel and payload; None if it is not whole."""
        held: bytes = self._read_buffer
        if len(held) < _FRAME_HEAD.size:
            return None
        kind, channel, size = _FRAME_HEAD.unpack_from(held)
        end = _FRAME_HEAD.size + size
        if len(held) <= end:
            return None
        if held[end] != _FRAME_END:
            raise UnexpectedFrame(f"Received frame_end {held[end]:#04x} while expecting {_FRAME_END:#04x}")
        self._read_buffer = held[end + 1 :]
        return kind, channel, held[_FRAME_HEAD.size : end]


class Channel(AmqpChannel):
    """A channel whose acknowledgements are written together."""

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> Any:
        """Acknowledge a message: in the event loop with the end of its turn, elsewhere at once."""
        connection = self.connection
        if connection is None or not connection.gathers:
            return stock(super()).basic_ack(delivery_tag, multiple, argsig)
        connection.gathered.append(
            _ACK.pack(1, self.channel_id, 13, *_BASIC_ACK, delivery_tag, bool(multiple), _FRAME_END)
        )
        return None

    def send_method(self, *args: Any, **options: Any) -> Any:
        """Send a method, after the acknowledgements that came before it."""
        if self.connection is not None:
            self.connection.write_gathered()
        return stock(super()).send_method(*args, **options)


class Connection(AmqpConnection):
    """A connection that an event loop serves.

    Attributes:
        gathers: Whether acknowledgements wait for the end of the loop's turn.
        gathered: Their frames.
    """

    Channel = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        self.gathers = False
        self.gathered: list[bytes] = []
        super().__init__(*args, **options)

    def Transport(self, host: str, connect_timeout: float | None, ssl: Any = False, *args: Any, **options: Any) -> Any:  # noqa: N802 - py-amqp's name
        """Return the socket to be connected."""
        made = stock(super()).Transport(host, connect_timeout, ssl, *args, **options)
        if type(made) is _TCPTransport:
            made.__class__ = Socket
        return made

    def send_method(self, *args: Any, **options: Any) -> Any:
        """Send a method of the connection's own, after the acknowledgements that came before it."""
        self.write_gathered()
        return stock(super()).send_method(*args, **options)

    def serve(self, loop: Any) -> None:
        """Have the loop read this connection, and write what was gathered before it sleeps."""
        self.gathers = True

        def on_tick() -> None:
            if not self.connected:
                loop.on_tick.discard(on_tick)
                return
            self.write_gathered()
            if isinstance(self.transport, Socket):
                self._handle()  # what a call that waited for a reply has read beyond it

        loop.on_tick.add(on_tick)

    def receive(self) -> None:
        """Handle all that has come.

        Raises:
            OSError: The connection is closed.
        """
        self.transport.receive()
        self._handle()

    def _handle(self) -> None:
        while self.connected and (frame := self.transport.next_frame()) is not None:
            self.on_inbound_frame(frame)

    def write_gathered(self) -> None:
        """Write what was gathered.

        Raises:
            OSError: The connection is closed.
        """
        if self.gathered and self.connected:
            frames, self.gathered = self.gathered, []
            self.transport.write(b"".join(frames))
            self.bytes_sent += len(frames)

    def stop_gathering(self) -> None:
        """Write what was gathered, and each acknowledgement at once from now on: the loop ends."""
        self.gathers = False
        self.write_gathered()


class Transport(AmqpTransport):
    """A transport whose connections are served by the event loop as a whole."""

    Connection = Connection
    engine: Any = None

    def register_with_event_loop(self, connection: Connection, loop: Any) -> None:
        """Have a connection served by Celery's event loop."""
        connection.serve(loop)
        if isinstance(connection.transport, Socket):
            loop.add_reader(connection.sock, connection.receive)
        else:
            stock(super()).register_with_event_loop(connection, loop)
