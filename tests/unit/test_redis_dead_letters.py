"""Dead letters on Redis move in one step, whoever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import redis

from taskbridge import Bridge, DeadLetter
from taskbridge.message import loads, new_id
from tests.servers import PrivateRedis
from tests.unit.dead_letter_tests import bury, killed_replays, letter


@pytest.fixture
def client(redis_server: PrivateRedis) -> Iterator[Any]:
    with closing(redis.Redis.from_url(redis_server.url)) as connected:
        yield connected


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    with closing(Bridge(f"celery+{redis_server.url}", namespace=f"dead{new_id()[:8]}", queues=["email"])) as made:
        yield made


def _parked(client: Any, bridge: Bridge) -> list[str]:
    texts = client.hvals(f"{bridge.settings.namespace}:parked:celery:messages")
    return [loads(text).id for text in texts]


def test_a_killed_replayer_leaves_each_letter_dead_or_queued(
    bridge: Bridge, client: Any, redis_server: PrivateRedis
) -> None:
    ids = bury(bridge)
    seen = killed_replays(
        f"celery+{redis_server.url}",
        bridge.settings.namespace,
        ids,
        lambda: [each.decode() for each in client.zrange(f"{bridge.settings.namespace}:dead", 0, -1)],
        lambda: _parked(client, bridge),
    )
    assert seen.dead[-1] == 0
    assert seen.interrupted >= 1, f"no kill met a replayer at work: {seen}"


def test_a_letter_that_was_buried_anew_meanwhile_is_left_alone(bridge: Bridge, client: Any) -> None:
    [letter_id] = bury(bridge, 1)
    decided: list[str] = []

    def decide(found: DeadLetter) -> Any:
        from taskbridge.brokers.base import Taken

        decided.append(found.reason)
        bridge.broker.bury(letter(letter_id, reason="gave_up"), timeout_s=5)
        return Taken(message=found.message)

    assert bridge.broker.take_dead(decide, timeout_s=5) == []
    assert decided == ["exhausted"]
    assert [each.reason for each in bridge.dead_letters()] == ["gave_up"]
    assert _parked(client, bridge) == []


def test_a_letter_of_a_newer_release_can_be_purged_and_not_replayed(bridge: Bridge, client: Any) -> None:
    [letter_id] = bury(bridge, 1)
    key = f"{bridge.settings.namespace}:dead:letters"
    client.hset(key, letter_id, client.hget(key, letter_id).replace(b'"form":1', b'"form":999'))
    [entry] = bridge.dead.list().entries
    assert entry.reason == "undecodable"
    assert bridge.dead.get(entry.id).raw == entry.raw
    assert bridge.dead.replay(entry.id).unreadable == (entry.id,)
    assert bridge.dead.purge(entry.id) == (entry.id,)
    assert bridge.dead.list().entries == ()
    assert bridge.counts().dead == 0


def test_a_full_server_still_lets_dead_letters_be_purged_and_replayed(make_redis: Any) -> None:
    server = make_redis()
    with (
        closing(Bridge(f"celery+{server.url}", namespace="full")) as bridge,
        closing(redis.Redis.from_url(server.url)) as client,
    ):
        ids = bury(bridge, 3)
        client.config_set("maxmemory", 1)
        assert bridge.dead.replay(ids[0]).ids == (ids[0],)
        assert bridge.dead.purge(ids[1]) == (ids[1],)
        assert [each.id for each in bridge.dead_letters()] == [ids[2]]
        assert _parked(client, bridge) == [ids[0]]


def test_pages_follow_one_another_where_many_letters_died_in_one_millisecond(bridge: Bridge) -> None:
    ids = [f"letter-{number:03}" for number in range(65)]
    for number, each in enumerate(reversed(ids)):  # by when they died, and not by their ids
        bridge.broker.bury(
            replace(letter(each), died_at=1e9 * 4 + number // 30 * 1e-3 + number % 30 * 1e-5), timeout_s=20
        )
    wanted = [each.id for each in sorted(bridge.dead_letters(), key=lambda each: (each.died_at, each.id))]

    found, after = list[str](), None
    while True:
        page = bridge.dead.list(limit=7, after=after)
        found += [each.id for each in page.entries]
        after = page.next
        if after is None:
            break

    assert found == wanted == ids[::-1]


def test_a_page_reads_as_much_whatever_is_stored(bridge: Bridge, client: Any) -> None:
    def cost() -> int:
        before = client.info("stats")["total_commands_processed"]
        assert len(bridge.dead.list(limit=30).entries) == 30
        return int(client.info("stats")["total_commands_processed"] - before - 1)  # what it is asked with

    bury(bridge, 50)
    few = cost()
    bury(bridge, 500)

    assert cost() == few
