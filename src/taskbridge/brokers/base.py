"""What every broker does: take an engine's own messages, and keep what has to wait (a delay, a dead letter).

A broker module has one function, `connect(settings, wire) -> Broker`. A broker that isn't built in is found by the
entry point group `taskbridge.brokers`, whose names are URL schemes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from taskbridge.exceptions import MessageTooLarge
from taskbridge.failures import text_of, traceback_of
from taskbridge.logs import logger
from taskbridge.message import DeadLetter, Message, loads
from taskbridge.retry import ErrorInfo
from taskbridge.routing import QueueType

_log = logger("taskbridge.pump")

NativeT = TypeVar("NativeT")
NativeT_co = TypeVar("NativeT_co", covariant=True)

RedisCommand = tuple[str | bytes | int | float, ...]
"""One Redis command, name first; an engine's message is a sequence of them, carried out together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """An engine's message for RabbitMQ: published to the default exchange, durable, with this queue as its key.

    Attributes:
        queue: The native name of the queue.
        arguments: What the queue is declared with; every declaration must say the same, or RabbitMQ answers 406.
        body: The bytes.
        properties: AMQP basic properties by pika's names: `headers`, `priority`, `content_type`, `correlation_id`, ...
    """

    queue: str
    arguments: Mapping[str, Any]
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])


def typed(kind: QueueType, *, priorities: int | None = None) -> dict[str, Any]:
    """Return the arguments by which RabbitMQ makes a queue of a type.

    A quorum queue drops nothing: when it is full it refuses, and from RabbitMQ 4.0 its limit of deliveries would be 20.
    It has priorities by itself, from 4.3. A classic one is declared as plain clients and earlier releases do it.

    Args:
        kind: Its type.
        priorities: The highest; None is a queue without.
    """
    if kind == "quorum":
        return {"x-queue-type": kind, "x-delivery-limit": _MOST_DELIVERIES, "x-overflow": "reject-publish"}
    return {"x-queue-type": kind, **({} if priorities is None else {"x-max-priority": priorities})}


_MOST_DELIVERIES: Final = 2**31 - 1


class Wire(Protocol[NativeT_co]):
    """An engine's own words for one kind of broker. It needs no engine installed, but for memory.

    `engine` is the engine's name; brokers keep what waits apart by it, so that two engines share a broker (rule Q5).
    """

    @property
    def engine(self) -> str:
        """The engine's name."""
        ...

    def encode(self, message: Message) -> NativeT_co:
        """Return what the broker publishes for a message: Redis commands, a `Publication`, or an object in memory.

        It fails for no message that a bridge has checked: others that are sent with it may be on their way by then.
        """
        ...

    def places(self, queue: str) -> Sequence[str]:
        """Return the names under which the broker holds what waits in a queue: keys of Redis lists, or queues."""
        ...


class MemoryWire(Wire[NativeT], Protocol[NativeT]):
    """A wire for the memory broker: the engine itself holds what waits."""

    def deliver(self, native: NativeT) -> None:
        """Put a message in its queue."""

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How much a broker holds: waiting messages by queue, delayed ones and dead letters in all."""

    waiting: Mapping[str, int]
    delayed: int
    dead: int


class Held(NamedTuple):
    """A message that a worker has taken from a queue, and holds."""

    tag: str  # means this delivery
    queue: int  # from which of the queues that were asked for it came, counted from 0
    text: bytes  # its bytes; where a queue of Dramatiq's has an item that is no id, that item
    suspect: bool  # whether it may have been started before


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What becomes of a dead letter that is taken out: this message waits for a worker, or nothing does if None.

    Attributes:
        message: The message.
        delay_s: How long it is parked before.
    """

    message: Message | None = None
    delay_s: float = 0.0


Place = tuple[float, str]
"""When a letter died, and its id."""


def place_of(letter: DeadLetter) -> Place:
    """Return the place of a dead letter."""
    return letter.died_at, letter.id


def once(letters: Iterable[DeadLetter]) -> Iterator[DeadLetter]:
    """Yield letters without copies: a page that begins with the second one would begin with the first one again."""
    seen = set[int]()
    for letter in letters:
        if (place := hash(place_of(letter))) not in seen:
            seen.add(place)
            yield letter


Decide = Callable[[DeadLetter], Taken | None]
"""Says what becomes of a dead letter; None leaves it where it is."""

Buried = Callable[[DeadLetter], object]
"""Is told of a parked message just before a pump buries it; it raises nothing, and takes two seconds at most."""


def unpublished(parked: bytes, error: Exception, buried: Buried | None) -> DeadLetter:
    """Return the dead letter of what was parked and can't be published, told to `buried` and logged.

    Args:
        parked: The message, as it was parked.
        error: What reading or encoding it raised.
        buried: As it was given to `Broker.pump`.
    """
    known: dict[str, Any] = {"error": ErrorInfo.of(error), "died_at": time.time()}
    try:
        message = loads(parked)
        reason = "too_large" if isinstance(error, MessageTooLarge) else "internal_error"
        letter = DeadLetter(message=message, reason=reason, traceback=traceback_of(error), **known)
    except Exception:
        letter = DeadLetter(message=None, reason="undecodable", raw=parked, **known)
    _log.error("delayed message %s is dead, reason %s: %s", letter.id, letter.reason, text_of(error))
    if buried is not None:
        buried(letter)
    return letter


