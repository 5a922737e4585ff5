"""Dead letters on RabbitMQ move in one transaction, whoever is killed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pika
import pytest

from taskbridge import Bridge, BrokerUnavailable
from taskbridge.brokers.rabbitmq.connection import Deadline
from taskbridge.brokers.rabbitmq.dead_letter_queue import reading
from taskbridge.message import loads, new_id
from tests.servers import PrivateRabbitMQ
from tests.unit.dead_letter_tests import PATIENCE_S, bury, killed_replays, letter


@pytest.fixture
def bridge(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Bridge]:
    url, namespace = f"celery+{rabbitmq_server.url}", f"dead{new_id()[:8]}"
    with closing(Bridge(url, namespace=namespace, queues=["email"], send_timeout=PATIENCE_S)) as made:
        yield made


def _due(bridge: Bridge) -> list[str]:
    """Return the ids of what is due, and leave it there."""
    broker: Any = bridge.broker
    queue = f"{bridge.settings.namespace}.due.celery"
    with reading(broker._hosts, queue, "classic", Deadline(PATIENCE_S)) as (_, deliveries):
        return [loads(each.body).id for each in deliveries]


def _dead(bridge: Bridge) -> list[str]:
    return [each.id for each in bridge.dead_letters()]


def test_a_killed_replayer_leaves_each_letter_dead_or_queued(bridge: Bridge, rabbitmq_server: PrivateRabbitMQ) -> None:
    ids = bury(bridge)
    seen = killed_replays(
        f"celery+{rabbitmq_server.url}", bridge.settings.namespace, ids, lambda: _dead(bridge), lambda: _due(bridge)
    )
    assert seen.dead[-1] == 0
    assert seen.interrupted >= 1, f"no kill met a replayer at work: {seen}"


def test_copies_of_a_letter_are_replayed_once(bridge: Bridge) -> None:
    [copied, other] = bury(bridge, 2)
    bridge.broker.bury(letter(copied), timeout_s=PATIENCE_S)
    assert bridge.dead.replay(copied).ids == (copied,)
    assert _due(bridge) == [copied]
    assert _dead(bridge) == [other]


def test_what_is_not_replayed_keeps_its_place(bridge: Bridge) -> None:
    ids = bury(bridge, 6)
    bridge.dead.replay(ids[1:6:2])
    assert _dead(bridge) == ids[0:6:2]
    assert _due(bridge) == ids[1:6:2]


def test_a_letter_of_a_newer_release_can_be_purged_and_not_replayed(
    bridge: Bridge, rabbitmq_server: PrivateRabbitMQ
) -> None:
    body = letter(new_id()).dumps().replace('"form":1', '"form":999').encode()
    bury(bridge, 1)
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", f"{bridge.settings.namespace}.dead", body)
    [entry] = bridge.dead.list(reason="undecodable").entries
    assert (entry.raw, entry.died_at) == (body, None)
    assert bridge.dead.replay(entry.id).unreadable == (entry.id,)
    assert bridge.dead.purge(entry.id) == (entry.id,)
    assert bridge.counts().dead == 1


def test_a_replay_waits_for_another_reader_no_longer_than_it_may(
    bridge: Bridge, rabbitmq_server: PrivateRabbitMQ
) -> None:
    url, namespace = f"celery+{rabbitmq_server.url}", bridge.settings.namespace
    [letter_id] = bury(bridge, 1)
    with (
        closing(Bridge(url, namespace=namespace, send_timeout=4)) as hasty,
        closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url))) as connection,
    ):
        connection.channel().basic_consume(f"{namespace}.dead", lambda *_: None, exclusive=True)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="others are reading"):
            hasty.dead.replay(letter_id)
        assert time.monotonic() - began < 8
    assert bridge.dead.replay(letter_id).ids == (letter_id,)


def test_two_replayers_at_once_replay_each_letter_once(bridge: Bridge) -> None:
    ids = bury(bridge, 300)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(bridge.dead.replay_all().ids)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE_S)
    assert sorted(found) == sorted(ids)
    assert sorted(_due(bridge)) == sorted(ids)
