"""Encodes messages and dead letters for RabbitMQ, and says where each goes and how that is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from struct import Struct
from typing import Any, Final, NamedTuple

import pika
from pika import data

from taskbridge.brokers.base import Publication, Wire
from taskbridge.brokers.rabbitmq.frames import PROPERTIES_ROOM, Returned
from taskbridge.brokers.rabbitmq.topology import LEVELS, Topology, all_engines, life_ms, queue, sign_queue
from taskbridge.exceptions import MessageTooLarge
from taskbridge.message import DeadLetter, Message, new_id
from taskbridge.settings import Settings

_PERSISTENT: Final = 2
_LONGEST_PROPERTY: Final = 255  # how many bytes a property's text may have, but for the headers
_MOST_KEPT: Final = 512
_NO_TABLE: Final = bytes(4)  # a table without entries
_TEXT: Final = Struct(">cI")

_JSON: Final = {"content_type": "application/json"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Destination:
    """A queue, or an exchange, that is published to.

    Attributes:
        name: Its name.
        calls: Returns the calls that declare it and all that it needs.
        exchange: The exchange that is published to; the default one, "", reaches each queue by its name. A missing
            exchange closes the channel, so it is declared before the first publication; a missing queue returns the
            publication, and is declared then.
        is_quorum: Whether it is a quorum queue, or an exchange before one; such a queue has to elect a leader first.
    """

    name: str
    calls: Callable[[], Iterable[Any]]
    exchange: str = ""
    is_quorum: bool = False


class EncodedPublication(NamedTuple):  # it is made in a third of a dataclass's time
    """A message, encoded but for the channel's number."""

    destination: Destination
    key: str  # its routing key
    token: str | None  # its property `message_id`
    properties: bytes  # all of them, encoded
    body: bytes

    @property
    def way(self) -> Returned:
        """What identifies it if it is returned."""
        return Returned(self.destination.exchange, self.key, self.token)


class Encoder:
    """Encodes messages and dead letters for one bridge."""

    def __init__(self, settings: Settings, wire: Wire[Publication]) -> None:
        self.topology: Topology = Topology(settings.namespace, settings.queue_type)  # the names in the namespace
        self._wire = wire
        self._expiration = _milliseconds(settings.dead_ttl_s)
        self._queues: dict[str, Destination] = {}
        # The bridge's is the first. Each has a due queue, else messages for one could block a level.
        self.engines: Sequence[str] = all_engines(wire.engine)
        dead = self.topology.dead
        is_quorum = settings.queue_type == "quorum"
        self._dead = Destination(name=dead, calls=lambda: [self.topology.own_queue(dead)], is_quorum=is_quorum)
        self._levels = [self._exchange(level) for level in range(LEVELS)]
        self.due: Destination = self._exchange(-1)  # what is due

    def _exchange(self, level: int) -> Destination:
        name = self.topology.level(level)
        calls = partial(self.topology.calls, level, self.engines)
        return Destination(name=name, exchange=name, calls=calls, is_quorum=True)

    def native(self, message: Message, *, life_s: float | None = None) -> EncodedPublication:
        """Return the engine's own message, for its queue; the server drops it after so many seconds, if given.

        If its properties are larger than a frame, it is `MessageTooLarge`.
        """
        native = self._wire.encode(message)
        properties = native.properties
        if life_s is not None:
            properties = {**properties, "expiration": _milliseconds(life_s)}
        place = self._queues.get(native.queue) or self._queue(native)
        encoded = _encoded(place, native.queue, properties, message.id, native.body)
        if len(encoded.properties) > PROPERTIES_ROOM:
            raise MessageTooLarge(message.task, len(encoded.properties), PROPERTIES_ROOM, headers=True)
        return encoded

    def _queue(self, native: Publication) -> Destination:
        name, arguments = native.queue, native.arguments
        if len(name.encode()) > _LONGEST_PROPERTY:  # pika's own error would end a pump
            raise ValueError(f"a queue's name of {len(name)} characters is too long for RabbitMQ")
        is_quorum = arguments.get("x-queue-type") == "quorum"
        made = Destination(name=name, calls=lambda: [queue(name, arguments)], is_quorum=is_quorum)
        return self._queues.setdefault(name, made)

    def parked(self, text: bytes, delay_s: float, message_id: str | None = None) -> EncodedPublication:
        """Return a message as text, for a delay.

        It expires by itself as its first level's queue has it: a new queue may not know that time yet. See `topology`.
        """
        level, key = self.topology.route(delay_s, self.engines[0])
        if level < 0:
            return _encoded(self.due, key, _JSON, message_id, text)
        properties = {**_JSON, "expiration": str(life_ms(level))}
        return _encoded(self._levels[level], key, properties, message_id, text)

    def trace(self, level: int) -> EncodedPublication:
        """Return what is routed to a queue if a level and all below it are there: they pass it on at once."""
        name = self.topology.level(level)
        place = Destination(name=name, exchange=name, calls=partial(self.topology.trace_calls, level))
        return _encoded(place, self.topology.trace_key, {}, new_id(), b"")

    def sign(self, name: str, *, life_s: float) -> EncodedPublication:
        """Return a sign, which the server drops after so many seconds."""
        native = self.topology.sign(name)
        place = Destination(name=native, calls=lambda: [sign_queue(native)])
        return _encoded(place, native, {"expiration": _milliseconds(life_s)}, new_id(), b"")

    def letter(self, letter: DeadLetter) -> EncodedPublication:
        """Return a dead letter, which the server drops after the setting `dead_ttl`."""
        properties = {**_JSON, "expiration": self._expiration}
        return _encoded(self._dead, self._dead.name, properties, letter.id, letter.dumps().encode())


def _milliseconds(life_s: float) -> str:
    return str(max(1, round(life_s * 1000)))


def _encoded(
    destination: Destination, key: str, properties: Mapping[str, Any], message_id: str | None, body: bytes
) -> EncodedPublication:
    """Return a persistent message; its property `message_id` is the message's id, if none is given and it fits."""
    token: str | None = properties.get("message_id")
    if token is None and message_id is not None and len(message_id.encode()) <= _LONGEST_PROPERTY:
        token = message_id
    all_of_them: dict[str, Any] = {**properties, "message_id": token, "delivery_mode": _PERSISTENT}
    headers: Mapping[str, Any] | None = properties.get("headers")
    if headers is not None:
        all_of_them["headers"] = {}
    pieces = pika.BasicProperties(**all_of_them).encode()
    if headers is not None:
        pieces[pieces.index(_NO_TABLE)] = _table(headers)
    return EncodedPublication(destination, key, token, b"".join(pieces), body)


def _table(headers: Mapping[str, Any]) -> bytes:
    """Return headers as pika encodes them, but text in a third of the time."""
    pieces: list[bytes] = []
    for name, value in headers.items():
        pieces.append(_short(name))
        if type(value) is str:
            text = value.encode()
            pieces += (_TEXT.pack(b"S", len(text)), text)
        else:
            data.encode_value(pieces, value)
    entries = b"".join(pieces)
    return len(entries).to_bytes(4, "big") + entries


@lru_cache(maxsize=_MOST_KEPT)
def _short(name: str) -> bytes:
    pieces: list[bytes] = []
    data.encode_short_string(pieces, name)
    return b"".join(pieces)