class Broker(Protocol):
    """A connection to a broker, for one bridge. Threads share it, a forked process makes its own connections.

    Every method that takes `timeout_s` returns after the broker has confirmed, or raises `BrokerUnavailable` within
    that many seconds and 10%; of several messages, `PartlyPublished` if not all were published or parked. Connections
    are made when they are first needed.
    """

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        """Publish messages to their queues, pipelined, in order."""

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Keep messages, each for so many seconds, and then publish them (as long as any worker is up).

        Parking the same id and attempt again replaces the first on Redis; on RabbitMQ both arrive.
        """

    def bury(self, letter: DeadLetter, *, timeout_s: float) -> None:
        """Keep a dead letter for the setting `dead_ttl`."""

    def pump(self, *, knows: Callable[[str], bool], stop: threading.Event, buried: Buried | None = None) -> None:
        """Publish parked messages as they fall due, until `stop` is set; outages are waited out, and nothing raised.

        One that can't be read or published is buried instead.

        Any number may pump at once. A pump promotes what bridges of its own engine parked; what another engine's
        bridges parked only while that engine has no pump, and only tasks that it knows (rule Q5 and engine switches).

        Args:
            knows: Whether this worker knows the task of that name.
            stop: Seen within 0.5 s where the broker answers; where it doesn't, nobody waits any longer than that.
            buried: Is told of each message that is buried; more than once, if it is found again.
        """

    def counts(self, queues: Sequence[str]) -> Counts:
        """Return how much waits in these queues, and how much is delayed and dead in this namespace."""
        ...

    def dead_letters(self, ids: Collection[str] | None = None) -> list[DeadLetter]:
        """Return the dead letters, or those of these ids, the oldest first, and leave them where they are.

        One that this release can't read comes with reason `undecodable`, and its text as `raw`.
        """
        ...

    def take_dead(self, decide: Decide, *, ids: Collection[str] | None = None, timeout_s: float) -> list[str]:
        """Take dead letters out, each in one step with what its message becomes (rules L2 and L3).

        Whoever dies meanwhile, the caller too, each letter is dead or taken out, never both and never neither. Copies
        of a letter are taken out together.

        Args:
            decide: Is asked about each letter, perhaps twice.
            ids: Only the letters of these ids; all if None.
            timeout_s: For each step: reading, and then up to 100 letters at a time.

        Returns:
            The ids of those that were taken out.

        Raises:
            BrokerUnavailable: Some may have been taken out.
        """
        ...

    def ping(self, *, timeout_s: float) -> None:
        """Return if the broker answers."""

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""


def hand_over(broker: Broker, messages: Sequence[Message], delays_s: Sequence[float], *, timeout_s: float) -> None:
    """Publish messages, or park them if the first one has a delay, each for its own, in seconds."""
    if delays_s[0] > 0:
        broker.park([*zip(messages, delays_s, strict=True)], timeout_s=timeout_s)
    else:
        broker.publish(messages, timeout_s=timeout_s)


@runtime_checkable
class SignBroker(Broker, Protocol):
    """A broker in which a process can ask whether queues are consumed, and workers can answer.

    A sign is a name that can be seen in the namespace for some seconds after it was left. What fails raises
    `BrokerUnavailable`, as in `Broker`.
    """

    def ask(self, probes: Sequence[Message], *, timeout_s: float) -> None:
        """Publish probes to their queues; they vanish there when they have expired, at the latest at the next `ask`."""

    def withdraw(self, probes: Sequence[Message], signs: Sequence[str], *, timeout_s: float) -> None:
        """Remove what is left of these probes, and these signs; if it fails, they vanish by themselves."""

    def leave_signs(self, names: Sequence[str], *, life_s: float, timeout_s: float) -> None:
        """Leave signs for so many seconds; again for those that are there."""

    def see_signs(self, names: Sequence[str], *, timeout_s: float) -> Collection[str]:
        """Return those of these signs that are there."""
        ...


@runtime_checkable
class PagingBroker(Broker, Protocol):
    """A broker that need not read all dead letters to show some."""

    def dead_letters_from(self, place: Place | None, *, most: int | None) -> Generator[DeadLetter]:
        """Yield dead letters, the oldest first, each read as it is needed; whoever stops before the end closes it.

        Args:
            place: Where to begin: at the letter of this place or, if it is gone, at what died later. None is the first.
            most: How many are read at first; None is all.
        """
        ...


class Remark(NamedTuple):
    """What `taskbridge check` says about something, a server with `--deep`: a word, how bad it is, and what to do.

    Of a server it is `failed` if messages are lost, late or refused as things are, a `warning` if all works, but slower
    than it could, and a `note` if somebody should know it.
    """

    subject: str
    outcome: Literal["ok", "note", "warning", "failed", "error"]
    text: str


@runtime_checkable
class ExaminedBroker(Broker, Protocol):
    """A broker that can say what of its server's settings puts messages at risk. What fails raises as in `Broker`."""

    def examine(self, queues: Sequence[str], *, management: str | None, timeout_s: float) -> Iterable[Remark]:
        """Return what is to be said of the server, and of these queues, which are declared if they are missing.

        `management` is the URL of the server's HTTP API, if it has one elsewhere than by default. Each thing that is
        asked of the server may take `timeout_s`.
        """
        ...

    def forget(self, queues: Sequence[str], *, timeout_s: float) -> None:
        """Remove these queues, and all that this engine's bridges have parked; other engines' stays."""
