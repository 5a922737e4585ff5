"""Dramatiq's Redis broker with four priorities, leases that a busy worker keeps, and no message in limbo.

The keys are Dramatiq's own (dramatiq/brokers/redis/dispatch.lua); what is added:

- `{namespace}:{queue}:{priority}`, a list beside the queue's own, which is the one for `normal`. The id of a message in
  it begins with the priority, so that whoever returns the message finds the list.
- `{namespace}:__queues__.{worker}`, a set of the queues that a worker takes from. With it any worker can return a dead
  one's messages, of queues that it does not consume too, without searching all keys as Dramatiq does.
- `{namespace}:{queue}.recovered`, a set of the ids that were returned in this way: they may have been started.

Times are the server's: Dramatiq's are each client's own, and a worker whose clock is slow would look dead.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import redis
from dramatiq import Consumer, MessageProxy
from dramatiq.brokers.redis import DEFAULT_DEAD_MESSAGE_TTL, RedisBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskbridge import locks
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connection import Word
from taskbridge.brokers.redis.scripts import Script
from taskbridge.engines.dramatiq import scripts
from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.lease import LeaseKeeper
from taskbridge.engines.dramatiq.slots import Slots, Ticket
from taskbridge.engines.dramatiq.wire import LEVELS, level_list, native_queue
from taskbridge.engines.settle import NotSettledError
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.dramatiq")

_SHORTEST_LEASE_S: Final = 1.0

_LOOK_S: Final = 0.2
"""How long an idle consumer waits before it looks at all lists again; at that for `normal` it looks all the time."""

_LOOK_DELAYED_S: Final = 0.5
"""The same for the queues of delayed messages, in which only plain clients put anything."""

_TIMEOUT_S: Final = 10.0
"""How long one command may take. Each is short; without a limit a silent server would hold a thread for ever."""

_TRUSTED_S: Final = 0.01
"""How long after its last use a connection is taken for open without a look; what fails on it is done again."""

_ALONE_S: Final = 5.0
"""How long threads may go on by themselves: then the consumer's own fetch tells whether a reply to them was lost."""

_RECONCILED_S: Final = 1.0
"""How long it is waited for that nothing is being fetched."""

_FORGOTTEN_S: Final = 3600.0
"""How long a client or worker that is not ours stays in the list of heartbeats after its last one."""


