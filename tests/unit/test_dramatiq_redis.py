"""The Redis broker of the Dramatiq engine keeps leases, returns what it took, and leaves nothing in limbo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from queue import Empty
from typing import Any

import pytest
import redis
from dramatiq import Message
from dramatiq.errors import ConnectionClosed

from taskbridge import Bridge
from taskbridge.contract.servers import PrivateRedis
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.fast.work import WorkQueue
from taskbridge.engines.dramatiq.lease import LeaseKeeper
from taskbridge.engines.dramatiq.redis_broker import LeveledRedisBroker
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import new_id


class Place:
    """A bridge with a namespace of its own, and a look into Redis."""

    def __init__(self, url: str) -> None:
        self.namespace = f"dq-{os.urandom(4).hex()}"
        self._url = url
        self._bridges: list[Bridge] = []
        self.bridge = self.new_bridge()
        self.client = redis.Redis.from_url(url)
        self.queue = f"{self.namespace}.dramatiq.default"
        self.key = f"{self.namespace}:{self.queue}"

        self.note = self.bridge.task(name="note")(_note)

    def new_bridge(self, **settings: Any) -> Bridge:
        options: dict[str, Any] = {"lease": 1, "queues": ("email",), **settings}
        bridge = Bridge(f"dramatiq+{self._url}", namespace=self.namespace, **options)
        self._bridges.append(bridge)
        return bridge

    def close(self) -> None:
        for bridge in self._bridges:
            bridge.close()
        self.client.close()

    def broker(self, threads: int = 2, *, keeps_lease: bool = True) -> LeveledRedisBroker:
        """Return the broker of a worker process; each is one of its own."""
        bridge = self.new_bridge()
        bridge.task(name="note")(_note)
        broker: LeveledRedisBroker = bridge.native
        broker.opens(threads)
        broker.booted.set()
        if not keeps_lease and broker._keeper is not None:
            broker._keeper._stop.set()
            broker._keeper._thread.join(5)
        return broker

    def waiting(self) -> list[bytes]:
        """Return the ids in the queue's lists, in the order in which they are fetched."""
        client: Any = self.client
        return [each for key in self.bridge.wire.places("default") for each in client.lrange(key, 0, -1)]

    def bodies(self) -> int:
        client: Any = self.client
        return int(client.hlen(f"{self.key}.msgs"))


def _note(x: int) -> None:
    """Do nothing."""


def _refuse(*given: Any, **more: Any) -> Any:
    raise BrokerUnavailable("on purpose")


@pytest.fixture
def open_place() -> Iterator[Callable[[str], Place]]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(Place(url)))


@pytest.fixture
def place(redis_server: PrivateRedis, open_place: Callable[[str], Place]) -> Place:
    return open_place(redis_server.url)


