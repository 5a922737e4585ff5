"""Leases on Redis: at no instant is a message in nobody's hands (rule A8)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import redis

from taskbridge.contract.servers import PrivateRedis
from taskbridge.engines.celery.leases import Leases, step_of
from taskbridge.engines.celery.wire import RedisWire
from taskbridge.message import Message, new_id
from taskbridge.settings import Settings, load


@pytest.fixture
def settings(redis_server: PrivateRedis) -> Settings:
    given = {"url": f"celery+{redis_server.url}", "namespace": f"t{time.time_ns()}", "lease": 0.3}
    return load(given, environ={})[0]


@pytest.fixture
def client(redis_server: PrivateRedis) -> Iterator[Any]:
    with redis.Redis.from_url(redis_server.url) as made:
        yield made


@pytest.fixture
def buried() -> list[tuple[str, bytes]]:
    return []


@pytest.fixture
def leases(settings: Settings, buried: list[tuple[str, bytes]]) -> Iterator[Leases]:
    made = Leases(settings, lambda tag, raw, error: buried.append((tag, raw)))
    yield made
    made.stop()


def put(client: Any, settings: Settings, priority: Any = "normal", queue: str = "q") -> str:
    sent = Message(
        id=new_id(), task="t", queue=queue, args_json="[]", kwargs_json="{}", enqueued_at=1.0, priority=priority
    )
    [command] = RedisWire(settings).encode(sent)
    client.execute_command(*command)
    return sent.id


Found = tuple[str, dict[str, Any]]


def take_many(leases: Leases, *queues: str, most: int) -> list[Found]:
    prefix = leases.unacked_key.removesuffix("unacked")
    found = leases.take([f"{prefix}{queue}" for queue in queues], most)
    return [(tag, json.loads(item)) for tag, _, item in found]


def take(leases: Leases) -> Found:
    [taken] = take_many(leases, "q", most=1)
    return taken


def ids(taken: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    return [payload["headers"]["id"] for _, payload in taken]


class TestTakingMany:
    """One script takes as many messages as there are slots for."""

    def test_it_takes_no_more_than_it_was_asked_for_and_all_of_it_is_on_lease(
        self, client: Any, settings: Settings, leases: Leases
    ) -> None:
        sent = [put(client, settings) for _ in range(5)]

        taken = take_many(leases, "q", most=3)

        assert ids(taken) == sent[:3]
        assert {tag.encode() for tag, _ in taken} == set(client.hkeys(leases.unacked_key))
        assert set(client.zrange(leases.index_key, 0, -1)) == set(client.hkeys(leases.unacked_key))
        assert client.llen(RedisWire(settings).places("q")[2]) == 2

    def test_what_it_takes_goes_back_to_its_own_queue(self, client: Any, settings: Settings, leases: Leases) -> None:
        put(client, settings, queue="a", priority="high")
        put(client, settings, queue="b")
        take_many(leases, "a", "b", most=2)

        leases.stop()

        wire = RedisWire(settings)
        assert [client.llen(place) for queue in ("a", "b") for place in wire.places(queue)] == [0, 1, 0, 0, 0, 0, 1, 0]

    def test_higher_priorities_come_first_whatever_their_queue(
        self, client: Any, settings: Settings, leases: Leases
    ) -> None:
        low = put(client, settings, "low", queue="a")
        normal = put(client, settings, "normal", queue="b")
        critical = put(client, settings, "critical", queue="c")

        assert ids(take_many(leases, "a", "b", "c", most=3)) == [critical, normal, low]

    def test_queues_have_their_turn_within_a_script_and_from_one_to_the_next(
        self, client: Any, settings: Settings, leases: Leases
    ) -> None:
        sent = {queue: [put(client, settings, queue=queue) for _ in range(4)] for queue in "abc"}
        a, b, c = sent["a"], sent["b"], sent["c"]

        assert ids(take_many(leases, *"abc", most=4)) == [a[0], b[0], c[0], a[1]]
        assert ids(take_many(leases, *"abc", most=4)) == [b[1], c[1], a[2], b[2]]

    def test_without_queues_it_takes_nothing_and_ends(self, client: Any, leases: Leases) -> None:
        """So it is for a moment as a worker stops."""
        assert take_many(leases, most=3) == []

    @pytest.mark.parametrize("queues", [1, 15, 16, 17, 40])
    def test_none_of_many_queues_is_passed_over(
        self, client: Any, settings: Settings, leases: Leases, queues: int
    ) -> None:
        names = [f"q{number}" for number in range(queues)]
        sent = {put(client, settings, queue=name) for name in names}

        taken = take_many(leases, *names, most=queues + 1)

        assert set(ids(taken)) == sent


def test_a_taken_message_is_on_lease_the_moment_it_leaves_its_list(
    client: Any, settings: Settings, leases: Leases
) -> None:
    put(client, settings)
    take(leases)
    assert client.hlen(leases.unacked_key) == client.zcard(leases.index_key) == 1


def test_what_nobody_renews_goes_back_first_and_marked_and_what_is_renewed_stays(
    client: Any, settings: Settings, leases: Leases
) -> None:
    lost, waiting = put(client, settings), put(client, settings)
    dead = Leases(settings, lambda *_: None)  # a worker that was killed: it renews nothing
    assert take(dead) is not None
    time.sleep(0.4)
    leases.look_after()
    again = take(leases)
    assert again[1]["headers"]["id"] == lost
    assert again[1]["properties"]["delivery_info"]["redelivered"] is True
    for _ in range(5):
        time.sleep(0.15)
        leases.look_after()
    other = take(leases)
    assert other[1]["headers"]["id"] == waiting
    leases.end(again[0])
    leases.end(other[0])
    assert client.exists(leases.unacked_key, leases.index_key) == 0


def test_after_a_time_without_redis_others_have_a_lease_to_show_that_they_live(
    client: Any, settings: Settings, leases: Leases
) -> None:
    for _ in range(2):
        put(client, settings)
    alive, dead = Leases(settings, lambda *_: None), Leases(settings, lambda *_: None)
    lives, _ = take(alive), take(dead)
    leases.look_after()
    time.sleep(0.4)  # nobody could renew anything, for longer than the lease

    leases.look_after()  # this one is the first to reach Redis again

    assert client.hlen(leases.unacked_key) == 2
    deadline = time.monotonic() + 10
    while client.hlen(leases.unacked_key) == 2:
        assert time.monotonic() < deadline
        alive.look_after()
        leases.look_after()
        time.sleep(0.05)
    assert client.hkeys(leases.unacked_key) == [lives[0].encode()]


def test_a_message_given_back_is_the_next_one_of_its_priority(client: Any, settings: Settings, leases: Leases) -> None:
    first = put(client, settings, "low")
    put(client, settings, "low")
    taken = take(leases)
    leases.give_back(taken[0])
    again = take(leases)
    assert again[1]["headers"]["id"] == first


def test_what_cannot_be_read_is_buried_once_by_whoever_finds_it(
    client: Any, settings: Settings, leases: Leases, buried: list[tuple[str, bytes]]
) -> None:
    client.lpush(RedisWire(settings).places("q")[0], b'}{ ,"","')
    dead = Leases(settings, lambda *_: None)
    dead.take([dead.unacked_key.removesuffix("unacked") + "q"], 1)
    time.sleep(0.4)
    leases.look_after()
    leases.look_after()
    assert [raw for _, raw in buried] == [b'}{ ,"","']


@pytest.mark.parametrize(
    ("priority", "step"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (9, 9), (99, 9), (-1, 0), (None, 0)]
)
def test_steps_are_kombus(priority: int | None, step: int) -> None:
    assert step_of(priority) == step


def test_a_full_redis_lets_a_worker_take_and_keep_what_will_empty_it(make_redis: Any) -> None:
    server: PrivateRedis = make_redis()
    settings = load({"url": f"celery+{server.url}", "lease": 0.3}, environ={})[0]
    leases = Leases(settings, lambda *_: None)
    client: Any = redis.Redis.from_url(server.url)
    put(client, settings)
    client.config_set("maxmemory", 1)

    taken = take(leases)

    before = client.zscore(leases.index_key, taken[0])
    time.sleep(0.05)
    leases.look_after()
    assert client.zscore(leases.index_key, taken[0]) > before
    leases.end(taken[0])
    assert client.hlen(leases.unacked_key) == 0
    leases.stop()


def test_an_acknowledgement_outlives_an_outage(make_redis: Any) -> None:
    server: PrivateRedis = make_redis()
    settings = load({"url": f"celery+{server.url}", "send_timeout": 1}, environ={})[0]
    leases = Leases(settings, lambda *_: None)
    client: Any = redis.Redis.from_url(server.url)
    put(client, settings)
    taken = take(leases)
    server.shut_down()
    leases.end(taken[0])  # waits in line, and does not raise
    server.start()
    leases.look_after()
    assert client.hlen(leases.unacked_key) == 0
    leases.stop()


class TestEndingSoon:
    """What is done with is acknowledged by the script that takes the next message, or by a flush."""

    def test_the_script_that_takes_a_message_ends_others(self, client: Any, settings: Settings, leases: Leases) -> None:
        put(client, settings)
        put(client, settings)
        first = take(leases)
        leases.end_soon(first[0])
        assert client.hlen(leases.unacked_key) == 1, "nothing is sent for it alone"

        tag, _ = take(leases)

        assert client.hkeys(leases.unacked_key) == client.zrange(leases.index_key, 0, -1) == [tag.encode()]

    def test_a_flush_ends_them_and_so_does_the_end_of_the_worker(
        self, client: Any, settings: Settings, leases: Leases
    ) -> None:
        for act in (leases.flush, leases.stop):
            put(client, settings)
            taken = take(leases)
            leases.end_soon(taken[0])

            act()

            assert client.hlen(leases.unacked_key) == client.zcard(leases.index_key) == 0
            assert not any(client.llen(place) for place in RedisWire(settings).places("q")), "it is not given back"
