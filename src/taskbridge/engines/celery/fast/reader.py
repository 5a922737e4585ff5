"""kombu's transport for RabbitMQ, with fewer system calls: each lets go of the interpreter's lock, and waits for it.

py-amqp asks the system for a frame in three parts, sets the socket's timeout before and after each frame, and writes
each acknowledgement by itself. With a pool of threads, every one of these calls is a chance for another thread to take
the lock, and the main loop then waits until that thread sleeps. Here the loop reads all that has come at once, and
acknowledgements are written together: by the loop before it sleeps, or by a slot, which needs not wake it for that.
Connections with TLS read as py-amqp does, and the loop alone writes to them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from struct import Struct
from typing import Any, Final, NamedTuple

from amqp.basic_message import Message as _AmqpMessage
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from amqp.serialization import decode_properties_basic as _decode_properties

from taskbridge import locks
from taskbridge.engines.celery import rabbitmq
from taskbridge.engines.celery.stock import TCPTransport, stock

_Message: Final[Any] = _AmqpMessage
decode_properties: Final[Any] = _decode_properties

_CHUNK: Final = 65_536
_METHOD, _HEADER, _BODY = 1, 2, 3  # the kinds of frames of which a message is made
_DELIVER: Final = bytes((0, 60, 0, 60))  # the class and the method of `basic.deliver`
_FRAME_ROOM: Final = 8  # what a frame takes beside its payload: seven bytes before it, and one after it
_SIZE_OF_BODY: Final = Struct(">Q")
_TAG: Final = Struct(">QB")
_FRAME_HEAD: Final = Struct(">BHI")
_FRAME_END: Final = 0xCE
_BASIC_ACK: Final = (60, 80)
_ACK: Final = Struct(">BHIHHQBB")
"""A whole frame with `basic.ack`: type, channel, size, class, method, tag, multiple, end."""


class _Delivery(NamedTuple):
    """A message, taken out of three frames; `end` is where the next frame begins."""

    channel: int
    arguments: tuple[str, int, bool, str, str]  # consumer tag, delivery tag, is redelivered, exchange, routing key
    properties: dict[str, Any]
    body: bytes
    end: int


def _delivery(held: bytes) -> _Delivery | None:
    """Return the message with which these bytes begin; None if it is not whole, or in more frames than three."""
    _, channel, size = _FRAME_HEAD.unpack_from(held)
    header_at = size + _FRAME_ROOM
    kind, header_channel, header_size = _FRAME_HEAD.unpack_from(held, header_at)
    body_at = header_at + header_size + _FRAME_ROOM
    body_kind, body_channel, body_size = _FRAME_HEAD.unpack_from(held, body_at)
    end = body_at + body_size + _FRAME_ROOM
    if len(held) < end or (kind, body_kind) != (_HEADER, _BODY) or not channel == header_channel == body_channel:
        return None
    if not held[header_at - 1] == held[body_at - 1] == held[end - 1] == _FRAME_END:
        return None
    if _SIZE_OF_BODY.unpack_from(held, header_at + 11) != (body_size,):
        return None
    consumer_tag, at = _short(held, 11)
    tag, is_redelivered = _TAG.unpack_from(held, at)
    exchange, at = _short(held, at + _TAG.size)
    routing_key, _ = _short(held, at)
    arguments = consumer_tag, tag, bool(is_redelivered & 1), exchange, routing_key
    return _Delivery(channel, arguments, decode_properties(held, header_at + 19)[0], held[body_at + 7 : end - 1], end)


def _short(held: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + held[at]
    return held[at + 1 : end].decode(), end


class Socket(TCPTransport):
    """A socket from which as much is read at a time as there is, and to which any thread may write whole frames."""

    connected: bool
    _read_buffer: bytes  # py-amqp's own reading begins with what is left here

    def __init__(self, *args: Any, **options: Any) -> None:
        self.writing: Any = locks.RLock()
        super().__init__(*args, **options)

    def write(self, s: Any) -> None:
        """Write frames; none of another thread's comes in between."""
        with self.writing:
            try:
                stock(super()).write(s)
            except OSError:  # half a frame may have gone: the main loop is to read the end of the connection
                self.connected = False
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)
                raise

    def receive(self) -> None:
        """Read what has come, without waiting; raises `OSError` if the connection is closed."""
        try:
            received: bytes = self.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.connected = False
            raise
        if not received:
            self.connected = False
            raise OSError("Server unexpectedly closed connection")
        self._read_buffer += received

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """Return the next frame of what was read: its type, channel and payload; None if it is not whole."""
        held = self._read_buffer
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


