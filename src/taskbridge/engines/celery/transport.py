"""kombu's transport for messages in memory and on Redis, by its public API of virtual transports (rules A3, A8 and Q7).

A channel takes messages from its queues (`wire.MemoryQueues` or `RedisQueues`) as soon as slots are free for them, all
at once. Each has a tag of its own from then on: its delivery, which may be ended or given back on whatever connection.
What can't be read is buried.

In Celery's event loop a channel takes in each of the loop's turns, unless it knows that there is nothing; the queues
wake the loop when that may have changed. Elsewhere (`drain_events`) the caller waits for that change.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbridge.engines.celery.stock import (
    KombuConnection,
    VirtualChannel,
    VirtualMessage,
    VirtualTransport,
    kombu_json,
    stock,
)
from taskbridge.engines.celery.wire import Taken
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.settings import without_credentials

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_log = logging.getLogger("taskbridge.celery")

_PAUSES: Final = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 1.5}
"""Seconds between tries to connect; kombu's default grows to 30, and a worker idles long after its broker is back.

kombu before 5.7 goes beyond the maximum by the start (kombu/utils/functional.py, retry_over_time): to 2 s.
"""

_LONGEST_PAUSE_S: Final = 2.0
"""How long a channel rests at most after its broker did not answer."""

_SLICE_S: Final = 1.0


_MARK: Final = b"__type__"
"""What kombu's JSON says of a value that JSON has not (kombu/utils/json.py, object_hook)."""


class Payload(dict[str, Any]):
    """A message's JSON; `raw` is the bytes as they came."""

    raw: bytes = b""


def _loads(text: bytes) -> Any:
    """Return what kombu reads in JSON, without a look into each object where none is marked: half of its time."""
    return kombu_json.loads(text.decode()) if _MARK in text else json.loads(text)


def _dumps(message: Mapping[str, Any]) -> bytes:
    text: str = kombu_json.dumps(message)
    return text.encode()


def payload_of(taken: Taken) -> Payload:
    """Return a message's JSON, addressed to where it came from.

    Its tag is that of this delivery; the sender's own may be in use, for what is sent twice has it twice.

    Raises:
        DecodeError: It is no Celery message.
    """
    try:
        payload = Payload(_loads(taken.item))
        properties = payload["properties"]
        properties["delivery_tag"] = taken.tag
        properties["delivery_info"] |= {"exchange": "", "routing_key": taken.queue}
        if taken.suspect:
            properties["delivery_info"]["redelivered"] = True
    except Exception as exc:  # what it raises depends on what somebody has written there
        raise DecodeError(f"not a Celery message: {exc!r}") from exc
    payload.raw = taken.item
    return payload


class Message(VirtualMessage):
    """A message as kombu takes it apart.

    What can't be taken apart becomes a message with an error, which kombu hands to its consumer's `on_decode_error`. An
    exception here would end Celery's main loop, which also reads what anyone may publish to its control channel.

    Attributes:
        item: Its bytes, as they were taken; None for what came by a control channel.
    """

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **options)
        except Exception:  # no base64, no object at all
            self.errors: list[Any] = [sys.exc_info()]
            asked = payload["properties"] if isinstance(payload, Payload) else {"delivery_tag": ""}
            kept = {name: asked[name] for name in ("delivery_tag", "delivery_info") if name in asked}
            super().__init__({"properties": kept}, channel=channel)
        self.item: bytes | None = payload.raw if isinstance(payload, Payload) else None


