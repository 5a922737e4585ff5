"""Dead letters on RabbitMQ move in one transaction, whoever is killed meanwhile, and are read by page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pika
import pytest
from pika import spec

from taskbridge import Bridge, BrokerUnavailable, DeadLetter
from taskbridge.brokers.rabbitmq.channel import Channel
from taskbridge.brokers.rabbitmq.connection import Deadline
from taskbridge.brokers.rabbitmq.dead_letter_queue import reading
from taskbridge.message import loads, new_id
from taskbridge.routing import QueueType
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


# Pages


@pytest.fixture(params=["classic", "quorum"])
def paged(rabbitmq_server: PrivateRabbitMQ, request: pytest.FixtureRequest) -> Iterator[Bridge]:
    kind: QueueType = request.param
    url, namespace = f"celery+{rabbitmq_server.url}", f"dead{new_id()[:8]}"
    with closing(Bridge(url, namespace=namespace, queue_type=kind, send_timeout=PATIENCE_S)) as made:
        yield made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of what is delivered."""
    bodies, take = list[bytes](), Channel.take

    def noted(channel: Channel, kind: int, payload: bytes) -> None:
        if kind == spec.FRAME_BODY:
            bodies.append(payload)
        take(channel, kind, payload)

    monkeypatch.setattr(Channel, "take", noted)
    return bodies


def _letters(count: int) -> list[DeadLetter]:
    return [replace(letter(f"letter-{number:05}"), died_at=1e9 + number) for number in range(count)]


def _bury(bridge: Bridge, letters: Sequence[DeadLetter]) -> list[str]:
    broker: Any = bridge.broker
    broker._deliver(map(broker._encoder.letter, letters), Deadline(4 * PATIENCE_S))
    return [each.id for each in letters]


def _pages(bridge: Bridge, limit: int, **filters: str) -> Iterator[list[str]]:
    after = None
    for _ in range(200):
        page = bridge.dead.list(limit=limit, after=after, **filters)
        yield [each.id for each in page.entries]
        after = page.next
        if after is None:
            return
    pytest.fail("the pages have no end")


@pytest.mark.parametrize("stored", [100, 5000])
def test_a_first_page_reads_as_much_whatever_is_stored(paged: Bridge, read: list[bytes], stored: int) -> None:
    letters = _letters(stored)
    ids = _bury(paged, letters)

    for _ in range(1 if paged.settings.queue_type == "quorum" else 3):  # which reads all that was read before
        read.clear()
        assert [each.id for each in paged.dead.list(limit=30).entries] == ids[:30]
        assert read == [each.dumps().encode() for each in letters[:31]], "and one more, with which the next page begins"

    for _ in range(2):
        assert [each.id for each in paged.dead.list(limit=30).entries] == ids[:30]
    assert _dead(paged) == ids


def test_a_later_page_reads_no_more_than_twice_what_is_before_its_end(paged: Bridge, read: list[bytes]) -> None:
    ids = _bury(paged, _letters(2000))
    read.clear()

    page = paged.dead.list(limit=25, after=f"{1e9 + 300}:{ids[300]}")

    assert ([each.id for each in page.entries], page.next) == (ids[300:325], f"{1e9 + 325}:{ids[325]}")
    assert 326 <= len(read) <= 2 * 326
    assert _dead(paged) == ids, "what several consumers had is in its place again"
    assert _dead(paged) == ids


def test_pages_follow_one_another_in_the_order_in_which_letters_were_buried(paged: Bridge) -> None:
    """Workers' clocks differ, so some died earlier than those before them, or later than all."""
    letters = _letters(60)
    letters[3] = replace(letters[3], died_at=9e9)
    letters[10:40:7] = [replace(each, died_at=each.died_at - 20.5) for each in letters[10:40:7]]
    ids = _bury(paged, letters)

    for limit in (1, 4, 7, 59, 60):
        pages = [*_pages(paged, limit)]
        assert [each for page in pages for each in page] == ids
        assert {len(page) for page in pages[:-1]} <= {limit}


@pytest.mark.parametrize("limit", [1, 4, 12])
def test_pages_have_a_letter_once_though_it_was_buried_twice(bridge: Bridge, limit: int) -> None:
    letters = _letters(24)
    ids = _bury(bridge, letters)
    _bury(bridge, [letters[0], letters[12], letters[12], letters[23]])

    assert [each for page in _pages(bridge, limit) for each in page] == ids
    assert len(_dead(bridge)) == 28


def test_a_page_begins_with_what_died_later_if_its_first_letter_is_gone(paged: Bridge) -> None:
    ids = _bury(paged, _letters(40))
    first = paged.dead.list(limit=10)
    paged.dead.purge(ids[5:13])

    second = paged.dead.list(limit=10, after=first.next)

    assert [each.id for each in second.entries] == ids[13:23]
    assert [each.id for each in paged.dead.list(limit=30, after=second.next).entries] == ids[23:]


def test_a_filter_reads_until_its_page_is_full(paged: Bridge, read: list[bytes]) -> None:
    letters = [replace(each, reason="gave_up" if n % 10 == 9 else "exhausted") for n, each in enumerate(_letters(3000))]
    ids = _bury(paged, letters)
    read.clear()

    page = paged.dead.list(limit=12, reason="gave_up")

    assert [each.id for each in page.entries] == ids[9:120:10]
    assert 130 <= len(read) <= 2 * 130
    assert [each for page in _pages(paged, 125, reason="gave_up") for each in page] == ids[9::10]


def test_one_letter_is_looked_for_until_it_is_found(paged: Bridge, read: list[bytes]) -> None:
    ids = _bury(paged, _letters(2000))
    read.clear()

    assert paged.dead.get(ids[150]).id == ids[150]

    assert 151 <= len(read) <= 2 * 151
    assert _dead(paged) == ids
