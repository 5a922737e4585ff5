"""AMQP 0-9-1 frames, to and from bytes. Methods and properties themselves are pika's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

import pika
from pika import frame, spec

PREAMBLE: Final = frame.ProtocolHeader().marshal()
HEARTBEAT: Final = frame.Heartbeat().marshal()

_HEAD: Final = Struct(">BHI")  # kind, channel, size
_CONTENT_HEAD: Final = Struct(">BHIHHQ")  # kind, channel, size, class, weight, size of the body
_NEXT: Final = Struct(">BBHI")  # the end of a frame, and the head of the next
_CONTENT_SIZE: Final = _CONTENT_HEAD.size - _HEAD.size
_END: Final = bytes([spec.FRAME_END])
_KINDS: Final = frozenset({spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT})
_OVERHEAD: Final = _HEAD.size + len(_END)

FRAME_MAX: Final = 1 << 17
"""The size of the largest frame, in bytes, unless the server asks for smaller ones; RabbitMQ's own default."""

PROPERTIES_ROOM: Final = FRAME_MAX - _OVERHEAD - _CONTENT_SIZE
"""How many bytes encoded properties may have: they can't be split."""

Frame = tuple[int, int, bytes]
"""Kind, channel and payload."""


class NotAMQPError(Exception):
    """What came is no frame of AMQP 0-9-1."""


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete with these bytes.

        Raises:
            NotAMQPError: The stream is something else.
        """
        if self._rest:
            data = self._rest + data
        frames: list[Frame] = []
        start = 0
        while len(data) - start >= _HEAD.size:
            kind, channel, size = _HEAD.unpack_from(data, start)
            if kind not in _KINDS:
                raise NotAMQPError(f"it doesn't speak AMQP 0-9-1, but sent {data[start : start + 8]!r}")
            end = start + _HEAD.size + size
            if len(data) <= end:
                break
            if data[end] != spec.FRAME_END:
                raise NotAMQPError("it sent a frame without an end")
            frames.append((kind, channel, data[start + _HEAD.size : end]))
            start = end + 1
        self._rest = data[start:]
        return frames


def method_of(payload: bytes) -> Any:
    """Return the method in a method frame."""
    method = spec.methods[int.from_bytes(payload[:4], "big")]()
    return method.decode(payload, 4)


class Confirm(NamedTuple):
    """An answer to publications.

    Attributes:
        number: Of the publication, or of the last one.
        multiple: Whether those before it are meant too.
        taken: Whether the server has taken responsibility.
    """

    number: int
    multiple: bool
    taken: bool


_CONFIRM: Final = Struct(">IQB")  # class and method, number, bits; a basic.nack's second bit is not used here
_CONFIRMS: Final = {spec.Basic.Ack.INDEX: True, spec.Basic.Nack.INDEX: False}


def confirm_of(payload: bytes) -> Confirm | None:
    """Return the confirm in a method frame, in a fifth of pika's time; None if it is another method."""
    if len(payload) != _CONFIRM.size:
        return None
    method, number, bits = _CONFIRM.unpack(payload)
    taken = _CONFIRMS.get(method)
    return None if taken is None else Confirm(number, bits & 1 == 1, taken)


def content_of(payload: bytes) -> tuple[int, pika.BasicProperties]:
    """Return the size of the body and the properties in a header frame."""
    properties = pika.BasicProperties()
    properties.decode(payload[_CONTENT_SIZE:])
    return int.from_bytes(payload[4:12], "big"), properties


def method_bytes(channel: int, method: Any) -> bytes:
    """Return the frame of a method."""
    marshalled: bytes = frame.Method(channel, method).marshal()
    return marshalled


@lru_cache(maxsize=512)
def _publish_bytes(channel: int, exchange: str, key: str) -> bytes:
    return method_bytes(channel, spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))


def publication_frames(
    channel: int, exchange: str, key: str, properties: bytes, body: bytes, frame_max: int
) -> Sequence[bytes]:
    """Return the frames of a mandatory publication, in pieces."""
    size = len(body)
    publish = _publish_bytes(channel, exchange, key)
    head = _CONTENT_HEAD.pack(spec.FRAME_HEADER, channel, _CONTENT_SIZE + len(properties), spec.Basic.INDEX, 0, size)
    room = frame_max - _OVERHEAD
    if 0 < size <= room:
        return publish, head, properties, _NEXT.pack(spec.FRAME_END, spec.FRAME_BODY, channel, size), body, _END
    pieces = [publish, head, properties, _END]
    for start in range(0, size, room):
        part = body[start : start + room]
        pieces += (_HEAD.pack(spec.FRAME_BODY, channel, len(part)), part, _END)
    return pieces
