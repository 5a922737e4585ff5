"""Publications, made ready to be sent, and the places where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import pika

from taskbridge.brokers.base import Publication, Wire
from taskbridge.brokers.rabbitmq.connection import PROPERTIES_ROOM
from taskbridge.brokers.rabbitmq.topology import LEVELS, Topology, classic_queue, other_engines, queue, sign_queue
from taskbridge.exceptions import HeadersTooLarge
from taskbridge.message import DeadLetter, Message, new_id
from taskbridge.settings import Settings

_PERSISTENT: Final = 2
_LONGEST_PROPERTY: Final = 255
"""How many bytes a property's text may have, but for the headers."""

_JSON: Final = {"content_type": "application/json"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Place:
    """Where publications go, and how that is made.

    Attributes:
        name: What messages about it say.
        calls: The calls that make it, for a server of this version.
        made_first: Whether it is an exchange, made before the first publication of a connection, for a missing one
            closes the channel; a queue is made when a publication is returned.
        below: The place that must be there for this one to be made.
    """

    name: str
    calls: Callable[[tuple[int, ...]], Iterable[Any]]
    made_first: bool = False
    below: Place | None = None

    @property
    def exchange(self) -> str:
        """What is published to: the exchange of this name, or the default one for a queue."""
        return self.name if self.made_first else ""

    def with_all_below(self) -> list[Place]:
        """Return this place and those it needs, in the order in which they are made."""
        return [*([] if self.below is None else self.below.with_all_below()), self]


class Parcel(NamedTuple):  # it is made in a third of a dataclass's time
    """A publication, all but the channel's number in bytes.

    Attributes:
        number: Which it is among those that are sent together; the first is 0.
        place: Where it goes.
        key: With which routing key it is published.
        token: The property `message_id`, by which it is known again if it is returned.
        properties: All properties, encoded.
        body: The body.
    """

    number: int
    place: Place
    key: str
    token: str | None
    properties: bytes
    body: bytes


class Packer:
    """Makes parcels of messages and letters, for one bridge."""

    def __init__(self, settings: Settings, wire: Wire[Publication]) -> None:
        self._wire = wire
        self._topology = topology = Topology(settings.namespace)
        self._expiration = _milliseconds(settings.dead_ttl_s)
        self._queues: dict[str, Place] = {}
        self._dead = Place(name=topology.dead, calls=lambda _: [classic_queue(topology.dead)])
        engines = (wire.engine, *other_engines(wire.engine))  # all of them, else messages for one could block a level
        self.due: Place = Place(
            name=topology.due_exchange, calls=lambda _: topology.due_calls(engines), made_first=True
        )
        self._levels: list[Place] = []
        for level in range(LEVELS):
            below = self._levels[-1] if self._levels else self.due
            calls = partial(topology.level_calls, level)
            self._levels.append(Place(name=topology.level(level), calls=calls, made_first=True, below=below))

    def publications(self, messages: Sequence[Message]) -> list[Parcel]:
        """Return the engine's own messages, for their queues; all are encoded before one is sent.

        Raises:
            HeadersTooLarge: The properties of one are larger than a frame.
        """
        return [self.publication(number, message) for number, message in enumerate(messages)]

    def publication(self, number: int, message: Message, *, life_s: float | None = None) -> Parcel:
        """Return the engine's own message, for its queue, where the server drops it when its life is over.

        Raises:
            HeadersTooLarge: Its properties are larger than a frame.
        """
        native = self._wire.encode(message)
        own, common = native.properties, native.common or {}
        properties = {**common, **own}
        if "headers" in common and "headers" in own:
            properties["headers"] = {**common["headers"], **own["headers"]}
        if life_s is not None:
            properties["expiration"] = _milliseconds(life_s)
        token, encoded = _encoded(properties, message.id)
        if len(encoded) > PROPERTIES_ROOM:
            raise HeadersTooLarge(message.task, len(encoded), PROPERTIES_ROOM)
        place = self._queues.get(native.queue) or self._queue(native)
        return Parcel(number=number, place=place, key=native.queue, token=token, properties=encoded, body=native.body)

    def _queue(self, native: Publication) -> Place:
        name, arguments = native.queue, native.arguments
        return self._queues.setdefault(name, Place(name=name, calls=lambda _: [queue(name, arguments)]))

    def parked(self, number: int, text: bytes, delay_s: float, *, message_id: str | None = None) -> Parcel:
        """Return a message as text, for a delay."""
        level, key = self._topology.route(delay_s, self._wire.engine)
        place = self._levels[level] if level >= 0 else self.due
        token, properties = _encoded(_JSON, message_id)
        return Parcel(
            number=number,
            place=place,
            key=key,
            token=token,
            properties=properties,
            body=text,
        )

    def sign(self, number: int, name: str, *, life_s: float) -> Parcel:
        """Return a sign, which is there until the server forgets it."""
        native = self._topology.sign(name)
        place = Place(name=native, calls=lambda _: [sign_queue(native)])
        token, properties = _encoded({"expiration": _milliseconds(life_s)}, new_id())
        return Parcel(number=number, place=place, key=native, token=token, properties=properties, body=b"")

    def letter(self, number: int, letter: DeadLetter) -> Parcel:
        """Return a dead letter, which the server forgets after the setting `dead_ttl`."""
        token, properties = _encoded({**_JSON, "expiration": self._expiration}, letter.id)
        body = letter.dumps().encode()
        return Parcel(
            number=number, place=self._dead, key=self._dead.name, token=token, properties=properties, body=body
        )


def _milliseconds(life_s: float) -> str:
    return str(max(1, round(life_s * 1000)))


def _encoded(properties: Mapping[str, Any], message_id: str | None) -> tuple[str | None, bytes]:
    """Return the property `message_id`, and all properties as bytes: of a persistent message.

    The property is the message's id, if none is given and a property can hold it.
    """
    token: str | None = properties.get("message_id")
    if token is None and message_id is not None and len(message_id.encode()) <= _LONGEST_PROPERTY:
        token = message_id
    all_of_them: dict[str, Any] = {**properties, "message_id": token, "delivery_mode": _PERSISTENT}
    return token, b"".join(pika.BasicProperties(**all_of_them).encode())