class Channel(rabbitmq.Channel):
    """A channel whose acknowledgements are written together."""

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> Any:
        """Acknowledge a message, in any thread: with others, unless no event loop serves the connection."""
        connection = self.connection
        if connection is None:
            return stock(super()).basic_ack(delivery_tag, multiple, argsig)
        connection.gathered.append(
            _ACK.pack(1, self.channel_id, 13, *_BASIC_ACK, delivery_tag, bool(multiple), _FRAME_END)
        )
        return None if connection.gathers else connection.write_gathered()

    @property
    def writer(self) -> Callable[[], None] | None:
        """What a slot may call to write what was gathered; None if only the main loop may."""
        connection = self.connection
        if connection is None or not isinstance(connection._transport, Socket):
            return None
        write: Callable[[], None] = connection.write_gathered
        return write

    def send_method(self, *args: Any, **options: Any) -> Any:
        """Send a method, after the acknowledgements that came before it."""
        if self.connection is not None:
            self.connection.write_gathered()
        return stock(super()).send_method(*args, **options)


class Connection(rabbitmq.Connection):
    """A connection that an event loop serves."""

    Channel = Channel
    bytes_recv: int
    bytes_sent: int

    def __init__(self, *args: Any, **options: Any) -> None:
        self.gathers: bool = False  # whether acknowledgements wait for the end of the loop's turn
        self.gathered: deque[bytes] = deque()  # their frames
        self.taken: int = 0  # how many deliveries were read here, and not by py-amqp
        super().__init__(*args, **options)

    def Transport(  # noqa: N802 - the name and the order of arguments are py-amqp's
        self, host: str, connect: Any, ssl: Any = False, read: Any = None, write: Any = None, **options: Any
    ) -> Any:
        """Return the socket to be connected, given how long connecting, reading and writing may take, in seconds."""
        options |= {"connect_timeout": connect, "read_timeout": read, "write_timeout": write}
        return stock(super()).Transport(host, ssl=ssl, **options) if ssl else Socket(host, **options)

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
            if isinstance(self.transport, Socket):
                self._handle()  # what a call that waited for a reply has read beyond it
            self.write_gathered()

        loop.on_tick.add(on_tick)

    def receive(self) -> None:
        """Handle all that has come; raises `OSError` if the connection is closed, or was before (py-amqp's own)."""
        if not self.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        self.transport.receive()
        self._handle()

    def _handle(self) -> None:
        while self.connected:
            delivery = self._next_delivery()
            if delivery is not None:
                delivery()
            elif (frame := self.transport.next_frame()) is not None:
                self.on_inbound_frame(frame)
            else:
                return

    def _next_delivery(self) -> Callable[[], Any] | None:
        """Take a message off what was read, if that begins with a whole one; return what delivers it.

        What is odd about it in any way is left to py-amqp.
        """
        transport = self.transport
        held: bytes = transport._read_buffer
        if held[7:11] != _DELIVER or held[0] != _METHOD:
            return None
        try:
            found = _delivery(held)
        except Exception:  # it is not whole, or its properties can't be read
            return None
        channel = None if found is None else self.channels.get(found.channel)
        if found is None or channel is None or channel.is_closing:
            return None
        transport._read_buffer = held[found.end :]
        self.bytes_recv += 3
        self.taken += 1
        message = _Message(found.body)
        message.properties = found.properties
        return partial(channel._on_basic_deliver, *found.arguments, message)

    def write_gathered(self) -> None:
        """Write what was gathered; raises `OSError` if the connection is closed."""
        transport: Any = self._transport  # `transport` would connect anew if the main loop has just given it up
        if not (self.gathered and transport and transport.connected):
            return
        with getattr(transport, "writing", nullcontext()):
            frames: list[bytes] = []
            with suppress(IndexError):  # there is none left; slots may append more meanwhile
                while True:
                    frames.append(self.gathered.popleft())
            transport.write(b"".join(frames))
            self.bytes_sent += len(frames)

    def stop_gathering(self) -> None:
        """Write what was gathered, and each acknowledgement at once from now on: the loop ends."""
        self.gathers = False
        self.write_gathered()


class Transport(rabbitmq.Transport):
    """A transport whose connections are served by the event loop as a whole."""

    Connection = Connection
    slots_write = True

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have a connection served by Celery's event loop."""
        connection.serve(loop)
        if isinstance(connection.transport, Socket):
            loop.add_reader(connection.sock, connection.receive)
        else:
            stock(super()).register_with_event_loop(connection, loop)
