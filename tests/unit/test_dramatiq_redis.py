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
from dramatiq import Consumer, Message
from dramatiq.errors import ConnectionClosed

from taskbridge import Bridge
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.fast.work import WorkQueue
from taskbridge.engines.dramatiq.redis_broker import LeveledRedisBroker
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import new_id
from tests.servers import PrivateRedis


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
        options: dict[str, Any] = {"lease": 60, "send_timeout": 30, "queues": ("email",), **settings}
        bridge = Bridge(f"dramatiq+{self._url}", namespace=self.namespace, **options)
        self._bridges.append(bridge)
        return bridge

    def close(self) -> None:
        for bridge in self._bridges:
            bridge.close()
        self.client.close()

    def broker(self, threads: int = 2) -> LeveledRedisBroker:
        """Return the broker of a worker process; each is one of its own."""
        bridge = self.new_bridge()
        bridge.task(name="note")(_note)
        broker: LeveledRedisBroker = bridge.native
        broker.opens(threads)
        broker.booted.set()
        return broker

    def fast_broker(self, threads: int) -> tuple[LeveledRedisBroker, WorkQueue]:
        """Return the broker of a worker that takes its messages the fast way, and what its threads take them from."""
        broker = self.broker(threads)
        work = broker.work = WorkQueue()
        return broker, work

    def fast_consumer(self, *, messages: int, threads: int) -> tuple[LeveledRedisBroker, WorkQueue, Consumer]:
        """Return the same with a consumer that has handed its threads what was sent: messages with a number each."""
        for number in range(messages):
            self.note.send(number)
        broker, work = self.fast_broker(threads)
        consumer = broker.consume(self.queue, timeout=50)
        assert next(consumer) is None
        return broker, work, consumer

    def waiting(self) -> list[bytes]:
        """Return the ids in the queue's lists, in the order in which they are fetched."""
        client: Any = self.client
        return [each for key in self.bridge.wire.places("default") for each in client.lrange(key, 0, -1)]

    def held(self) -> int:
        """Return how many messages workers hold."""
        client: Any = self.client
        return sum(int(client.hlen(key)) for key in client.scan_iter(f"{self.namespace}.dramatiq.held.*"))

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
    deadline = time.monotonic() + 60
    while len(taken) < count:
        assert time.monotonic() < deadline, f"only {taken}"
        if (delivery := next(consumer)) is not None:
            taken.append(delivery)
    return taken


