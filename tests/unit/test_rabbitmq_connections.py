"""How many connections to RabbitMQ a worker process has when it has nothing to do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest

from taskbridge import Bridge
from taskbridge.brokers.rabbitmq.channel import Channel
from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.pool import Pool
from tests.servers import PrivateRabbitMQ
from tests.unit import dramatiq_shop
from tests.unit.test_celery_workers_redis_rabbitmq import Shop as CeleryShop
from tests.unit.test_rabbitmq_broker import PATIENCE_S, own_ports

MOST = 8
TASKS = 40


@contextmanager
def _celery(server: PrivateRabbitMQ, folder: Path) -> Generator[tuple[int, Bridge, Callable[[int], Any]]]:
    with closing(CeleryShop(f"celery+{server.url}", folder)) as shop:
        worker = shop.worker("threads")
        shop.until(lambda: shop.notes("worker_started"), "the worker")
        yield worker.pid, shop.bridge, lambda number: shop.send("fails")


@contextmanager
def _dramatiq(server: PrivateRabbitMQ, folder: Path) -> Generator[tuple[int, Bridge, Callable[[int], Any]]]:
    shop = dramatiq_shop.Shop.at(f"dramatiq+{server.url}", folder)
    with closing(shop.bridge), shop.worker(threads=8) as worker:
        yield worker.pid, shop.bridge, lambda number: shop.fails.send("ValueError")


def _processes(leader: int) -> list[int]:
    """Return the processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=", "-s", str(leader)], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split() if Path(f"/proc/{word}/fd").exists()]


@pytest.mark.parametrize("engine", [_celery, _dramatiq], ids=["celery", "dramatiq"])
def test_a_worker_at_rest_has_few_connections(
    rabbitmq_server: PrivateRabbitMQ, tmp_path: Path, engine: Callable[..., Any]
) -> None:
    with engine(rabbitmq_server, tmp_path) as (leader, bridge, send):
        for number in range(TASKS):  # each is parked twice, and buried: from all threads at once
            send(number)
        deadline = time.monotonic() + 3 * PATIENCE_S
        while bridge.counts().dead < TASKS:
            assert time.monotonic() < deadline, bridge.counts()
            time.sleep(0.1)

        counted = {0: 0}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            counted = {pid: len(own_ports(rabbitmq_server.port, pid)) for pid in _processes(leader)}
            if 0 < max(counted.values()) <= MOST:
                break
            time.sleep(0.2)

    assert 0 < max(counted.values()) <= MOST, counted
    assert os.getpid() not in counted


def test_a_call_without_an_answer_gives_idle_connections_up_too(rabbitmq_server: PrivateRabbitMQ) -> None:
    pool, deadline = Pool(Hosts([pika.URLParameters(rabbitmq_server.url)])), Deadline(PATIENCE_S)

    def use_two() -> list[Connection]:
        return pool.use(lambda one: [one.connection, pool.use(lambda two: two.connection, deadline)], deadline)

    def fail(channel: Channel) -> None:
        raise TimedOutError("no answer")

    with closing(pool):
        before = use_two()
        assert len(set(before)) == 2
        with pytest.raises(TimedOutError):
            pool.use(fail, deadline)
        assert [each.problem for each in before] == ["no answer"] * 2
        assert not {*before} & {*use_two()}


def test_a_channel_of_a_connection_that_is_lost_as_it_is_opened_is_refused(
    rabbitmq_server: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Hosts([pika.URLParameters(rabbitmq_server.url)]).connect(Deadline(PATIENCE_S))

    class Losing:
        """The lock of those who send, which another thread has, whose send fails."""

        def __enter__(self) -> None:
            connection.lose("it was cut")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(connection, "_sending", Losing())
    with pytest.raises(ClientError, match="it was cut"):
        Channel(connection)
