"""AMQP frames. Methods, properties and tables are pika's; what each message needs is packed and cut here.

pika takes 25 us to decode a delivery's properties, which are not needed, 12 us for its method, of which two fields are,
and six times as long as a `Struct` to encode an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from struct import Struct
from typing import Any, Final, NamedTuple

import pika
from pika import frame, spec

PREAMBLE: Final = frame.ProtocolHeader().marshal()
HEARTBEAT: Final = frame.Heartbeat().marshal()

FRAME_MAX: Final = 1 << 17
"""The size of the largest frame, in bytes, unless the server or the URL asks for smaller ones; RabbitMQ's default."""

_OVERHEAD: Final = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_CONTENT_SIZE: Final = 12  # how many bytes stand before the properties in a header frame

PROPERTIES_ROOM: Final = FRAME_MAX - _OVERHEAD - _CONTENT_SIZE
"""How many bytes encoded properties may have: they can't be split."""

HEAD: Final = Struct(">BHI")  # kind, channel, size
KINDS: Final = frozenset({spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT})
_CONTENT_HEAD: Final = Struct(">BHIHHQ")  # kind, channel, size, class, weight, size of the body
_END: Final = bytes([spec.FRAME_END])
_DELIVER: Final = spec.Basic.Deliver.INDEX.to_bytes(4, "big")
_RETURN: Final = spec.Basic.Return.INDEX.to_bytes(4, "big")
_TAG: Final = Struct(">QB")  # delivery tag, bits of which the lowest says whether it was delivered before
_ACK: Final = Struct(">BHIHHQBB")  # kind, channel, size, class, method, delivery tag, whether all up to it, end
_ACK_SIZE: Final = 13
_ACK_INDEX: Final = divmod(spec.Basic.Ack.INDEX, 1 << 16)


class Delivery(NamedTuple):
    """A message that was delivered."""

    tag: int  # the delivery tag, by which it is acknowledged
    body: bytes
    redelivered: bool = False  # whether it was delivered before and not acknowledged
    times: Callable[[], object] | None = None  # returns how often, if it was, where a quorum queue counts that


class Returned(NamedTuple):
    """A message that was routed to no queue: its exchange and key, and its property `message_id`."""

    exchange: str
    key: str
    token: str | None


def method_bytes(channel: int, method: Any) -> bytes:
    """Return the frame of a method."""
    marshalled: bytes = frame.Method(channel, method).marshal()
    return marshalled


def method_of(payload: bytes) -> Any:
    """Return the method in a method frame."""
    return spec.methods[int.from_bytes(payload[:4], "big")]().decode(payload, 4)


def ack_bytes(channel: int, tags: Iterable[int]) -> bytes:
    """Return the frames that acknowledge deliveries."""
    end = 0, spec.FRAME_END
    return b"".join(_ACK.pack(spec.FRAME_METHOD, channel, _ACK_SIZE, *_ACK_INDEX, tag, *end) for tag in tags)


def publication_pieces(
    channel: int, exchange: str, key: str, properties: bytes, body: bytes, *, frame_max: int
) -> list[bytes]:
    """Return the frames of a message with encoded properties, which is returned if it is routed to no queue."""
    size, room = _CONTENT_SIZE + len(properties), frame_max - _OVERHEAD
    head = _CONTENT_HEAD.pack(spec.FRAME_HEADER, channel, size, spec.Basic.INDEX, 0, len(body))
    pieces = [_publish_bytes(channel, exchange, key), head, properties, _END]
    for start in range(0, len(body), room):
        part = body[start : start + room]
        pieces += (HEAD.pack(spec.FRAME_BODY, channel, len(part)), part, _END)
    return pieces


@lru_cache(maxsize=512)
def _publish_bytes(channel: int, exchange: str, key: str) -> bytes:
    return method_bytes(channel, spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))


class Assembler:
    """Makes one channel's frames into methods, deliveries and returned messages; `basic.get` is not used."""

    def __init__(self) -> None:
        self._method = self._header = b""  # of the message whose body arrives
        self._parts: list[bytes] = []
        self._lacks = 0  # how many bytes of the body have not come yet

    def made_of(self, kind: int, payload: bytes) -> Any:
        """Return what is complete with this frame: a method of pika's, a `Delivery`, a `Returned`; or None."""
        if kind == spec.FRAME_METHOD:
            if not payload.startswith((_DELIVER, _RETURN)):
                return method_of(payload)
            self._method = payload
            return None
        if kind == spec.FRAME_HEADER:
            self._header, self._parts, self._lacks = payload, [], int.from_bytes(payload[4:12], "big")
        else:
            self._parts.append(payload)
            self._lacks -= len(payload)
        if self._lacks > 0:
            return None
        if self._method.startswith(_DELIVER):
            tag, flags = _TAG.unpack_from(self._method, 5 + self._method[4])  # after the consumer's tag
            body = b"".join(self._parts)
            return Delivery(tag, body, True, partial(_times, self._header)) if flags & 1 else Delivery(tag, body)
        method = method_of(self._method)
        return Returned(method.exchange, method.routing_key, _properties(self._header).message_id)


def _times(header: bytes) -> object:
    """Return what a quorum queue says of how often it delivered a message; it is decoded only for who asks."""
    try:
        return _properties(header).headers["x-delivery-count"]
    except Exception:  # there is none; or anybody may have sent it, with tables that can't be read
        return None


def _properties(header: bytes) -> Any:
    properties = pika.BasicProperties()
    properties.decode(header[_CONTENT_SIZE:])
    return properties