def wait_until(condition: Callable[[], object], within_s: float = 60) -> None:
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
        assert list(place.client.scan_iter(f"{place.namespace}.dramatiq.*")) == [], "the lease is given up"

    def test_who_is_done_with_a_message_takes_the_next_one_of_its_queue_in_the_same_slot(self, place: Place) -> None:
        broker, work, consumer = place.fast_consumer(messages=4, threads=2)
        held = [work.get_nowait().message for _ in range(2)]

        consumer.ack(held[0])
        consumer.ack(held[1])

        following = [work.get_nowait().message for _ in range(2)]
        assert [delivery.args for delivery in following] == [(2,), (3,)]
        assert (place.waiting(), place.bodies()) == ([], 2)
        assert next(consumer) is None, "both slots are held"
        for delivery in following:
            consumer.ack(delivery)
        assert place.bodies() == 0
        assert broker.slots is not None
        assert broker.slots.full_for_s() == 0
        broker.closed()

    def test_what_ends_while_another_thread_takes_the_next_shares_its_next_round_trip(self, place: Place) -> None:
        broker, work, consumer = place.fast_consumer(messages=5, threads=3)
        held = [work.get_nowait().message for _ in range(3)]

        with work._asking:  # as another thread holds it
            consumer.ack(held[0])
            consumer.ack(held[1])
            assert place.bodies() == 5
        consumer.ack(held[2])

        assert [work.get_nowait().message.args for _ in range(2)] == [(3,), (4,)]
        assert (place.waiting(), place.bodies()) == ([], 2)
        assert broker.slots is not None
        assert broker.slots.take(3) == 1, "the third found no message"
        broker.closed()

    def test_what_ends_while_others_wait_for_a_thread_shares_the_round_trip_of_the_last(self, place: Place) -> None:
        broker, work, consumer = place.fast_consumer(messages=5, threads=3)

        consumer.ack(work.get_nowait().message)
        consumer.ack(work.get_nowait().message)  # it is the last but one
        assert place.bodies() == 5
        last = work.get_nowait().message

        assert (place.bodies(), last.args) == (3, (2,))
        assert [work.get_nowait().message.args for _ in range(2)] == [(3,), (4,)]
        broker.closed()

    def test_what_redis_did_not_take_is_acknowledged_later_and_its_slot_is_free(self, place: Place) -> None:
        broker, work, consumer = place.fast_consumer(messages=2, threads=2)
        held = [work.get_nowait().message for _ in range(2)]

        with pytest.MonkeyPatch.context() as broken:
            broken.setattr("taskbridge.brokers.redis.client.Client.execute", _refuse)
            consumer.ack(held[0])
            assert place.bodies() == 2
        consumer.ack(held[1])

        wait_until(lambda: place.bodies() == 0)
        assert broker.slots is not None
        assert broker.slots.take(3) == 2
        broker.closed()

    def test_what_no_thread_has_begun_with_goes_back_when_the_worker_drains(self, place: Place) -> None:
        for n in range(2):
            place.note.send(n)
        before = place.waiting()
        broker, work = place.fast_broker(threads=2)
        consumer = broker.consume(place.queue, timeout=50)
        assert next(consumer) is None
        assert work.unfinished_tasks == 2

        broker.draining = True
        with pytest.raises(Empty):
            work.get_nowait()

        assert sorted(place.waiting()) == sorted(before)
        assert broker.slots is not None
        assert broker.slots.take(3) == 2
        broker.closed()

    def test_on_a_queue_of_the_users_own_dramatiqs_thread_looks_at_each_message(self, place: Place) -> None:
        """So a user's middleware that fails on a delayed one ends no thread (dramatiq/worker.py, WorkerThread.run)."""
        broker, work = place.fast_broker(threads=1)
        queue = f"{place.namespace}.own"
        broker.declare_queue(queue)
        broker.enqueue(Message(queue_name=queue, actor_name="own", args=(1,), kwargs={}, options={"eta": 1}))

        (delivery,) = take(broker.consume(queue, timeout=50))

        assert (delivery.args, work.unfinished_tasks) == ((1,), 0)
        broker.closed()

    def test_what_dramatiqs_thread_holds_until_it_is_due_goes_back_with_its_consumer(self, place: Place) -> None:
        """Dramatiq forgets it when the connection breaks (dramatiq/worker.py, ConsumerThread.run)."""
        broker = place.broker()
        queue = f"{place.namespace}.own"
        broker.declare_queue(queue)
        broker.enqueue(Message(queue_name=queue, actor_name="own", args=(1,), kwargs={}, options={}), delay=60_000)
        first = broker.consume(f"{queue}.DQ", prefetch=9, timeout=50)
        take(first)

        first.close()
        (again,) = take(broker.consume(f"{queue}.DQ", prefetch=9, timeout=50))

        assert (again.args, again.redelivered) == ((1,), False)
        broker.closed()

    def test_a_slot_goes_to_another_queue_whose_consumer_waits_for_it(self, place: Place) -> None:
        place.note.send(0)
        place.note.send(1)
        place.note.using(queue="email").send(2)
        broker, work = place.fast_broker(threads=1)
        one, two = (
            broker.consume(name, prefetch=9, timeout=50)
            for name in (place.queue, place.queue.replace("default", "email"))
        )
        assert next(one) is None
        held = work.get_nowait().message
        assert next(two) is None, "it stands in line now"

        one.ack(held)

        assert work.unfinished_tasks == 1
        assert next(two) is None
        assert work.get_nowait().message.args == (2,)
        broker.closed()

    def test_nothing_more_is_taken_once_the_worker_drains(self, place: Place) -> None:
        place.note.send(0)
        place.note.send(1)
        broker, work = place.fast_broker(threads=1)
        consumer = broker.consume(place.queue, timeout=50)
        assert next(consumer) is None
        held = work.get_nowait().message
        broker.draining = True

        consumer.ack(held)

        assert (len(place.waiting()), place.bodies(), place.held()) == (1, 1, 0)
        broker.closed()

    def test_what_an_actor_failed_is_among_dramatiqs_own_dead(self, place: Place) -> None:
        for n in range(2):
            place.note.send(n)
        broker = place.broker(threads=2)
        consumer = broker.consume(place.queue, timeout=50)
        of_a_task, delivery = take(consumer, 2)
        delivery.task_message = None

        consumer.nack(of_a_task)
        consumer.nack(delivery)

        (dead,) = place.client.hgetall(f"{place.key}.XQ.msgs").items()
        assert dead[1] == delivery.body
        assert place.client.zrange(f"{place.key}.XQ", 0, -1) == [dead[0]]
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
        assert not list(place.client.scan_iter(f"{place.namespace}.dramatiq.*"))

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
        assert place.held() == 1
        broker.closed()

    def test_whatever_redis_says_dramatiq_makes_the_consumer_anew_and_what_is_done_is_done_later(
        self, make_redis: Callable[[], PrivateRedis], open_place: Callable[[str], Place]
    ) -> None:
        """Dramatiq's consumer thread ends for good on an error that it doesn't expect while it closes."""
        server = make_redis()
        place = open_place(server.url)
        for n in range(2):
            place.note.send(n)
        broker = place.broker(threads=3)
        consumer: Any = broker.consume(place.queue, timeout=50)
        delivery, other = take(consumer, 2)
        delivery.returns = True
        other.task_message = None

        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ConnectionClosed, match="read only"):
            next(consumer)
        server.kill()
        with pytest.raises(ConnectionClosed):
            next(consumer)
        consumer.ack(delivery)
        consumer.nack(other)
        consumer.close()
        server.start()

        wait_until(lambda: place.held() == 0)
        assert (len(place.waiting()), place.bodies()) == (1, 1)
        assert place.client.zcard(f"{place.key}.XQ") == 1
        broker.closed()

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
        broker = place.broker()
        consumer = broker.consume(place.queue, timeout=50)

        place.client.config_set("maxmemory", 1)
        (delivery,) = take(consumer)
        consumer.ack(delivery)

        assert (place.waiting(), place.bodies()) == ([], 0)

    def test_what_is_returned_to_a_full_redis_is_not_lost(
        self, make_redis: Callable[[], PrivateRedis], open_place: Callable[[str], Place]
    ) -> None:
        place = open_place(make_redis().url)
        place.note.send(1)
        broker = place.broker()
        consumer = broker.consume(place.queue, timeout=50)
        (delivery,) = take(consumer)
        delivery.returns = True

        place.client.config_set("maxmemory", 1)
        consumer.ack(delivery)

        assert (len(place.waiting()), place.bodies()) == (1, 1)


