"""Dramatiq's own worker on Redis: what it runs, what it survives, and what it never loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from taskbridge.message import new_id
from tests.servers import PrivateRedis
from tests.unit.dramatiq_shop import Shop
from tests.unit.dramatiq_worker_tests import WorkerTests


class TestWorkersOnRedis(WorkerTests):
    @pytest.fixture
    def shop(self, redis_server: PrivateRedis, tmp_path: Path) -> Iterator[Shop]:
        shop = Shop.at(f"dramatiq+{redis_server.url}", tmp_path)
        yield shop
        shop.bridge.close()

    def put(self, shop: Shop, body: bytes) -> None:
        key, redis_id = f"{shop.environ['SHOP_NAMESPACE']}:{shop.native_queue()}", new_id()
        with redis.Redis.from_url(shop.bridge.settings.url.broker_url) as client:
            client.hset(f"{key}.msgs", redis_id, body)
            client.rpush(key, redis_id)

    def test_nothing_is_left_in_redis_but_dead_messages(self, shop: Shop) -> None:
        shop.note.using(priority="high").send(1)
        shop.flaky.send()
        with shop.worker() as worker:
            shop.wait(lambda: len(shop.records("note", "flaky")) == 4)
            shop.idle()
            worker.terminate()
            worker.wait(60)

        with redis.Redis.from_url(shop.bridge.settings.url.broker_url) as client:
            native = [
                key
                for key in client.scan_iter(f"{shop.environ['SHOP_NAMESPACE']}:*")
                if (b"__" in key or b"dramatiq" in key) and b":sign:busy." not in key  # which passes by itself
            ]
        assert native == []


def test_a_worker_outlives_a_full_redis(make_redis: type[PrivateRedis], tmp_path: Path) -> None:
    """With Dramatiq's own broker, one such reply ends the consumer of delayed messages for good."""
    server = make_redis()
    shop = Shop.at(f"dramatiq+{server.url}", tmp_path)
    ordinary = shop.bridge.native
    ordinary.declare_queue(shop.own)
    with redis.Redis.from_url(server.url) as client, shop.worker():
        shop.lasts.send("through", 3)
        shop.bridge.native.get_actor("note").send_with_options(args=("delayed",), delay=1500)
        shop.wait(lambda: shop.records("lasts"))
        client.config_set("maxmemory", 1)
        shop.wait(lambda: shop.records("lasted"))
        client.config_set("maxmemory", 0)
        shop.note.send("after")
        shop.bridge.native.get_actor("note").send_with_options(args=("delayed after",), delay=100)
        shop.wait(lambda: len(shop.records("note")) == 3)
        shop.idle()

    assert sorted(data[0] for data in shop.data("note")) == ["after", "delayed", "delayed after"]
    assert [data[:2] for data in shop.data("lasts")] == [["through", 1]]
    shop.bridge.close()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_worker_runs_tasks_where_redis_can_not_wait_for_them(
    make_redis: Callable[..., PrivateRedis], tmp_path: Path, is_there: bool
) -> None:
    """Before 6.2 there was no BLMOVE, and a user may not be permitted to use it."""
    server = make_redis(extra_args=() if is_there else ("--rename-command", "BLMOVE", ""))
    if is_there:
        server.command("ACL", "SETUSER", "default", "-blmove")
    shop = Shop.at(f"dramatiq+{server.url}", tmp_path)
    with shop.worker():
        shop.note.send("first")
        shop.wait(lambda: shop.records("note"))
        shop.note.send("second")
        shop.wait(lambda: len(shop.records("note")) == 2)

    assert [data[0] for data in shop.data("note")] == ["first", "second"]
    shop.bridge.close()
