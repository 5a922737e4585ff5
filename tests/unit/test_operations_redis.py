"""What `Bridge.operations` asks of a real Redis: a fixed number of commands, whatever is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis

from taskbridge import Bridge
from taskbridge.cli.operations import _screen
from taskbridge.message import new_id
from taskbridge.stores.backend import Listed
from taskbridge.stores.redis import backend as redis_backend
from tests.servers import PrivateRedis

LONGEST_S = 60.0


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    made = Bridge(f"celery+{redis_server.url}", namespace=f"ns-{new_id()[:8]}", listing=True)
    made.task(name="shop.pay")(lambda: None)
    yield made
    made.close()


def calls(server: PrivateRedis, act: Callable[[], object]) -> dict[str, int]:
    """Return how often each command was called by an act."""
    with redis.Redis.from_url(server.url) as client:
        client.config_resetstat()
        act()
        found = client.info("commandstats")
    own = {"cmdstat_info", "cmdstat_time", "cmdstat_config|resetstat", "cmdstat_hello", "cmdstat_select"}
    return {name: each["calls"] for name, each in found.items() if name not in own and "setinfo" not in name}


def until_listed(bridge: Bridge, count: int) -> None:
    """Return when so many messages are listed, which nobody waits for."""
    assert bridge.store is not None
    deadline = time.monotonic() + LONGEST_S
    while True:
        [found] = bridge.store.backend.listed("state", ["queued"], before=(float("inf"), ""), most=count, timeout_s=10)
        if len(found) == count:
            return
        assert time.monotonic() < deadline, len(found)
        time.sleep(0.02)


def test_each_page_takes_a_fixed_number_of_commands(bridge: Bridge, redis_server: PrivateRedis) -> None:
    operations, pay = bridge.operations, bridge.named("shop.pay")

    def look() -> None:
        bridge.now()
        page = operations.messages(most=50)
        operations.messages(most=50, cursor=page.cursor)
        operations.messages(most=50, state="queued", task="shop.*")
        for ask in (operations.queues, operations.rates, operations.running, operations.failures, operations.workers):
            ask()
        operations.alarms()

    bridge.send_many([pay.call() for _ in range(200)])
    until_listed(bridge, 200)
    look()
    few = calls(redis_server, look)
    bridge.send_many([pay.call() for _ in range(20_000)])
    until_listed(bridge, 20_200)
    many = calls(redis_server, look)
    assert few == many
    assert 0 < sum(few.values()) < 120, few


def test_a_screen_of_top_reads_what_workers_do_once(bridge: Bridge, redis_server: PrivateRedis) -> None:
    operations = bridge.operations

    def look() -> None:
        operations.queues()
        bridge.schedules.list()
        bridge.paused()  # for the alarms about tasks
        bridge.flows.counts()

    _screen(bridge, 80, 24)
    assert calls(redis_server, lambda: _screen(bridge, 80, 24)) == calls(redis_server, look)


def test_a_queue_knows_its_oldest_message_behind_a_longer_one(redis_server: PrivateRedis) -> None:
    bridge = Bridge(f"celery+{redis_server.url}", namespace=f"ns-{new_id()[:8]}", listing=True, queues=["vip", "bulk"])
    bridge.task(name="shop.pay")(lambda: None)
    pay = bridge.named("shop.pay")
    bridge.send_many([pay.using(queue="bulk").call() for _ in range(500)])
    pay.using(queue="vip").send()
    until_listed(bridge, 501)
    oldest = {each.name: each.oldest_s for each in bridge.operations.queues()}
    assert oldest["default"] is None
    assert oldest["vip"] is not None
    assert oldest["bulk"] is not None
    assert 0 <= oldest["vip"] <= oldest["bulk"] < LONGEST_S
    bridge.close()


def test_lists_are_bounded(bridge: Bridge, redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though at every hundredth message it is the turn of the same one."""
    monkeypatch.setattr(redis_backend, "LISTED", 50)
    assert bridge.store is not None
    for number in range(500):
        listed = Listed(f"{number:03}", "queued", float(number), "default")
        if number % 2:
            listed = Listed(f"{number:03}", "done", float(number))
        bridge.store.backend.list_soon([listed])
    with redis.Redis.from_url(redis_server.url) as client:
        lists = "state:queued", "state:done", "queue:default"
        queued, done, queue = (f"{bridge.settings.namespace}:listing:{each}" for each in lists)
        deadline = time.monotonic() + LONGEST_S
        while (found := client.zrange(done, 0, -1))[-1:] != [b"499"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        assert len(found) <= 100
        assert client.zcard(queued) <= 100
        assert client.zrange(queue, 0, 0) == [b"000"]  # the oldest is what a queue is asked for
        assert client.zcard(queue) <= 100


def test_processes_that_list_few_messages_shorten_lists_too(
    redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_backend, "randrange", lambda most: most - 1)  # which one in a hundred draws
    bridge = Bridge(f"celery+{redis_server.url}", listing=True)
    assert bridge.store is not None
    commands = bridge.store.backend.listing([Listed("1", "done", 1.0)])
    assert [command[0] for command in commands] == ["ZADD", "ZREMRANGEBYRANK"]
    bridge.close()


def test_what_the_lists_say_wrongly_is_not_shown_and_taken_out(bridge: Bridge) -> None:
    assert bridge.store is not None
    backend, pay = bridge.store.backend, bridge.named("shop.pay")
    handle = pay.send()
    until_listed(bridge, 1)
    long_ago, now = time.time() - 120, time.time()
    backend.list_soon(
        [
            Listed(handle.id, "dead", long_ago),
            Listed("gone", "done", long_ago),
            Listed("coming", "done", now),
            Listed("gone", "queued", long_ago, "default"),
        ]
    )
    deadline = time.monotonic() + LONGEST_S
    while sum(map(len, backend.listed("state", ["dead", "done"], before=(float("inf"), ""), most=9, timeout_s=5))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [each.id for each in bridge.operations.messages().items] == [handle.id]
    assert bridge.operations.messages(state="dead").items == ()
    assert bridge.operations.queues()[0].oldest_s is not None
    while True:
        dead, done = backend.listed("state", ["dead", "done"], before=(float("inf"), ""), most=9, timeout_s=5)
        [waiting] = backend.listed("queue", ["default"], before=(float("inf"), ""), most=9, timeout_s=5)
        if ([key for key, _ in dead + done], [key for key, _ in waiting]) == (["coming"], [handle.id]):
            break
        assert time.monotonic() < deadline, (dead, done, waiting)
        time.sleep(0.02)


def test_pages_follow_one_another_through_filters(bridge: Bridge) -> None:
    bridge.task(name="shop.rare")(lambda: None)
    pay, rare = bridge.named("shop.pay"), bridge.named("shop.rare")
    bridge.send_many([rare.call(), *(pay.call() for _ in range(1500)), rare.call()])
    until_listed(bridge, 1502)
    found, cursor, pages = list[str](), "", 0
    while pages == 0 or cursor:
        page = bridge.operations.messages(task="*.rare", cursor=cursor, most=10)
        found += [each.task for each in page.items]
        cursor, pages = page.cursor, pages + 1
    assert found == ["shop.rare"] * 2
    assert 1 < pages < 10
    for odd in ("x y", "nan x", "-inf x", "1e999 x"):
        with pytest.raises(ValueError, match="cursor"):
            bridge.operations.messages(cursor=odd)
    with pytest.raises(ValueError, match="after must be"):
        bridge.dead.list(after="1e999:x")


def test_what_somebody_else_has_put_in_a_list_is_left_out(bridge: Bridge, redis_server: PrivateRedis) -> None:
    odd = {b"\xff": 1.0, b"": 2.0, b"a\0": 3.0, b"i": "inf"}
    with redis.Redis.from_url(redis_server.url) as client:
        for each in ("state:done", "queue:default"):
            client.zadd(f"{bridge.settings.namespace}:listing:{each}", odd)
    assert bridge.operations.messages().items == ()
    assert bridge.operations.queues()[0].oldest_s is None