class TestFlushing:
    def test_it_drops_what_waits_whatever_its_priority(self, place: Place) -> None:
        place.note.send(1)
        place.note.using(priority="high").send(2)

        place.bridge.native.flush_all()

        assert sum(place.bridge.counts().waiting.values()) == 0


class TestPlainClients:
    def test_a_worker_that_is_not_ours_is_looked_after_too(self, place: Place) -> None:
        """A stock Dramatiq worker that consumes a queue of ours does not register its queues."""
        place.note.send(1)
        redis_id = place.client.lpop(place.key)
        place.client.sadd(f"{place.namespace}:__acks__.stock.{place.queue}", redis_id)  # type: ignore[arg-type]
        place.client.zadd(f"{place.namespace}:__heartbeats__", {"stock": (time.time() - 65) * 1000})
        broker: LeveledRedisBroker = place.bridge.native

        broker.look_after()

        assert place.waiting() == [redis_id]

    def test_dramatiqs_own_dead_messages_are_forgotten_in_their_time(self, place: Place) -> None:
        week_ms = 7 * 86_400_000
        now_ms = time.time() * 1000
        for name, died_at in (("old", now_ms - week_ms - 1000), ("young", now_ms - week_ms + 60_000)):
            place.client.zadd(f"{place.key}.XQ", {name: died_at})
            place.client.hset(f"{place.key}.XQ.msgs", name, "body")

        place.broker().look_after()

        assert place.client.zrange(f"{place.key}.XQ", 0, -1) == [b"young"]
        assert place.client.hkeys(f"{place.key}.XQ.msgs") == [b"young"]
