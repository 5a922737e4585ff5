"""A Celery worker's loop on Redis: it is told of messages, also after its connections were lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from time import monotonic
from typing import Any

import pytest
import redis

pytest.importorskip("celery")

from kombu.asynchronous import Hub

from taskbridge import Bridge
from tests.servers import PrivateRedis

PATIENCE_S = 60.0


def _do_nothing(*_: object) -> None:
    """Do nothing."""


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    with closing(
        Bridge(f"celery+{redis_server.url}", namespace=f"overdue-{os.urandom(4).hex()}", send_timeout=60)
    ) as bridge:
        yield bridge


@pytest.fixture
def hub() -> Iterator[Any]:
    make: Any = Hub  # untyped
    with closing(make()) as hub:
        yield hub


class Consumer:
    """A loop that consumes a queue."""

    def __init__(self, bridge: Bridge, hub: Any) -> None:
        self.received: list[Any] = []
        self.connection = bridge.native.connection_for_read()
        self.connection.register_with_event_loop(hub)
        self.watch = self.connection.transport.watch
        bridge.native.amqp.queues["default"](self.connection.default_channel).consume(callback=self._receive)
        self._loop = hub.create_loop()

    def _receive(self, message: Any) -> None:
        self.received.append(message)

    def run_until(self, condition: Any) -> None:
        deadline = monotonic() + PATIENCE_S
        while not condition():
            assert monotonic() < deadline
            next(self._loop)

    def is_told(self) -> bool:
        return self.watch._link is not None and self.connection.default_channel._empty_at is not None


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_message_ends_the_loops_sleep(bridge: Bridge, hub: Any, redis_server: PrivateRedis, is_lost: bool) -> None:
    task = bridge.task(name="nothing")(_do_nothing)
    consumer = Consumer(bridge, hub)
    consumer.run_until(consumer.is_told)
    if is_lost:
        lost = consumer.watch._link
        with redis.Redis.from_url(redis_server.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        consumer.run_until(lambda: consumer.watch._link not in (lost, None) and consumer.is_told())

    hub.call_later(60, _do_nothing)
    task.send()
    consumer.run_until(lambda: consumer.received)

    assert len(consumer.received) == 1
    consumer.received[0].ack()
    consumer.connection.close()


def test_what_a_slot_acknowledges_the_loop_carries_out_when_it_is_told(bridge: Bridge, hub: Any) -> None:
    task = bridge.task(name="nothing")(_do_nothing)
    consumer = Consumer(bridge, hub)
    task.send()
    consumer.run_until(lambda: consumer.received)
    (message,) = consumer.received
    engine = bridge.native.engine
    woken: list[bool] = []
    engine.wake = lambda: woken.append(True)

    slot = threading.Thread(target=message.ack)
    slot.start()
    slot.join()
    assert (len(engine.queues._settled), woken) == (1, []), "several are carried out together"

    message.channel.writer()
    assert woken
    next(consumer._loop)
    assert (len(engine.queues._settled), engine.queues._renew(0)[1]) == (0, []), "Redis holds nothing for this worker"
    consumer.connection.close()


def test_what_is_left_in_the_loop_of_a_closed_connection_acknowledges_nothing(
    bridge: Bridge, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come first, and leave the script that takes the next message nothing to acknowledge."""
    flushed: list[bool] = []
    Consumer(bridge, hub).connection.close()
    leases = bridge.native.engine.queues
    monkeypatch.setattr(leases, "flush", lambda: flushed.append(True))

    leases.end_soon("a tag")
    for tick in set(hub.on_tick):
        tick()

    assert flushed == []
