"""kombu's transport for messages in memory and on Redis, by its public API of virtual transports (rules A3, A8 and Q7).

A channel takes messages from its queues (`MemoryQueues` or `RedisQueues`) as soon as slots are free for them, all at
once. Each has a tag of its own from then on: its delivery, which may be ended or given back on whatever connection.
What can't be read is buried.

Each connection has a watch, whose number `changes` grows when empty queues may no longer be so. In Celery's event loop
a channel looks at that number in each of the loop's turns; elsewhere (`drain_events`) the caller waits for a change.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskbridge.brokers.base import Held
from taskbridge.engines.celery.reading import BoundedMessage
from taskbridge.engines.celery.stock import (
    KombuConnection,
    VirtualChannel,
    VirtualMessage,
    VirtualTransport,
    kombu_json,
    stock,
)
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.logs import logger
from taskbridge.settings import without_credentials

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_log = logger("taskbridge.celery")

_PAUSES: Final = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 1.5}
"""Seconds between tries to connect; kombu's default grows to 30, and a worker idles long after its broker is back.

kombu before 5.7 goes beyond the maximum by the start (kombu/utils/functional.py, retry_over_time): to 2 s.
"""

_LONGEST_PAUSE_S: Final = 2.0  # how long a channel rests at most after its broker did not answer
_TIMEOUT_S: Final = 5.0  # how long taking messages may take; the worker's main loop waits for that
_SLICE_S: Final = 1.0  # how long `drain_events` trusts at most that it would have been told of a change
_MARK: Final = b"__type__"  # what kombu's JSON says of a value that JSON has not (kombu/utils/json.py, object_hook)


def _loads(text: bytes) -> Any:
    """Return what kombu reads in JSON, without a look into each object where none is marked: half of its time."""
    return (kombu_json if _MARK in text else json).loads(text.decode())


def _dumps(message: Mapping[str, Any]) -> bytes:
    text: str = kombu_json.dumps(message)
    return text.encode()


class _Consumption(NamedTuple):
    """What `basic_consume` was asked for."""

    queue: str
    callback: Callable[[Any], object]
    no_ack: bool


class Message(VirtualMessage, BoundedMessage):
    """A message that was taken from a queue, or heard."""


class Channel(VirtualChannel):
    """A channel to the queues of one bridge. Any thread may acknowledge what it has handed over."""

    Message = Message

    def __init__(self, connection: Any, **options: Any) -> None:
        self.engine: Any = connection.engine
        self.queues: Any = self.engine.queues  # `MemoryQueues` or `RedisQueues`
        self.watch: Any = connection.watch
        self.supports_fanout: bool = self.engine.settings.url.broker == "redis"
        self._held: set[str] = set()  # handed over, and not acknowledged
        self._most_held = 0
        self._consumed: dict[str, _Consumption] = {}
        self._of_queue: dict[str, _Consumption] = {}
        self._taken_from: list[str] = []
        self._lists: Any = None
        self._fanouts: dict[str, tuple[str, str]] = {}
        self._heard: deque[tuple[str, bytes]] = deque()
        self._empty_at: int | None = None
        self._rests_until = 0.0
        self._pause_s = 0.0
        super().__init__(connection, **options)

    # Consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], object], consumer_tag: str, **_: Any
    ) -> None:
        """Consume from a queue; what is sent to an exchange of the kind `fanout` is heard from now on."""
        if queue in self._fanouts:
            self.watch.listen(self.queues.topic(*self._fanouts[queue]), queue, self._heard)
        self._consumed[consumer_tag] = _Consumption(queue, callback, no_ack)
        self._note_queues()

    def basic_cancel(self, consumer_tag: str) -> None:
        consumption = self._consumed.pop(consumer_tag, None)
        if consumption is not None and consumption.queue in self._fanouts:
            self.watch.stop_listening(consumption.queue)
        self._note_queues()

    def _note_queues(self) -> None:
        self._of_queue = {each.queue: each for each in self._consumed.values()}
        self._taken_from = [queue for queue in self._of_queue if queue not in self._fanouts]
        self._lists = self.queues.lists_of(self._taken_from)
        self._empty_at = None

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        for taken in self.queues.take(self.queues.lists_of([queue]), 1, timeout_s=_TIMEOUT_S):
            message = self._message(taken, queue)
            if message is not None:
                self._note(taken.tag, no_ack=no_ack)
                return message
        return None

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        self._most_held = prefetch_count

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message: in the event loop with the next that is taken, or at the end of its turn."""
        self._held.discard(delivery_tag)
        if self.watch.is_served:
            self.queues.end_soon(delivery_tag)
        else:
            self.queues.end(delivery_tag)

    @property
    def writer(self) -> Any:
        """What carries out the acknowledgements that slots have made here: the main loop does it in its next turn."""
        return self.engine.wake

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Return a message to its queue, or drop it."""
        if not requeue:
            self.basic_ack(delivery_tag)
            return
        self._held.discard(delivery_tag)
        self.queues.give_back(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> None:
        """Return what is held, but not what tasks that go on running hold."""
        held, self._held = self._held, set()
        for tag in held - self.engine.running_tags():
            self.queues.give_back(tag)

    def close(self) -> None:
        """Cancel what is consumed, and return what is held."""
        for consumer_tag in list(self._consumed):
            self.basic_cancel(consumer_tag)
        if not self.closed:
            self.basic_recover()
        stock(super()).close()

    def deliver(self) -> bool:
        """Deliver what was heard, and what can be taken now; return whether that was anything.

        A broker that does not answer is asked again in the next turns: nothing else depends on a connection here.
        """
        has_heard = bool(self._heard)
        while self._heard:
            self._deliver_heard(*self._heard.popleft())
        changes: int = self.watch.changes
        if not self._taken_from or changes == self._empty_at:
            return has_heard
        if monotonic() < self._rests_until:
            self.watch.look_again(self._rests_until)  # it may have looked again for another reason
            return has_heard
        room = self.room()
        if room < 1 and not any(each.no_ack for each in self._consumed.values()):
            return has_heard
        room = max(1, room)  # replies need no slot
        try:
            taken = self.queues.take(self._lists, room, timeout_s=_TIMEOUT_S)
            self._hand_over_all(taken)
            if len(taken) < room and self.watch.is_quiet(self._taken_from, in_vain=not taken):
                self._empty_at = changes
        except BrokerUnavailable as exc:
            self._rest(exc)
            return has_heard
        self._pause_s = 0.0
        return has_heard or bool(taken)

    def room(self) -> int:
        """Return how many messages may be taken now; 0 or less is none."""
        consumer = self.engine.consumer
        free: int = 1 if consumer is None else consumer.free_slots()
        return min(free, self._most_held - len(self._held)) if self._most_held else free

    def _rest(self, error: BrokerUnavailable) -> None:
        if not self._pause_s:
            _log.warning("nothing can be taken, trying again until the broker answers: %s", error.problem)
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or _PAUSES["interval_start"])
        self._rests_until = monotonic() + self._pause_s
        self.watch.look_again(self._rests_until)

    def _deliver_heard(self, queue: str, data: bytes) -> None:
        try:
            message: Any = self.Message(_loads(data), channel=self)
        except Exception:  # what it raises depends on what somebody has written there (rule I1)
            _log.exception("a message on a control channel can't be read, ignored")
            return
        if queue in self._of_queue:
            self._of_queue[queue].callback(message)

    def _hand_over_all(self, taken: Sequence[Held]) -> None:
        for number, message in enumerate(taken):
            try:
                self._hand_over(message)
            except BaseException:  # of a connection for events, say: what no request holds yet would never be run
                for later in taken[number + 1 :]:
                    self.queues.give_back(later.tag)
                raise

    def _hand_over(self, taken: Held) -> None:
        queue = self._taken_from[taken.queue]
        message = self._message(taken, queue)
        if message is not None:
            consumption = self._of_queue[queue]
            self._note(taken.tag, no_ack=consumption.no_ack)
            consumption.callback(message)

    def _note(self, tag: str, *, no_ack: bool) -> None:
        if no_ack:
            self.basic_ack(tag)
        else:
            self._held.add(tag)

    def _message(self, taken: Held, queue: str) -> Any:
        """Return a message as kombu takes it apart, addressed to where it came from; None if that fails: it is buried.

        Its tag is that of this delivery; the sender's own may be in use, for what is sent twice has it twice. Its
        bytes, as they were taken, are its `item`.
        """
        try:
            payload = _loads(taken.text)
            properties = payload["properties"]
            properties["delivery_tag"] = taken.tag
            properties["delivery_info"] |= {"exchange": "", "routing_key": queue}
            if taken.suspect:
                properties["delivery_info"]["redelivered"] = True
            message: Any = self.Message(payload, channel=self)
        except Exception as exc:  # what it raises depends on what somebody has written there (rule I1)
            error = DecodeError(f"not a Celery message: {exc!r}")
            self.engine.life.bury_raw(taken.text, error, then=lambda: self._end_unread(taken.tag))
            return None
        message.item = taken.text
        return message

    def _end_unread(self, tag: str) -> None:
        """End a message that was buried unread; no task's end wakes the loop for the next one."""
        self.queues.end(tag)
        self.engine.wake()

    # What kombu asks of a virtual channel

    def _put(self, queue: str, message: Mapping[str, Any], **_: Any) -> None:
        self.queues.put(queue, message["properties"].get("priority"), _dumps(message))

    def _size(self, queue: str) -> Any:
        return self.queues.size(queue)

    def _purge(self, queue: str) -> Any:
        return self.queues.purge(queue)

    # Remote control, which is off in memory

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == "fanout":
            self._fanouts[queue] = exchange, routing_key

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        """Return the queues that are bound to an exchange; of an exchange for replies, that of whoever has asked.

        It was bound in another process, and has the name of both.
        """
        found: list[str] = stock(super())._lookup(exchange, routing_key, default)
        return found or [f"{exchange}.{routing_key}"]

    def _put_fanout(self, exchange: str, message: Mapping[str, Any], routing_key: str, **_: Any) -> None:
        self.queues.publish(self.queues.topic(exchange, routing_key), _dumps(message))