class QoS:
    """The messages that a channel has handed over and that are not acknowledged, and how many more there is room for.

    Takes the place of `kombu.transport.virtual.QoS`, with all that is public of it. Any thread may acknowledge.

    Args:
        channel: The channel.
        prefetch_count: How many there may be at once; 0 is any number.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        self.channel: Any = channel
        self.prefetch_count: int = prefetch_count
        self._held: dict[str, Any] = {}

    def room(self) -> int:
        """Return how many messages may be taken now; 0 or less is none."""
        free: int = self.channel.engine.life.free_slots()
        return min(free, self.prefetch_count - len(self._held)) if self.prefetch_count else free

    def can_consume(self) -> bool:
        """Return whether anything may be taken now."""
        return self.room() > 0

    def can_consume_max_estimate(self) -> int:
        """Return how many messages may be taken now."""
        return max(0, self.room())

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note that a message is handed over."""
        self._held[delivery_tag] = message

    def get(self, delivery_tag: str) -> Any:
        """Return a message that is held."""
        return self._held[delivery_tag]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self._held.pop(delivery_tag, None)
        self.channel.queues.end(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Return a message to its queue, or drop it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self._held.pop(delivery_tag, None)
        self.channel.queues.give_back(delivery_tag)

    def restore_unacked(self) -> None:
        """Return what is held, but not what tasks that go on running hold."""
        running: Collection[str] = self.channel.engine.running_tags()
        held, self._held = self._held, {}
        for tag in held:
            if tag not in running:
                self.channel.queues.give_back(tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Return what is held as the channel closes."""
        self.restore_unacked()

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Do nothing: overdue leases have a thread."""


class Channel(VirtualChannel):
    """A channel to the queues of one bridge."""

    QoS = QoS
    Message = Message

    def __init__(self, connection: Any, **options: Any) -> None:
        self.engine: Any = connection.engine
        self.queues: Any = self.engine.queues  # `wire.MemoryQueues` or `RedisQueues`
        self.supports_fanout: bool = self.engine.settings.url.broker == "redis"
        self._consumed: dict[str, str] = {}
        self._unacknowledged: set[str] = set()
        self._listens: dict[str, tuple[str, str]] = {}
        self._heard: deque[tuple[str, bytes]] = deque()
        self._nothing_at: tuple[int, list[str]] | None = None
        self._rests_until = 0.0
        self._pause_s = 0.0
        super().__init__(connection, **options)

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> Any:
        """Consume from a queue; what is sent to an exchange of the kind `fanout` is heard from now on."""
        if no_ack:
            self._unacknowledged.add(queue)
        if queue in self._listens:
            self.queues.listen(*self._listens[queue], self._heard, queue)
        self._consumed[consumer_tag] = queue
        return stock(super()).basic_consume(queue, no_ack, callback, consumer_tag, **options)

    def basic_cancel(self, consumer_tag: str) -> Any:
        """End what `basic_consume` began."""
        queue = self._consumed.pop(consumer_tag, None)
        if queue in self._listens:
            self.queues.stop_listening(self._heard, queue)
        return stock(super()).basic_cancel(consumer_tag)

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> Any:
        """Return a message, if there is one."""
        message = stock(super()).basic_get(queue, no_ack=no_ack, **options)
        if message is not None and no_ack:
            self.queues.end(message.delivery_tag)
        return message

    def deliver(self) -> bool:
        """Deliver what was heard, and what can be taken now; return whether that was anything.

        A broker that does not answer is asked again in the next turns: nothing else depends on a connection here.
        """
        has_heard = self._deliver_heard()
        room: int = self.qos.room()
        if self._unacknowledged:  # replies, for which no slot is needed
            room = max(1, room)
        queues = [queue for queue in self._consumed.values() if queue not in self._listens]
        if room < 1 or not queues or monotonic() < self._rests_until:
            return has_heard
        now = self.queues.changes, queues
        if now == self._nothing_at:
            return has_heard
        try:
            taken = self.queues.take(queues, room)
            self._hand_over_all(taken)
            if len(taken) < room and self.queues.is_empty(queues):
                self._nothing_at = now
        except BrokerUnavailable as exc:
            self._rest(exc)
            return has_heard
        self._pause_s = 0.0
        return has_heard or bool(taken)

    def _rest(self, error: BrokerUnavailable) -> None:
        if not self._pause_s:
            _log.warning("nothing can be taken, trying again until the broker answers: %s", error.problem)
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or _PAUSES["interval_start"])
        self._rests_until = monotonic() + self._pause_s

    def _deliver_heard(self) -> bool:
        has_heard = bool(self._heard)
        while self._heard:
            queue, data = self._heard.popleft()
            try:
                payload = _loads(data)
            except Exception:  # what it raises depends on what somebody has written there (rule I1)
                _log.exception("a message on a control channel can't be read, ignored")
                continue
            if queue in self._consumed.values():
                self.connection.on_message_ready(self, payload, queue)
        return has_heard

    def _hand_over_all(self, taken: Sequence[Taken]) -> None:
        for number, message in enumerate(taken):
            try:
                self._hand_over(message)
            except BaseException:  # of a connection for events, say: what no request holds yet would never be run
                for later in taken[number + 1 :]:
                    self.queues.give_back(later.tag)
                raise

    def _hand_over(self, taken: Taken) -> None:
        """Deliver a message, unless it can't be read."""
        payload = self._parsed(taken)
        if payload is not None:
            if taken.queue in self._unacknowledged:
                self.queues.end(taken.tag)
            self.connection.on_message_ready(self, payload, taken.queue)

    def _parsed(self, taken: Taken) -> Payload | None:
        """Return a message's JSON; None if it can't be read: then it is buried."""
        try:
            return payload_of(taken)
        except DecodeError as exc:
            self.engine.life.bury_raw(taken.item, exc, then=lambda: self.queues.end(taken.tag))
            return None

    # What kombu asks of a virtual channel

    def _get(self, queue: str, timeout: float | None = None) -> Payload:
        for taken in self.queues.take([queue], 1):
            payload = self._parsed(taken)
            if payload is not None:
                return payload
        raise Empty

    def _put(self, queue: str, message: Mapping[str, Any], **_: Any) -> None:
        self.queues.put(queue, message["properties"].get("priority"), _dumps(message))

    def _size(self, queue: str) -> int:
        found: int = self.queues.size(queue)
        return found

    def _purge(self, queue: str) -> int:
        found: int = self.queues.purge(queue)
        return found

    # Remote control, which is off in memory

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            self._listens[queue] = exchange, routing_key

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        """Return the queues that are bound to an exchange; of an exchange for replies, that of whoever has asked.

        It was bound in another process, and has the name of both (kombu/pidbox.py, Mailbox.get_reply_queue).
        """
        found: list[str] = stock(super())._lookup(exchange, routing_key, default)
        return found or [f"{routing_key}.{exchange}"]

    def _put_fanout(self, exchange: str, message: Mapping[str, Any], routing_key: str, **_: Any) -> None:
        self.queues.publish(exchange, routing_key, _dumps(message))


class Transport(VirtualTransport):
    """A transport whose channels take messages when there are some."""

    engine: Any = None
    Channel = Channel
    connection_errors: Any = (OSError,)  # `BrokerUnavailable` is one

    def driver_version(self) -> str:
        """Return what kombu shows."""
        return "N/A"

    def establish_connection(self) -> Any:
        """Connect, if the broker answers."""
        if self.implements.asynchronous:
            self.engine.queues.check()
        return stock(super()).establish_connection()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have a loop deliver, and acknowledge, in each of its turns."""
        self.engine.waker.register(loop)

        def on_tick() -> None:
            if not self.channels:  # closed; the loop keeps what it was given
                loop.on_tick.discard(on_tick)
                return
            if self._serve() and self.engine.life.has_children:
                self.engine.wake()  # Celery's pool may have had its turn already, which writes to its children
            self.engine.queues.end_turn()

        loop.on_tick.add(on_tick)

    def _serve(self) -> bool:
        delivered = [channel.deliver() for channel in list(self.channels)]
        return any(delivered)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver what there is, or what comes first; an embedded worker has something else to do now and then.

        Raises:
            TimeoutError: Nothing came in this time.
        """
        queues: Any = self.engine.queues
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            changes = queues.changes
            if self._serve():
                return
            left_s = _SLICE_S if deadline is None else deadline - monotonic()
            if queues.wait(changes, max(0.0, left_s)):
                if not self.implements.asynchronous:
                    return
            elif deadline is not None and monotonic() >= deadline:
                raise TimeoutError


class Waker:
    """Ends an event loop's sleep, from another thread or a signal handler; before kombu 5.7 it had no such thing."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def register(self, loop: Any) -> None:
        """Watch for wake-ups in this loop."""
        if self._ends is None:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
        loop.add_reader(self._ends[0].fileno(), self._drain, self._ends[0])

    def wake(self) -> None:
        """End the sleep."""
        ends = self._ends
        if ends is not None:
            with suppress(OSError):  # closed meanwhile; or enough wake-ups are on their way
                ends[1].send(b"\0")

    def _drain(self, end: socket.socket) -> None:
        with suppress(BlockingIOError):
            end.recv(4096)

    def close(self) -> None:
        """Wake no loop any more."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()


def own_transport(engine: CeleryEngine, base: Any) -> Any:
    """Return a transport class of an engine's own, so that its channels know the engine.

    kombu makes connections of connections, and hands on nothing of its own but the class of the transport
    (kombu/connection.py, PooledConnection); two bridges' connections differ by it, so that they share no pool.
    """
    kind = engine.settings.url.broker
    own: dict[str, Any] = {"engine": engine}
    if kind != "amqp":
        kinds = frozenset(("direct", "topic", "fanout"))
        own |= {"driver_type": kind, "driver_name": kind}
        own["implements"] = base.implements.extend(asynchronous=kind == "redis", exchange_type=kinds)

    def shown(cls: type[Any]) -> str:
        """Return the name that `celery inspect stats` shows."""
        return kind

    return type("Transport", (base,), {**own, "__json__": classmethod(shown)})


def own_connection(engine: CeleryEngine) -> Any:
    """Return a connection class of an engine's own, which shows the bridge's own URL."""
    url = engine.settings.url.broker_url

    class Connection(KombuConnection):
        """A connection of one bridge."""

        def ensure_connection(self, *args: Any, **options: Any) -> Any:
            """Connect, however often that takes; Celery asks for it without saying how long to rest between."""
            return stock(super()).ensure_connection(*args, **{**_PAUSES, **options})

        def as_uri(self, include_password: bool = False, **_: Any) -> str:
            """Return the URL that Celery shows, or with the password the one that Flower uses."""
            if include_password:
                return url.replace("unix://", "redis+socket://", 1)
            return without_credentials(url)

        def info(self) -> dict[str, Any]:
            """Return what `celery inspect stats` shows."""
            shown: dict[str, Any] = stock(super()).info()
            return {**shown, "transport": self.transport.driver_type}

    return Connection