class _Hand:
    """What a worker has taken from one queue and is not done with; it outlives the consumer, which may be restarted.

    Each message holds one slot.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lock = locks.Lock()
        self._places: set[bytes] = set()
        self._asked = 0
        self._is_reconciled = False
        self._done: deque[bytes] = deque()
        self.being_settled: list[bytes] = []
        self.settling: Final = locks.Lock()
        """Held by the thread that acknowledges what is done with."""

    def ask(self, most: int) -> int | None:
        """Begin to fetch up to so many, and return how many Redis may have marked as taken before; None: not now."""
        with self._lock:
            if self._is_reconciled:
                return None
            taken = len(self._places) + self._asked
            self._asked += most
            return taken

    def got(self, most: int) -> None:
        """End what `ask` began."""
        with self._lock:
            self._asked -= most

    @contextmanager
    def reconciled(self) -> Generator[list[bytes] | None]:
        """Give the places of all that is in hand, while nothing is fetched; None if something is for too long."""
        with self._lock:
            self._is_reconciled = True  # so that nobody begins to
        deadline = time.monotonic() + _RECONCILED_S
        while self._asked > 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        with self._lock:
            places = list(self._places) if self._asked == 0 else None
        try:
            yield places
        finally:
            self._is_reconciled = False

    def add(self, place: bytes) -> bool:
        """Note a message that was taken; return False if it is in hand already.

        Then this worker stood still for longer than its lease, another one returned the message, and it was taken anew.
        """
        with self._lock:
            is_new = place not in self._places
            self._places.add(place)
        return is_new

    def drop(self, place: bytes) -> None:
        """Be done with a message; its slot is free."""
        if self.forget(place):
            self._slots.release()

    def forget(self, place: bytes) -> bool:
        """Be done with a message, and return whether a slot was held for it, which still is."""
        with self._lock:
            if place not in self._places:
                return False
            self._places.remove(place)
            return True

    def all(self) -> list[bytes]:
        with self._lock:
            return list(self._places)

    def note_done(self, places: Iterable[bytes]) -> None:
        """Note messages that are done with, and that Redis has yet to be told of."""
        self._done.extend(places)

    @property
    def has_done(self) -> bool:
        """Whether there are some."""
        return bool(self._done)

    def take_done(self) -> list[bytes]:
        """Return them, each once; whoever has them tells Redis, or notes them again."""
        return list(dict.fromkeys(self._done.popleft() for _ in range(len(self._done))))

    def count(self, places: Iterable[bytes]) -> int:
        """Return how many of these are in hand."""
        with self._lock:
            return sum(place in self._places for place in places)


class LeveledRedisBroker(EngineBroker, RedisBroker):
    """Dramatiq's broker, with consumers and a maintenance of its own."""

    def __init__(self, settings: Settings, middleware: list[Middleware]) -> None:
        pool: Any = redis.ConnectionPool.from_url(
            settings.url.broker_url,
            protocol=2,  # needs no round trip to be agreed upon
            retry=Retry(NoBackoff(), 0),  # for what Dramatiq itself sends: sent twice, it would be there twice
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
        )
        self.lease_s: float = max(settings.lease_s, _SHORTEST_LEASE_S)
        super().__init__(
            client=redis.Redis(connection_pool=pool),
            middleware=middleware,
            namespace=settings.namespace,
            heartbeat_timeout=int(self.lease_s * 1000),
            maintenance_chance=0,  # the lease keeper's is regular, and by the server's clock
        )
        # For all that is done here: it takes a third of redis-py's time, and each call ends in time.
        self._calls = Client(settings.url.broker_url, trusted_s=_TRUSTED_S)
        self.worker_id: str = str(uuid4())
        self._own_queues = native_queue(settings.namespace, "")
        self._hands: dict[str, _Hand] = {}
        self._keeper: LeaseKeeper | None = None
        self._can_wait = True

    # Keys

    def key(self, queue_name: str) -> str:
        """Return the key of a queue's list of ids."""
        return f"{self.namespace}:{queue_name}"

    def bodies_key(self, queue_name: str) -> str:
        """Return the key of a queue's bodies by id."""
        return f"{self.namespace}:{queue_name}.msgs"

    def acks_key(self, queue_name: str) -> str:
        """Return the key of the ids that this worker has taken from a queue."""
        return f"{self.namespace}:__acks__.{self.worker_id}.{queue_name}"

    def recovered_key(self, queue_name: str) -> str:
        """Return the key of the ids in a queue that a worker had taken which died."""
        return f"{self.namespace}:{queue_name}.recovered"

    def taken_keys(self, queue_name: str) -> tuple[str, str, str]:
        """Return the keys of what this worker has taken, of the bodies, and of what was recovered from dead workers."""
        return self.acks_key(queue_name), self.bodies_key(queue_name), self.recovered_key(queue_name)

    @property
    def heartbeats_key(self) -> str:
        """The key of the workers and the times of their last signs of life."""
        return f"{self.namespace}:__heartbeats__"

    def lists(self, queue_name: str) -> list[str]:
        """Return the keys of a queue's lists, in the order in which they are fetched."""
        key = self.key(queue_name)
        if queue_name.startswith(self._own_queues) and not queue_name.endswith(".DQ"):
            return [level_list(key, level) for level in LEVELS]
        return [key]

    # Consuming

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue."""
        return _LeveledConsumer(self, queue_name, prefetch, timeout)

    def hand(self, queue_name: str, slots: Slots) -> _Hand:
        """Return what this worker has in hand of a queue."""
        return self._hands.setdefault(queue_name, _Hand(slots))

    def new_hand(self, queue_name: str, slots: Slots) -> _Hand:
        """Return an empty hand for a queue, from now on its own."""
        hand = self._hands[queue_name] = _Hand(slots)
        return hand

    def fetch(self, keys: Sequence[str], slots: int, *, in_hand: int, done: Sequence[bytes] = ()) -> list[Any]:
        """Remove messages that are done with, take up to so many others, and return what the script returns.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        args: tuple[Word, ...] = (self.worker_id, slots, in_hand, *done)
        rows: list[Any] = self._run(scripts.FETCH, keys, args)
        return rows

    def remove(self, keys: Sequence[str], places: Sequence[bytes]) -> None:
        """Remove messages that this worker has taken and is done with.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        self._run(scripts.ACK, keys, places)

    def reject(self, keys: Sequence[str], place: bytes) -> None:
        """Move a message that this worker has taken to Dramatiq's own dead ones.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        self._run(scripts.NACK, keys, [place])

    def reconcile(self, queue_name: str, in_hand: Sequence[bytes]) -> int:
        """Return what is marked as taken by this worker and is not in hand to its queue; return how many these were.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        keys = [self.acks_key(queue_name), self.bodies_key(queue_name), self.key(queue_name)]
        returned: int = self._run(scripts.RECONCILE, keys, in_hand)
        return returned

    def put_back(self, queue_name: str, ids: Sequence[bytes], *, suspect: bool = False) -> None:
        """Return messages that this worker has taken to their queue, in front.

        Args:
            queue_name: The queue.
            ids: Of the messages, in Redis.
            suspect: Whether they may have been started.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        if ids:
            keys = [self.acks_key(queue_name), self.bodies_key(queue_name), self.key(queue_name)]
            self._run(scripts.RETURN, [*keys, self.recovered_key(queue_name)], [int(suspect), *ids])

    def wait(self, queue_name: str, timeout_s: float) -> None:
        """Return when there is something in a queue's list for `normal`, or after so many seconds.

        Raises:
            BrokerUnavailable: Redis doesn't do it.
        """
        if not self._can_wait:
            time.sleep(timeout_s / 4)
            return
        key = self.key(queue_name)
        try:
            # Moves the first to where it was, so that nothing is taken; Redis has no waiting that only looks.
            self._calls.execute([("BLMOVE", key, key, "LEFT", "LEFT", timeout_s)], timeout_s=_TIMEOUT_S)
        except BrokerUnavailable as exc:
            if "unknown command" not in str(exc):
                raise
            self._can_wait = False  # before Redis 6.2

    # The worker's life

    def opens(self, threads: int) -> None:
        """Begin to keep the lease."""
        super().opens(threads)
        self.worker_id = str(uuid4())
        self._hands.clear()
        self._keeper = LeaseKeeper(self)
        self._keeper.start()

    def closed(self, *, keep: Collection[Delivery] = ()) -> None:
        """Give back all that is still in hand, and end the lease; what is kept is taken when the lease is over."""
        kept = {delivery.place for delivery in keep}
        for queue_name, hand in list(self._hands.items()):
            done = [*hand.take_done(), *hand.being_settled]
            places = [place for place in hand.all() if place not in kept and place not in done]
            try:
                self.put_back(queue_name, places)
                if done:  # which Redis did not take before
                    self.remove(self.taken_keys(queue_name), done)
            except BrokerUnavailable as exc:
                _log.warning("%d messages go back only when the lease is over: %s", len(places), exc)
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            BrokerUnavailable: Redis doesn't take it.
        """
        self._run(scripts.BEAT, [self.heartbeats_key, self._queues_key()], [self.worker_id, *self._all_queues()])

    def recover(self, *, strangers: bool) -> int:
        """Return the messages of dead workers to their queues; forget Dramatiq's own dead messages in their time.

        Raises:
            BrokerUnavailable: Redis doesn't do it, or nobody knows.
        """
        returned: int = self._run(
            scripts.MAINTAIN,
            [self.heartbeats_key],
            [
                self.namespace,
                int(self.lease_s * 1000),
                int(strangers),
                int(max(_FORGOTTEN_S, 2 * self.lease_s) * 1000),
                DEFAULT_DEAD_MESSAGE_TTL,
                *self._all_queues(),
            ],
        )
        return returned

    def leave(self) -> None:
        """Give the lease up, if nothing is held under it.

        Raises:
            BrokerUnavailable: Redis doesn't do it.
        """
        taken = [self.acks_key(queue_name) for queue_name in self._all_queues()]
        self._run(scripts.LEAVE, [self.heartbeats_key, self._queues_key()], [self.worker_id, *taken])

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self.client.close()
        self._calls.close()

    def _run(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> Any:
        return self._calls.run(script, keys, args, timeout_s=_TIMEOUT_S)

    def _queues_key(self) -> str:
        return f"{self.namespace}:__queues__.{self.worker_id}"

    def _all_queues(self) -> list[str]:
        return [*self.get_declared_queues(), *self.get_declared_delay_queues()]


class _Fetched(NamedTuple):
    """A message that was taken, and that nobody has looked at yet; without a body, only its id was there."""

    consumer: _LeveledConsumer
    redis_id: bytes
    body: bytes | None
    recovered: int

    def opened(self) -> MessageProxy | None:
        """Return the message, for the thread that is to run it; None if there is nothing to run."""
        return self.consumer.taken(self)


class _LeveledConsumer(Consumer):
    """Takes messages from the lists of one queue, in order, as many as there are free threads."""

    def __init__(self, broker: LeveledRedisBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._keys = broker.taken_keys(queue_name)
        self._fetch_keys = (broker.heartbeats_key, *self._keys, *broker.lists(queue_name))
        self._timeout_s = timeout_ms / 1000
        is_delayed = queue_name.endswith(".DQ")
        self._look_s = _LOOK_DELAYED_S if is_delayed else _LOOK_S
        if is_delayed or broker.slots is None:
            # What an earlier consumer held back has been dropped (dramatiq/worker.py, ConsumerThread.run).
            self._slots = Slots(prefetch)
            self._hand = broker.new_hand(queue_name, self._slots)
        else:
            self._slots = broker.slots
            self._hand = broker.hand(queue_name, self._slots)
        self._work = broker.work if self._slots is broker.slots and broker.reception.owns(queue_name) else None
        self._ready: deque[_Fetched] = deque()
        self._wake = locks.Event()
        self._ticket: Ticket | None = None
        self._is_closed = False
        self._fetched_at = time.monotonic()

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there is none for a while, or no thread for it.

        Raises:
            ConnectionClosed: Redis doesn't do its part, whatever the reason; Dramatiq then makes another consumer.
        """
        if not self._broker.is_booted():
            return None
        try:
            if not self._ready and not self._broker.draining:
                self._fetch()
            if self._broker.draining:
                time.sleep(self._timeout_s)  # what is ready goes back when the consumer is closed
                return None
            return self._next_ready()
        except (BrokerUnavailable, NotSettledError) as exc:
            raise ConnectionClosed(exc) from None

    def _next_ready(self) -> Delivery | None:
        """Return the next message that was taken; one that is done with already is none."""
        while self._ready:
            delivery = self._opened(self._ready.popleft())
            if delivery is not None:
                return delivery
        return None

    def ack(self, message: MessageProxy) -> None:
        """Remove a message that is done with, or return one to its queue that goes back.

        Raises:
            ConnectionClosed: Redis doesn't do it.
        """
        delivery = _delivery(message)
        place = delivery.place
        if delivery.returns:
            suspect = delivery.suspect
            self._surely(lambda: self._broker.put_back(self._queue_name, [place], suspect=suspect))
            self._hand.drop(place)
            return
        self._hand.note_done([place])
        self._settle()

    def _settle(self) -> None:
        """Acknowledge what is done with, unless another thread is at it, which then does this too.

        So quick tasks share a round trip, and a single one has its own. Nothing is left behind: who comes while another
        thread is at it has noted before what is done, and that thread looks once more when it has finished.

        Raises:
            ConnectionClosed: Redis doesn't do it.
        """
        hand = self._hand
        while hand.has_done and hand.settling.acquire(blocking=False):
            done: list[bytes] = []
            try:
                done = hand.being_settled = hand.take_done()
                if not (done and self._goes_on() and self._exchange(done)):
                    self._surely(partial(self._broker.remove, self._keys, done))
                    for place in done:
                        hand.drop(place)
            except BaseException:
                hand.note_done(done)
                raise
            finally:
                hand.being_settled = []
                hand.settling.release()

    def _goes_on(self) -> bool:
        """Return whether threads that are done with messages take the next ones of this queue."""
        broker = self._broker
        if self._is_closed or broker.draining or self._slots is not broker.slots:
            return False
        if self._work is None:
            return False
        if time.monotonic() - self._fetched_at > _ALONE_S:
            return False
        return self._slots.keep(self._ticket)

    def _exchange(self, done: Sequence[bytes]) -> bool:
        """Remove messages and take as many others in their slots, in one round trip; return whether that was done.

        The consumer's own thread would have to be woken for it, and then wake this one: that takes longer than a short
        task. If Redis fails, what it may have taken goes back by `_reconcile`.
        """
        slots = self._hand.count(done)  # not of what an earlier consumer has given back
        in_hand = self._hand.ask(slots)
        if in_hand is None:
            return False
        try:
            _, *rows = self._broker.fetch(self._fetch_keys, slots, in_hand=in_hand, done=done)
            fetched = self._taken(rows)
        except BrokerUnavailable as exc:
            _log.info("no further message could be taken from %s: %s", self._queue_name, exc)
            return False
        finally:
            self._hand.got(slots)
        free = sum(self._hand.forget(place) for place in done) - len(fetched)
        if free > 0:
            self._slots.release(free)
        for each in fetched:
            self._pass_on(each)
        return True

    def _taken(self, rows: Sequence[Any]) -> list[_Fetched]:
        """Return what a fetch has taken and was not in hand; it is from now on."""
        fetched = [_Fetched(self, *row) for row in zip(rows[::3], rows[1::3], rows[2::3], strict=True)]
        return [each for each in fetched if self._hand.add(each.redis_id)]

    def _pass_on(self, fetched: _Fetched) -> None:
        """Give the worker's threads a message that has a slot."""
        if self._work is not None:
            self._work.put(fetched)

    def taken(self, fetched: _Fetched) -> MessageProxy | None:
        """Look at a message that a thread takes to run it, and return it; None if it is not to be run now."""
        if self._broker.draining:
            self._give_back(fetched.redis_id)
            return None
        try:
            delivery = self._opened(fetched)
        except (BrokerUnavailable, NotSettledError) as exc:
            _log.warning("a message of %s goes back to it unread: %s", self._queue_name, exc)
            return None
        except Exception:
            _log.exception("a message of %s can't be looked at, and goes back to it", self._queue_name)
            return None
        return delivery

    def _give_back(self, place: bytes) -> None:
        """Return a message that was not begun with to its queue; if Redis is away, `_reconcile` does it."""
        try:
            self._surely(lambda: self._broker.put_back(self._queue_name, [place]))
        except ConnectionClosed as exc:
            _log.warning("a message of %s goes back to it only when Redis is there: %s", self._queue_name, exc)
        self._hand.drop(place)

    def nack(self, message: MessageProxy) -> None:
        """Move a message to Dramatiq's own dead ones, for its dashboards.

        Raises:
            ConnectionClosed: Redis doesn't do it.
        """
        place = _delivery(message).place
        dead = f"{self._broker.key(self._queue_name.removesuffix('.DQ'))}.XQ"
        keys = [*self._keys, dead, f"{dead}.msgs"]

        self._surely(lambda: self._broker.reject(keys, place))
        self._hand.drop(place)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Return messages to their queue.

        Raises:
            ConnectionClosed: Redis doesn't do it.
        """
        places = [_delivery(message).place for message in messages]
        self._surely(lambda: self._broker.put_back(self._queue_name, places))
        for place in places:
            self._hand.drop(place)

    def close(self) -> None:
        """Return what no thread was given yet; if Redis is away, the next consumer does it.

        Raises:
            ConnectionClosed: Redis is away.
        """
        self._is_closed = True
        if self._ticket is not None:
            self._slots.give_up(self._ticket)
            self._ticket = None
        places = [fetched.redis_id for fetched in self._ready]
        self._ready.clear()
        for place in places:
            self._hand.drop(place)
        self._surely(lambda: self._broker.put_back(self._queue_name, places))

    def _fetch(self) -> None:
        """Take messages for free threads; wait a little if there is nothing to take."""
        slots = asked = self._take_slots()
        if slots == 0:
            return
        in_hand = self._hand.ask(asked)
        assert in_hand is not None, "only this thread reconciles"
        self._fetched_at = time.monotonic()
        try:
            has_lost, *rows = self._broker.fetch(self._fetch_keys, slots, in_hand=in_hand)
            fetched = self._taken(rows)
            slots -= len(fetched)
        finally:
            self._hand.got(asked)
            self._slots.release(slots)
        if self._work is not None:
            for each in fetched:
                self._work.put(each)
        else:
            self._ready.extend(fetched)
        if has_lost:
            self._reconcile()
        if not rows:
            self._broker.wait(self._queue_name, self._look_s)

    def _take_slots(self) -> int:
        """Take the free slots; if there are none, wait in line for one, and return 0 if that takes too long."""
        if self._ticket is None:
            self._ticket = self._slots.ticket(self._wake.set)
        if not self._ticket.granted:
            self._wake.wait(self._timeout_s)
        self._wake.clear()
        if not self._ticket.granted:  # not in time, or what woke it came late and was for the ticket before
            return 0
        self._ticket = None
        return 1 + self._slots.take(self._slots.total - 1)

    def _opened(self, fetched: _Fetched) -> Delivery | None:
        """Look at a message in hand, and return it; None if it is done with, and its slot free.

        Raises:
            NotSettledError, BrokerUnavailable: Its slot is free, and it goes back to the queue.
        """
        reception, queue_name = self._broker.reception, self._queue_name
        _, redis_id, body, recovered = fetched
        try:
            if body is not None:
                delivery = reception.admit(queue_name, body, place=redis_id, redelivered=bool(recovered))
            else:
                delivery = None
                if not _is_id(redis_id):  # else a second copy of an id, whose message is done with
                    reception.undecodable(redis_id, DecodeError("not the id of a message"))
            if delivery is not None:
                return delivery
            self._broker.remove(self._keys, [redis_id])
        except NotSettledError:
            self._hand.drop(redis_id)
            self._broker.put_back(self._queue_name, [redis_id])
            raise
        except BaseException:
            self._hand.drop(redis_id)
            raise
        self._hand.drop(redis_id)
        return None

    def _reconcile(self) -> None:
        """Return what is marked as taken by this worker and is not: the reply to a fetch was lost on its way."""
        with self._hand.reconciled() as places:
            if places is None:
                return  # what is being fetched would count as lost; the next fetch tells again
            lost = self._broker.reconcile(self._queue_name, places)
        _log.warning("%d messages that were taken from %s but never arrived are back in it", lost, self._queue_name)

    def _surely(self, act: Callable[[], None]) -> None:
        """Do what may be done twice; the first failure may only mean that an idle connection was closed.

        Raises:
            ConnectionClosed: Redis doesn't do it.
        """
        try:
            try:
                act()
            except BrokerUnavailable:
                act()
        except BrokerUnavailable as exc:
            raise ConnectionClosed(exc) from None


def _delivery(message: MessageProxy) -> Delivery:
    assert isinstance(message, Delivery)
    return message


def _is_id(redis_id: bytes) -> bool:
    """Return whether it is a UUID, as Dramatiq's ids are, behind a priority or not."""
    try:
        UUID(redis_id.rpartition(b":")[2].decode("ascii"))
    except ValueError:
        return False
    return True