def take(consumer: Any, count: int = 1) -> list[Delivery]:
    """Return the next messages of a consumer."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + 5
    while len(taken) < count:
        assert time.monotonic() < deadline, f"only {taken}"
        if (delivery := next(consumer)) is not None:
            taken.append(delivery)
    return taken


def wait_until(condition: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestTaking:
    def test_it_takes_no_more_than_there_are_free_threads_over_all_queues(self, place: Place) -> None:
        for n in range(3):
            place.note.send(n)
            place.note.using(queue="email").send(n)
        broker = place.broker(threads=2)
        one, two = (
            broker.consume(name, prefetch=9, timeout=50)
            for name in (place.queue, place.queue.replace("default", "email"))
        )

        held = take(one, 2)
        nothing = [next(two), next(two)]
        one.ack(held[0])
        (other,) = take(two)

        assert nothing == [None, None]
        assert sum(place.bridge.counts().waiting.values()) == 3
        assert other.args == (0,)
        broker.closed()

    def test_what_is_acknowledged_is_gone(self, place: Place) -> None:
        place.note.using(priority="high").send(1)
        broker = place.broker()
        consumer = broker.consume(place.queue, timeout=50)

        consumer.ack(take(consumer)[0])

        assert (place.waiting(), place.bodies()) == ([], 0)
        broker.closed()
        assert not list(place.client.scan_iter(f"{place.namespace}:__*")), "the lease is given up"

    def test_who_is_done_with_a_message_takes_the_next_one_of_its_queue_in_the_same_slot(self, place: Place) -> None:
        for n in range(4):
            place.note.send(n)
        broker = place.broker(threads=2)
        consumer = broker.consume(place.queue, timeout=50)
        held = take(consumer, 2)
        handed: list[Delivery] = []
        broker.hand_over = handed.append

        consumer.ack(held[0])
        consumer.ack(held[1])

        assert [delivery.args for delivery in handed] == [(2,), (3,)]
        assert (place.waiting(), place.bodies()) == ([], 2)
        assert next(consumer) is None, "both slots are held"
        for delivery in handed:
            consumer.ack(delivery)
        assert place.bodies() == 0
        assert broker.slots is not None
        assert broker.slots.full_for_s() == 0
        broker.closed()

    def test_what_ends_while_another_thread_acknowledges_shares_the_next_round_trip(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for n in range(5):
            place.note.send(n)
        broker = place.broker(threads=3)
        consumer: Any = broker.consume(place.queue, timeout=50)
        held = take(consumer, 3)
        work = broker.work = WorkQueue()
        fetched: list[Any] = []
        fetch = broker.fetch

        def noted(*given: Any, done: Any, **more: Any) -> Any:
            fetched.append(done)
            return fetch(*given, done=done, **more)

        monkeypatch.setattr(broker, "fetch", noted)

        with broker.hand(place.queue, consumer._slots).settling:  # as another thread holds it
            consumer.ack(held[0])
            consumer.ack(held[1])
            assert (fetched, place.bodies()) == ([], 5)
        consumer.ack(held[2])

        assert fetched == [[delivery.place for delivery in held]]
        assert [work.get_nowait().message.args for _ in range(2)] == [(3,), (4,)]
        assert (place.waiting(), place.bodies()) == ([], 2)
        assert broker.slots is not None
        assert broker.slots.take(3) == 1, "the third found no message"
        broker.closed()

    def test_what_redis_did_not_take_is_acknowledged_with_the_next(self, place: Place) -> None:
        for n in range(2):
            place.note.send(n)
        broker = place.broker(threads=2)
        consumer: Any = broker.consume(place.queue, timeout=50)
        held = take(consumer, 2)
        broker.work = WorkQueue()

        with pytest.MonkeyPatch.context() as broken:
            for name in ("fetch", "remove"):
                broken.setattr(broker, name, _refuse)
            for _ in range(2):  # Dramatiq tries again
                with pytest.raises(ConnectionClosed):
                    consumer.ack(held[0])
        assert place.bodies() == 2
        consumer.ack(held[1])

        assert place.bodies() == 0
        assert broker.slots is not None
        assert broker.slots.take(3) == 2
        broker.closed()

    def test_what_no_thread_has_begun_with_goes_back_when_the_worker_drains(self, place: Place) -> None:
        for n in range(2):
            place.note.send(n)
        before = place.waiting()
        broker = place.broker(threads=2)
        work = broker.work = WorkQueue()
        consumer = broker.consume(place.queue, timeout=50)
        assert next(consumer) is None
        assert work.unfinished_tasks == 2

        broker.closes()
        assert next(consumer) is None

        assert place.waiting() == before
        broker.closed()

    @pytest.mark.parametrize("is_away", [False, True], ids=["redis is there", "redis is away"])
    def test_what_a_users_middleware_fails_on_goes_back_and_ends_no_thread(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_away: bool
    ) -> None:
        """A thread ends for good on an error that is raised where it takes its messages (dramatiq/worker.py)."""
        broker = place.broker(threads=1)
        work = broker.work = WorkQueue()
        queue = f"{place.namespace}.own"
        broker.declare_queue(queue)
        broker.enqueue(Message(queue_name=queue, actor_name="own", args=(1,), kwargs={}, options={"eta": 1}))
        consumer: Any = broker.consume(queue, timeout=50)
        broker.hand_over = _refuse
        assert next(consumer) is None
        assert work.unfinished_tasks == 1

        with monkeypatch.context() as outage:
            if is_away:
                outage.setattr(broker, "put_back", _refuse)
            with pytest.raises(Empty):
                work.get_nowait()
        broker.hand_over = None

        assert "can't be kept for later" in caplog.text
        wait_until(lambda: next(consumer) is None and work.unfinished_tasks == 1)
        again = work.get_nowait().message
        assert (again.args, again.redelivered) == ((1,), False)
        consumer.ack(again)
        assert broker.slots is not None
        assert broker.slots.take(2) == 1
        broker.closed()

    def test_what_a_lost_reply_held_is_found_though_threads_go_on_by_themselves(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for n in range(4):
            place.note.send(n)
        broker = place.broker(threads=1)
        consumer: Any = broker.consume(place.queue, timeout=50)
        (held,) = take(consumer)
        lost = place.client.lpop(place.key)
        place.client.sadd(broker.acks_key(place.queue), lost)  # type: ignore[arg-type]
        handed: list[Delivery] = []
        broker.hand_over = handed.append
        consumer.ack(held)
        assert [delivery.args for delivery in handed] == [(2,)], "the thread goes on"

        monkeypatch.setattr("taskbridge.engines.dramatiq.redis_broker._ALONE_S", 0.0)
        consumer.ack(handed.pop())
        (last,) = take(consumer)
        consumer.ack(last)

        assert [delivery.args for delivery in (last, *take(consumer))] == [(3,), (1,)]
        assert handed == []
        broker.closed()

    def test_a_slot_goes_to_another_queue_whose_consumer_waits_for_it(self, place: Place) -> None:
        place.note.send(0)
        place.note.send(1)
        place.note.using(queue="email").send(2)
        broker = place.broker(threads=1)
        one, two = (
            broker.consume(name, prefetch=9, timeout=50)
            for name in (place.queue, place.queue.replace("default", "email"))
        )
        handed: list[Delivery] = []
        broker.hand_over = handed.append
        (held,) = take(one)
        assert next(two) is None, "it stands in line now"

        one.ack(held)

        assert handed == []
        assert [delivery.args for delivery in take(two)] == [(2,)]
        broker.closed()

    def test_nothing_more_is_taken_once_the_worker_drains(self, place: Place) -> None:
        place.note.send(0)
        place.note.send(1)
        broker = place.broker(threads=1)
        consumer = broker.consume(place.queue, timeout=50)
        (held,) = take(consumer)
        handed: list[Delivery] = []
        broker.hand_over = handed.append
        broker.closes()

        consumer.ack(held)

        assert (handed, len(place.waiting()), place.bodies()) == ([], 1, 1)
        broker.closed()

    def test_what_failed_is_among_dramatiqs_own_dead(self, place: Place) -> None:
        place.note.send(1)
        broker = place.broker()
        consumer = broker.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)

        consumer.nack(delivery)

        assert place.client.zrange(f"{place.key}.XQ", 0, -1) == [delivery.place]
        assert place.client.hget(f"{place.key}.XQ.msgs", delivery.place) == delivery.body
        assert place.bodies() == 0
        broker.closed()

    def test_what_returns_goes_to_the_front_of_its_own_priority(self, place: Place) -> None:
        for n in range(3):
            place.note.using(priority="low").send(n)
        place.note.send(3)
        broker = place.broker(threads=3)
        consumer = broker.consume(place.queue, timeout=50)
        before = place.waiting()
        normal, *low = take(consumer, 3)

        for delivery in (low[1], low[0], normal):
            delivery.returns = True
            consumer.ack(delivery)

        assert place.waiting() == before
        assert [delivery.args for delivery in take(consumer, 3)] == [(3,), (0,), (1,)]
        broker.closed()

    def test_a_worker_that_ends_gives_back_all_it_holds(self, place: Place) -> None:
        for n in range(3):
            place.note.send(n)
        before = place.waiting()
        broker = place.broker(threads=3)
        consumer = broker.consume(place.queue, timeout=50)
        take(consumer)  # two more are ready

        consumer.close()
        broker.closed()

        assert place.waiting() == before
        assert not list(place.client.scan_iter(f"{place.namespace}:__*"))

    def test_a_consumer_that_is_made_anew_knows_what_is_in_hand(self, place: Place) -> None:
        for n in range(3):
            place.note.send(n)
        broker = place.broker(threads=2)
        first = broker.consume(place.queue, timeout=50)
        (held,) = take(first)
        first.close()
        second = broker.consume(place.queue, timeout=50)

        (other,) = take(second)
        nothing = next(second)
        second.ack(held)

        assert (held.args, other.args, nothing) == ((0,), (1,), None)
        assert [delivery.args for delivery in take(second)] == [(2,)]
        broker.closed()

    def test_what_was_taken_but_never_arrived_is_back_at_once(self, place: Place) -> None:
        """The reply to a fetch is lost when a connection breaks: the messages are marked as taken, by nobody."""
        for n in range(2):
            place.note.send(n)
        broker = place.broker(threads=2)
        consumer = broker.consume(place.queue, timeout=50)
        lost = place.client.lpop(place.key)
        place.client.sadd(broker.acks_key(place.queue), lost)  # type: ignore[arg-type]

        (other,) = take(consumer)
        (found,) = take(consumer)

        assert (other.args, found.args, found.place) == ((1,), (0,), lost)
        broker.closed()

    def test_an_id_without_a_message_is_dropped_and_what_is_no_id_is_dead(self, place: Place) -> None:
        place.client.rpush(place.key, new_id(), "critical:" + new_id(), b"\xffno id")
        place.note.send(1)
        broker = place.broker(threads=4)
        consumer = broker.consume(place.queue, timeout=50)

        (delivery,) = take(consumer)

        assert delivery.args == (1,)
        assert [(letter.reason, letter.raw) for letter in place.bridge.dead_letters()] == [
            ("undecodable", b"\xffno id")
        ]
        assert place.client.smembers(broker.acks_key(place.queue)) == {delivery.place}
        broker.closed()

    def test_whatever_redis_says_dramatiq_makes_the_consumer_anew(
        self, make_redis: Callable[[], PrivateRedis], open_place: Callable[[str], Place]
    ) -> None:
        """Dramatiq's consumer thread ends for good on an error that it doesn't expect while it closes."""
        server = make_redis()
        place = open_place(server.url)
        place.note.send(1)
        broker = place.broker(keeps_lease=False)
        consumer: Any = broker.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        delivery.returns = True

        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ConnectionClosed, match="read only"):
            next(consumer)
        server.kill()
        for act, given in ((consumer.__next__, ()), (consumer.ack, (delivery,)), (consumer.requeue, ([delivery],))):
            with pytest.raises(ConnectionClosed):
                act(*given)
        server.start()
        consumer.ack(delivery)

        assert (len(place.waiting()), place.bodies()) == (1, 1)

    @pytest.mark.parametrize("suspect", [True, False])
    def test_what_goes_back_says_whether_it_may_have_been_started(self, place: Place, suspect: bool) -> None:
        place.note.send(1)
        broker = place.broker()
        consumer = broker.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        delivery.returns, delivery.suspect = True, suspect
        consumer.ack(delivery)

        (again,) = take(consumer)

        assert again.redelivered is suspect
        consumer.ack(again)
        assert not list(place.client.scan_iter(f"{place.namespace}:*recovered"))
        broker.closed()

    def test_a_full_redis_is_emptied(
        self, make_redis: Callable[[], PrivateRedis], open_place: Callable[[str], Place]
    ) -> None:
        place = open_place(make_redis().url)
        place.note.send(1)
        broker = place.broker(keeps_lease=False)
        consumer = broker.consume(place.queue, timeout=50)

        place.client.config_set("maxmemory", 1)
        broker.renew()
        (delivery,) = take(consumer)
        consumer.ack(delivery)

        assert (place.waiting(), place.bodies()) == ([], 0)

    def test_what_is_returned_to_a_full_redis_is_not_lost(
        self, make_redis: Callable[[], PrivateRedis], open_place: Callable[[str], Place]
    ) -> None:
        place = open_place(make_redis().url)
        place.note.send(1)
        broker = place.broker(keeps_lease=False)
        consumer = broker.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        delivery.returns = True

        place.client.config_set("maxmemory", 1)
        consumer.ack(delivery)

        assert (len(place.waiting()), place.bodies()) == (1, 1)


class TestLeases:
    def test_what_a_dead_worker_took_is_back_and_known_to_be_delivered_again(self, place: Place) -> None:
        for n in range(2):
            place.note.using(priority="critical").send(n)
        dead = place.broker(keeps_lease=False)
        dead.renew()
        held = take(dead.consume(place.queue, timeout=50), 2)
        died_at = time.monotonic()
        place.note.using(priority="critical").send(2)
        living = place.broker(threads=3)
        consumer = living.consume(place.queue, timeout=50)

        wait_until(lambda: len(place.waiting()) == 3)
        took_s = time.monotonic() - died_at
        again = take(consumer, 3)

        assert 1 <= took_s <= 3
        assert sorted((delivery.args, delivery.redelivered) for delivery in again) == [
            ((0,), True),
            ((1,), True),
            ((2,), False),
        ]
        for delivery in again:
            consumer.ack(delivery)
        assert place.bodies() == 0
        assert not place.client.exists(living.recovered_key(place.queue))
        assert held[0].redelivered is False
        living.closed()

    def test_what_a_dead_worker_acknowledges_after_all_does_no_harm(self, place: Place) -> None:
        place.note.send(1)
        frozen, living = place.broker(keeps_lease=False), place.broker(keeps_lease=False)
        consumer = frozen.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        time.sleep(1.1)
        living.recover(strangers=True)

        consumer.ack(delivery)

        assert (len(place.waiting()), place.bodies()) == (1, 1)

    def test_what_a_worker_takes_again_while_it_still_runs_it_holds_one_slot(self, place: Place) -> None:
        """It stood still for longer than its lease, so another one returned the message."""
        place.note.send(1)
        frozen, living = (place.broker(threads=2, keeps_lease=False) for _ in range(2))
        consumer: Any = frozen.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        time.sleep(1.1)
        assert living.recover(strangers=True) == 1

        again = next(consumer)
        consumer.ack(delivery)

        assert again is None
        assert (place.waiting(), place.bodies()) == ([], 0)
        assert frozen.slots is not None
        assert frozen.slots.take(3) == 2

    def test_a_worker_recovers_queues_that_it_does_not_consume(self, place: Place) -> None:
        place.note.send(1)
        dead = place.broker(keeps_lease=False)
        dead.renew()
        take(dead.consume(place.queue, timeout=50))
        time.sleep(1.1)
        other: LeveledRedisBroker = place.new_bridge(default_queue="other", queues=()).native

        assert other.recover(strangers=False) == 1
        assert len(place.waiting()) == 1

    def test_a_worker_that_is_not_ours_is_looked_after_too(self, place: Place) -> None:
        """A stock Dramatiq worker that consumes a queue of ours does not register its queues."""
        place.note.send(1)
        redis_id = place.client.lpop(place.key)
        place.client.sadd(f"{place.namespace}:__acks__.stock.{place.queue}", redis_id)  # type: ignore[arg-type]
        place.client.zadd(f"{place.namespace}:__heartbeats__", {"stock": (time.time() - 5) * 1000})
        broker: LeveledRedisBroker = place.bridge.native

        assert broker.recover(strangers=False) == 0
        assert broker.recover(strangers=True) == 1
        assert place.waiting() == [redis_id]

    def test_a_lease_is_kept_while_all_threads_are_busy(self, place: Place) -> None:
        place.note.send(1)
        busy, other = place.broker(threads=1), place.broker(threads=1)
        take(busy.consume(place.queue, timeout=50))

        time.sleep(2.5)

        assert place.waiting() == []
        for broker in (busy, other):
            broker.closed()

    def test_dramatiqs_own_dead_messages_are_forgotten_in_their_time(self, place: Place) -> None:
        week_ms = 7 * 86_400_000
        now_ms = time.time() * 1000
        for name, died_at in (("old", now_ms - week_ms - 1000), ("young", now_ms - week_ms + 60_000)):
            place.client.zadd(f"{place.key}.XQ", {name: died_at})
            place.client.hset(f"{place.key}.XQ.msgs", name, "body")

        place.broker(keeps_lease=False).recover(strangers=False)

        assert place.client.zrange(f"{place.key}.XQ", 0, -1) == [b"young"]
        assert place.client.hkeys(f"{place.key}.XQ.msgs") == [b"young"]


class _Lessee:
    """A worker's broker of which the test says what it does."""

    lease_s = 1.0

    def __init__(self) -> None:
        self.is_away = False
        self.beats = 0
        self.recoveries = 0

    def renew(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")
        self.beats += 1

    def recover(self, *, strangers: bool) -> int:
        self.recoveries += 1
        return 0

    def leave(self) -> None:
        """Leave."""


def test_who_was_cut_off_itself_does_not_judge_others_at_once() -> None:
    lessee = _Lessee()
    keeper = LeaseKeeper(lessee)
    keeper.start()
    wait_until(lambda: lessee.recoveries)
    lessee.is_away = True
    time.sleep(0.6)
    lessee.is_away, before, back_at = False, lessee.recoveries, time.monotonic()

    wait_until(lambda: lessee.recoveries > before)

    assert time.monotonic() - back_at >= 0.9, "the others have a lease's time to renew theirs"
    keeper.stop()
