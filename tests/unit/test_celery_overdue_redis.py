"""A Celery worker's loop on Redis, after it has given up a connection on which no answer came, or lost it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from time import monotonic
from typing import Any

import pytest

pytest.importorskip("celery")

from kombu.asynchronous import Hub

from taskbridge import Bridge
from taskbridge.contract.servers import PrivateRedis

PATIENCE_S = 10.0


def _do_nothing() -> None:
    """Do nothing."""


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    with closing(Bridge(f"celery+{redis_server.url}", namespace=f"overdue-{os.urandom(4).hex()}")) as bridge:
        yield bridge


@pytest.fixture
def hub() -> Iterator[Any]:
    make: Any = Hub  # untyped
    with closing(make()) as hub:
        yield hub


def test_a_loop_polls_the_next_connection(bridge: Bridge, hub: Any) -> None:
    task = bridge.task(name="nothing")(_do_nothing)
    received: list[Any] = []
    with bridge.native.connection_for_read() as connection:
        connection.register_with_event_loop(hub)
        channel = connection.default_channel
        queue = bridge.native.amqp.queues["default"]
        queue(channel).consume(callback=received.append)
        loop = hub.create_loop()
        while not channel._waits_since:
            next(loop)
        lost = channel._in_poll

        channel._stop_waiting()
        channel._brpop_sent_at = monotonic() - 60
        channel.look_after()
        task.send()
        deadline = monotonic() + PATIENCE_S
        while not received and monotonic() < deadline:
            hub.call_later(0.05, _do_nothing)  # so that the loop waits no longer than that
            next(loop)

        assert len(received) == 1
        assert lost._sock is not None, "it is connected anew"
        received[0].ack()


def test_what_is_left_in_the_loop_of_a_lost_connection_acknowledges_nothing(
    bridge: Bridge, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come first, and leave the script that takes the next message nothing to acknowledge."""
    flushed: list[bool] = []
    for _ in range(2):
        with bridge.native.connection_for_read() as connection:
            connection.register_with_event_loop(hub)
            bridge.native.amqp.queues["default"](connection.default_channel).consume(callback=_do_nothing)
    leases = bridge.native.engine.leases
    monkeypatch.setattr(leases, "flush", lambda: flushed.append(True))

    leases.end_soon("a tag")
    for tick in set(hub.on_tick):
        tick()

    assert flushed == []
