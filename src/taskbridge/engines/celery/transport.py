"""kombu's Redis transport, made safe: what it takes is on lease, and what can't be read is kept (rules A3, A8 and Q7).

kombu waits with `BRPOP`, which takes a message out of Redis before anything says who has it. Here messages are taken by
a script that writes that down in the same step (`leases`). No blocking command looks at several lists and takes
nothing, so an idle worker has Redis tell it when one of its lists changes (`CLIENT TRACKING`, Redis 6), and looks again
then; where that is refused, it looks ten times a second.

The connection that kombu calls `BRPOP` goes through these steps:

    take -> got one: deliver it
         -> nothing: track, look -> something: take
                                 -> nothing: wait -> told of a change: stop tracking, take -> got one: deliver it
                                                                                          -> another worker was faster:
                                                                                             pause, take
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from enum import Enum, auto
from queue import Empty
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import redis
from kombu.transport import redis as _kombu_redis
from redis.connection import parse_url
from redis.exceptions import NoScriptError, ResponseError

from taskbridge.engines.celery import items
from taskbridge.engines.celery.leases import STEPS, TAKE, Leases
from taskbridge.engines.celery.stock import stock, virtual
from taskbridge.engines.celery.wire import ENGINE, step_key
from taskbridge.exceptions import DecodeError

kombu_redis: Final[Any] = _kombu_redis

if TYPE_CHECKING:
    from taskbridge.engines.celery.stock import Untyped

    class RedisQoS(Untyped):
        """Stands for `kombu.transport.redis.QoS`."""

    class RedisChannel(Untyped):
        """Stands for `kombu.transport.redis.Channel`."""

    class RedisTransport(Untyped):
        """Stands for `kombu.transport.redis.Transport`."""
else:
    RedisQoS = _kombu_redis.QoS
    RedisChannel = _kombu_redis.Channel
    RedisTransport = _kombu_redis.Transport

_log = logging.getLogger("taskbridge.celery")

_LOOK_AGAIN_S: Final = 5.0
"""How long an idle worker trusts that it would have been told of a change."""

_OVERDUE_S: Final = 8.0
"""How long an answer may take before the connection counts as dead."""

_POLL_S: Final = 0.1
"""How often an idle worker looks where Redis tells it nothing."""

_PAUSE_S: Final = 0.05
"""How long a worker rests at most after another one was faster, so that idle ones don't all run for each message."""

_parse_url: Any = parse_url

_SOCKET_S: Final = 5.0
"""How long Redis may take to answer.

Two of kombu's and Celery's timers, every 10 s, wait for an answer in the main loop; while the loop waits for one that
never comes, it does not notice that its connection is dead, nor that slots are free.
"""

_CONNECT_S: Final = 5.0


_clients: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
"""The clients for commands, one for all channels of an engine."""


class _Reply(Enum):
    """What the next reply on the connection is to."""

    OK = auto()
    TRACKED = auto()
    TAKEN = auto()
    TAKEN_AFTER_WAIT = auto()
    LOOKED = auto()
    PAUSED = auto()


_TAKING: Final = frozenset({_Reply.TAKEN, _Reply.TAKEN_AFTER_WAIT})

_CHANGED: Final = object()
"""Stands for Redis's message that a list has changed."""

_UNKNOWN_SCRIPT: Final = object()


class QoS(RedisQoS):
    """What a channel holds; all of it is on lease."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note that a message is held."""
        leases: Leases = self.channel.leases
        if not leases.mine(delivery_tag):
            queue = message.delivery_info.get("routing_key") or ""
            leases.adopt(delivery_tag, items.dumps(message._raw).decode(), queue)
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; on whatever connection, even if it was taken on one that has failed since.

        In the event loop, the script that takes the next message does it, or the end of the loop's turn.
        """
        if self.channel.leases.in_loop:
            self.channel.leases.end_soon(delivery_tag)
        else:
            self.channel.leases.end(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Return a message to its queue, or drop it."""
        if requeue:
            self.channel.leases.give_back(delivery_tag)
        else:
            self.channel.leases.end(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Return what is held, but not what tasks that go on running hold."""
        self._flush()
        keeps = self.channel.engine.running_tags()
        for tag in list(self._delivered):
            if tag not in keeps:
                self.channel.leases.give_back(tag)
        self._delivered.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Return what is held as the channel closes; a second time does nothing."""
        self._on_collect.cancel()
        if not self._delivered.restored:
            self._delivered.restored = True
            self.restore_unacked()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 0) -> None:
        """Look after the connection, for this is called now and then; overdue leases have a thread (`Leases`)."""
        self.channel.look_after()