class Transport(VirtualTransport):
    """A transport whose channels take messages when there are some."""

    engine: Any = None
    Channel = Channel
    connection_errors: Any = (OSError,)  # `BrokerUnavailable` is one

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.watch: Any = self.engine.queues.make_watch(self.engine.wake)

    def driver_version(self) -> str:
        return "N/A"

    def establish_connection(self) -> Any:
        self.engine.queues.check()
        return stock(super()).establish_connection()

    def close_connection(self, connection: Any) -> None:
        """Close the channels, and hear nothing any more."""
        stock(super()).close_connection(connection)
        self.watch.close()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have a loop deliver, and acknowledge, in each of its turns."""
        queues: Any = self.engine.queues
        self.watch.serve(loop)

        def on_tick() -> None:
            if not self.channels:  # closed; the loop keeps what it was given
                loop.on_tick.discard(on_tick)
                return
            if self._serve() and self.engine.life.has_children:
                self.engine.wake()  # Celery's pool may have had its turn already, which writes to its children
            queues.flush()

        loop.on_tick.add(on_tick)

    def _serve(self) -> bool:
        delivered = [channel.deliver() for channel in list(self.channels)]
        return any(delivered)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver what there is, or what comes first; raises `TimeoutError` if nothing came in this time."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            changes = self.watch.changes
            if self._serve():
                return
            left_s = _SLICE_S if deadline is None else deadline - monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.watch.wait(changes, min(left_s, _SLICE_S))
            if self.watch.changes != changes and not self.implements.asynchronous:
                return


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

    shown = classmethod(lambda cls: kind)  # by `celery inspect stats`
    return type("Transport", (base,), {**own, "__json__": shown})


def own_connection(engine: CeleryEngine) -> Any:
    """Return a connection class of an engine's own, which shows the bridge's own URL."""
    url = engine.settings.url.broker_url

    class Connection(KombuConnection):
        """A connection of one bridge."""

        def ensure_connection(self, *args: Any, **options: Any) -> Any:
            """Connect, however often that takes; Celery asks for it without saying how long to rest between."""
            return stock(super()).ensure_connection(*args, **{**_PAUSES, **options})

        def switch(self, conn_str: str) -> None:
            """Go on with another host, on this engine's transport: kombu would take its own."""
            stock(super()).switch(conn_str)
            self.transport_cls: Any = engine.transport

        def as_uri(self, include_password: bool = False, **_: Any) -> str:
            """Return the URL that Celery shows, or with the password the one that Flower uses."""
            if include_password:
                return url.replace("unix://", "redis+socket://", 1)
            return without_credentials(url)

        def info(self) -> dict[str, Any]:
            """Return what `celery inspect stats` shows."""
            shown = list(map(without_credentials, self.alt))
            return {**stock(super()).info(), "transport": self.transport.driver_type, "alternates": shown}

    return Connection