class _Lists:
    """The lists of the queues that are consumed, by priority and, within one, by queue.

    Args:
        queues: The native names.
        others: The keys of what else the script that takes works on.

    Attributes:
        queues: The native names.
        keys: All keys.
        packed: The keys and their number, as they are sent with each script that takes.
        start: With which queue to begin next, counted from 0, so that all have their turn.
    """

    def __init__(self, queues: tuple[str, ...], others: tuple[str, ...]) -> None:
        self.queues: Final = queues
        self.keys: Final = (*(step_key(queue, step) for step in STEPS for queue in queues), *others)
        self.packed: Final = _packed((len(self.keys), *self.keys))
        self.start = 0

    def served(self, number: int) -> str:
        """Note that a message was taken from a list, counted from 1, and return its queue."""
        index = (number - 1) % len(self.queues)
        self.start = (index + 1) % len(self.queues)
        return self.queues[index]


def _packed(words: Iterable[bytes | str | int]) -> bytes:
    return b"".join([_word(word) for word in words])


def _word(word: bytes | str | int) -> bytes:
    """Return a word of a command as it is sent to Redis."""
    text = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


class Channel(RedisChannel):
    """A channel that takes messages on lease."""

    QoS = QoS
    Message = items.Message

    def __init__(self, connection: Any, **options: Any) -> None:
        self.engine: Any = connection.engine
        self.leases: Leases = self.engine.leases
        prefix = f"{self.engine.settings.namespace}.{ENGINE}"
        self.keyprefix_queue: str = f"{prefix}.binding.%s"
        self.keyprefix_binding_deadlines: str = f"{prefix}.binding_deadlines"
        self.keyprefix_binding_permanent: str = f"{prefix}.binding_permanent.%s"
        self.unacked_key: str = self.leases.unacked_key
        self.unacked_index_key: str = self.leases.index_key
        self._expected: deque[_Reply] = deque()
        self._waits_since: float | None = None
        self._brpop_sent_at: float | None = None
        self._in_poll: Any = None
        self._tags: list[str] = []
        self._ending: list[str] = []
        self._asked = _Lists((), ())
        self._unleased: set[str] = set()
        super().__init__(connection, **options)

    # Connections

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return what redis-py itself makes of the bridge's URL, so that it means the same as for sending."""
        params: dict[str, Any] = {"db": 0, **_parse_url(self.engine.settings.url.broker_url)}
        kind = params.pop("connection_class", redis.Connection)
        defaults: dict[str, Any] = {"socket_timeout": _SOCKET_S, "health_check_interval": self.health_check_interval}
        if not issubclass(kind, redis.UnixDomainSocketConnection):
            defaults |= {"socket_connect_timeout": _CONNECT_S, "socket_keepalive": True}
        params = {**defaults, "max_connections": self.max_connections, **params}
        params["connection_class"] = self._polled(kind) if asynchronous else kind
        fanout: str = vars(self).get("keyprefix_fanout", kombu_redis.Channel.keyprefix_fanout)
        self.keyprefix_fanout: str = fanout.format(db=params["db"])  # as kombu's own does: where broadcasts go
        return params

    def _polled(self, kind: Any) -> Any:
        channel = self

        class Polled(kind):
            """A connection that kombu's event loop watches."""

            def disconnect(self, *args: Any, **options: Any) -> None:
                """Close the connection, and have the loop forget it."""
                stock(super()).disconnect(*args, **options)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Polled

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return a client; the one to wait with speaks the protocol in which Redis can tell of changes."""
        if asynchronous and "client" not in self.__dict__:
            params: dict[str, Any] = {**self._connparams(asynchronous=True), "protocol": 3}
            pool = redis.ConnectionPool(**params)
            return self.Client(connection_pool=pool)
        return stock(super())._create_client(asynchronous=asynchronous)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Generator[Any]:
        """Yield a client, one for all channels; kombu makes a new one each time, a third of a worker's CPU time."""
        if client is None:
            client = _clients.get(self.engine)
        if client is None:
            params = self._connparams()
            del params["max_connections"]
            made = self.Client(connection_pool=redis.ConnectionPool(**params))
            client = _clients.setdefault(self.engine, made)
        yield client

    def _disconnect_pools(self) -> None:
        shared = _clients.get(self.engine)
        if shared is not None:  # what broke this channel's connections may have broken these too
            shared.connection_pool.disconnect(inuse_connections=False)
        stock(super())._disconnect_pools()

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **options: Any) -> Any:
        """Consume from a queue; replies to `celery inspect` are consumed without acknowledgement, as kombu does."""
        if no_ack:
            self._unleased.add(queue)
        consumed = stock(super()).basic_consume(queue, no_ack, *args, **options)
        self._stop_waiting()
        return consumed

    def _receive_one(self, c: Any) -> Any:
        """Read one message of a control channel; one that can't be read is logged, and ends nothing (rule I1).

        kombu lets through what JSON of a great depth raises, and what has another form than its own (`5`, `[]`).
        """
        try:
            return stock(super())._receive_one(c)
        except Empty:  # which kombu raises for what is no JSON, and then leaves what has come behind it unread
            return None
        except self.connection_errors:
            raise
        except Exception:
            _log.exception("a message on a control channel can't be read, ignored")
            return None

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._unleased.intersection(self.active_queues):
            stock(super())._brpop_start()
            return
        if not self.active_queues:
            return
        connection = self.client.connection
        connection._parser.set_invalidation_push_handler(_changed)  # else redis-py drops what it can't place
        self._in_poll = connection
        self._expected.clear()
        self._waits_since = None
        self._send(self._take(_Reply.TAKEN))

    def _brpop_read(self, **options: Any) -> bool:
        if not self._expected and self._waits_since is None:
            return bool(stock(super())._brpop_read(**options))
        connection = self.client.connection
        while True:
            try:
                found = self._on_reply(self._read(connection))
                more = self._in_poll and connection.can_read(timeout=0)
            except (*self.connection_errors, ResponseError):
                self._in_poll = None
                connection.disconnect()
                self._give_back_unheard()
                raise
            if found is not None:
                self._hand_over_all(found)
                return True
            if not more:
                raise Empty

    def _send(self, *commands: tuple[Any, ...] | bytes) -> None:
        connection = self.client.connection
        packed = [each if isinstance(each, bytes) else b"".join(connection.pack_command(*each)) for each in commands]
        connection.send_packed_command(packed, check_health=False)
        self._brpop_sent_at = monotonic()

    def _take(self, reply: _Reply, *, by_text: bool = False) -> bytes:
        """Return the command that takes what there are slots for: the highest priorities, and of the queues in turn."""
        lists = self._asked = self._lists_of(tuple(self.active_queues))
        most = self._room()
        base = self.leases.next_tag()
        self._tags = [f"{base}.{number}" for number in range(most)]
        self._expected.append(reply)
        self._ending = self.leases.ending()
        script: tuple[bytes | str, ...] = ("EVAL", TAKE.text) if by_text else ("EVALSHA", TAKE.sha)
        words: tuple[str | int, ...] = (base, most, len(lists.queues), lists.start, *self._ending)
        count = len(script) + 1 + len(lists.keys) + len(words)
        return b"*%d\r\n%b%b%b" % (count, _packed(script), lists.packed, _packed(words))

    def _lists_of(self, queues: tuple[str, ...]) -> _Lists:
        if self._asked.queues == queues:
            return self._asked
        return _Lists(queues, (self.leases.unacked_key, self.leases.index_key))

    def _room(self) -> int:
        """Return how many messages there are slots for, at least 1."""
        room: int | None = self.qos.can_consume_max_estimate()
        free: int = self.engine.life.free_slots()
        return max(1, free if room is None else min(room, free))

    @property
    def is_taking(self) -> bool:
        """Whether the reply to a script that takes is on its way."""
        return bool(self._in_poll) and not _TAKING.isdisjoint(self._expected)

    def _track_and_look(self) -> None:
        keys = [step_key(queue, step) for step in STEPS for queue in self.active_queues]
        self._expected += (_Reply.TRACKED, _Reply.LOOKED)
        self._send(("CLIENT", "TRACKING", "ON"), ("EXISTS", *keys))

    def _untrack_and_take(self, reply: _Reply) -> None:
        self._waits_since = None
        self._expected.append(_Reply.OK)
        self._send(("CLIENT", "TRACKING", "OFF"), self._take(reply))

    def _pause(self, pause_s: float) -> None:
        self._expected.append(_Reply.PAUSED)
        self._send(("BLPOP", self.leases.pace_key, f"{pause_s:.3f}"))  # a list that is never there: Redis's own timer

    def _read(self, connection: Any) -> Any:
        try:
            reply = connection.read_response(push_request=True)
        except NoScriptError:
            return _UNKNOWN_SCRIPT
        except ResponseError:
            if not self._expected or self._expected[0] is not _Reply.TRACKED:
                raise
            _log.warning("this Redis does not tell of changes (CLIENT TRACKING); an idle worker asks it every 0.1 s")
            self.engine.redis_tells = False
            return None
        if isinstance(reply, list) and reply and reply[0] in (b"invalidate", "invalidate"):  # an older hiredis
            return _CHANGED
        return reply

    def _on_reply(self, reply: Any) -> list[Any] | None:
        """Go on to the next step; return what was taken, if this says so."""
        if reply is _CHANGED:
            if self._waits_since is not None:
                self._untrack_and_take(_Reply.TAKEN_AFTER_WAIT)
            return None
        kind = self._expected.popleft()
        if reply is _UNKNOWN_SCRIPT:
            self._send(self._take(kind, by_text=True))
            return None
        match kind:
            case _Reply.OK | _Reply.TRACKED:
                return None
            case _Reply.LOOKED:
                self._on_look(reply)
            case _Reply.PAUSED:
                self._in_poll = None
            case _Reply.TAKEN | _Reply.TAKEN_AFTER_WAIT:
                return self._on_take(kind, reply)
        return None

    def _on_look(self, count: int) -> None:
        if count:
            self._untrack_and_take(_Reply.TAKEN)
        elif self.engine.redis_tells:
            self._waits_since = monotonic()
            self._brpop_sent_at = None
        else:
            self._pause(_POLL_S)

    def _on_take(self, kind: _Reply, found: list[Any]) -> list[Any] | None:
        self.leases.ended(self._ending)
        if found:
            self._in_poll = None
            return found
        if kind is _Reply.TAKEN_AFTER_WAIT:
            self._pause(_PAUSE_S * (0.2 + 0.8 * random()))
        elif self.engine.redis_tells:
            self._track_and_look()
        else:
            self._pause(_POLL_S)
        return None

    def _give_back_unheard(self) -> None:
        """Return what Redis has perhaps taken for a script whose reply never came; its lease would be long."""
        if _TAKING.isdisjoint(self._expected):
            return
        self._expected.clear()
        self.leases.took(*self._tags)
        for tag in self._tags:
            self.leases.give_back(tag)

    def _hand_over_all(self, found: list[Any]) -> None:
        """Deliver what was taken: of each message its list, counted from 1, and its item."""
        taken = [
            (tag, self._asked.served(number), item)
            for tag, number, item in zip(self._tags, found[::2], found[1::2], strict=False)
        ]
        self.leases.took(*(tag for tag, _, _ in taken))
        for number, (tag, queue, item) in enumerate(taken):
            try:
                self._hand_over(tag, queue, item)
            except BaseException:  # a connection is lost, say: what no request holds yet would never be run
                for later, _, _ in taken[number + 1 :]:
                    self.leases.give_back(later)
                raise

    def _hand_over(self, tag: str, queue: str, item: bytes) -> None:
        """Deliver a message, or have bytes that can't be read buried."""
        try:
            self.connection._deliver(items.parse(item, tag=tag, queue=queue), queue)
        except DecodeError as exc:
            self.engine.bury_raw(item, exc, then=lambda: self.leases.end(tag))

    # Waiting

    def _stop_waiting(self) -> None:
        """Look again: the queues are others now, or it is long since Redis told of anything."""
        if self._waits_since is not None:
            self._untrack_and_take(_Reply.TAKEN)

    def look_after(self) -> None:
        """Look again from time to time, and give a connection up on which no answer comes."""
        now = monotonic()
        if self._waits_since is not None and now - self._waits_since > _LOOK_AGAIN_S:
            self._stop_waiting()
        elif self._in_poll and self._expected and now - (self._brpop_sent_at or now) > _OVERDUE_S:
            _log.warning("Redis has not answered for %.0f s, connecting again", _OVERDUE_S)
            self._in_poll.disconnect()
            self._give_back_unheard()

    def close(self) -> None:
        """Close the channel; a message that is being taken goes back."""
        if self._in_poll and (self._expected or self._waits_since is not None):
            self._end_poll()
        stock(super()).close()

    def _end_poll(self) -> None:
        connection, self._in_poll = self.client.connection, None
        if not _TAKING.isdisjoint(self._expected):
            self._await_take(connection)
        self._expected.clear()
        self._waits_since = None
        connection.disconnect()

    def _await_take(self, connection: Any) -> None:
        """Wait until Redis has taken what it was asked to, and return that."""
        left = len(self._expected)
        try:
            while left > 0:
                left -= self._read(connection) is not _CHANGED
        except (*self.connection_errors, ResponseError) as exc:
            _log.info("it is not known what was taken: %s", type(exc).__name__)
        self._give_back_unheard()


def _changed(_: Any) -> object:
    return _CHANGED


class Transport(RedisTransport):
    """kombu's Redis transport with channels that take on lease."""

    Channel = Channel

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        take: Callable[[], None] = self.cycle.on_poll_start

        def on_poll_start() -> None:
            """Take what there are slots for; then acknowledge what no script that takes will acknowledge soon."""
            leases: Leases = self.engine.leases
            leases.in_loop = True
            take()
            channels = list(self.cycle._channels)  # none if it was closed: a loop keeps this function
            if channels and leases.has_ending and not any(channel.is_taking for channel in channels):
                leases.flush()

        self.cycle.on_poll_start = on_poll_start

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have a loop poll the channels' connections, and go on when one was given up (`Channel.look_after`).

        kombu before 5.7 forgets no socket that redis-py has closed already, and then polls none any more.
        """
        others = set(loop.on_tick)
        stock(super()).register_with_event_loop(connection, loop)
        cycle, polling = self.cycle, loop.on_tick - others
        stock_forget: Callable[[Any], None] = cycle._on_connection_disconnect

        def forget(lost: Any) -> None:
            """Forget a connection's sockets, and poll the next one's."""
            gone = [ident for ident in cycle._chan_to_sock if ident[1].connection is lost]
            kinds = {(channel, kind) for channel, _, kind in gone}
            for ident in gone:
                del cycle._chan_to_sock[ident]
            for number in [number for number, of in cycle._fd_to_chan.items() if of in kinds]:
                loop.remove(number)
                del cycle._fd_to_chan[number]
            stock_forget(lost)
            if cycle._channels:
                loop.on_tick.update(polling)

        cycle._on_connection_disconnect = forget
