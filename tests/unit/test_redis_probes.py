"""Probes and signs on Redis leave nothing behind, also where who asked was killed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from taskbridge import Bridge, UnknownQueue
from taskbridge.probe import answer_sign, make_probe
from tests.servers import PrivateRedis
from tests.unit.redis_helpers import HashWire, OneListWire, Place, place_on


@pytest.fixture
def place(redis_server: PrivateRedis) -> Iterator[Place]:
    with place_on(redis_server.url) as place:
        yield place


def test_health_is_asked_of_known_queues_only() -> None:
    with pytest.raises(UnknownQueue, match="emial"):
        Bridge("celery+redis://127.0.0.1:1/0", queues=["email"]).health("emial")


@pytest.mark.parametrize("wire", [OneListWire, HashWire])
def test_a_probe_is_withdrawn_with_its_signs(place: Place, wire: type[OneListWire]) -> None:
    broker = place.broker(wire)
    probe = make_probe("default", now=time.time(), life_s=30)
    broker.ask([probe], timeout_s=5)
    broker.leave_signs([answer_sign(probe)], life_s=60, timeout_s=5)
    assert broker.counts(["default"]).waiting == {"default": 1}
    assert broker.see_signs([answer_sign(probe), "other"], timeout_s=5) == {answer_sign(probe)}

    broker.withdraw([probe], [answer_sign(probe)], timeout_s=5)
    assert place.client.keys(f"{place.namespace}*") == []


@pytest.mark.parametrize("wire", [OneListWire, HashWire])
def test_what_a_killed_asker_left_is_removed_by_the_next(place: Place, wire: type[OneListWire]) -> None:
    broker = place.broker(wire)
    old, recent = (
        make_probe("default", now=time.time() - 100, life_s=5),
        make_probe("default", now=time.time(), life_s=30),
    )
    broker.ask([old], timeout_s=5)
    broker.ask([recent], timeout_s=5)
    broker.ask([], timeout_s=5)
    assert broker.counts(["default"]).waiting == {"default": 1}

    broker.withdraw([recent], [answer_sign(recent)], timeout_s=5)
    assert place.client.keys(f"{place.namespace}*") == []


def test_one_who_asks_by_a_fast_clock_removes_nobody_elses_probe(place: Place) -> None:
    broker = place.broker()
    theirs, mine = (make_probe("default", now=time.time() + ahead_s, life_s=10) for ahead_s in (0, 20))
    broker.ask([theirs], timeout_s=5)
    broker.ask([mine], timeout_s=5)
    assert broker.counts(["default"]).waiting == {"default": 2}


ODD_NOTES = (
    *(b"\xff", b"[" * 10_000, b"5", b"[5]", b"[1,5]", b"[1,[[]]]", b"[-1,[]]", b'["x",[]]'),
    *(b'[1,["DEL"]]', b'[1,[["DEL","precious"]]]', b'[NaN,[["DEL","precious"]]]'),
    *(b'[1,[["LREM",5]]]', b'[1,[["LREM","\\ud800"]]]'),
)


@pytest.mark.parametrize("note", ODD_NOTES)
def test_an_odd_note_on_a_probe_is_removed_and_carries_nothing_out(place: Place, note: bytes) -> None:
    broker = place.broker()
    place.client.hset(f"{place.namespace}:probes", "odd", note)
    place.client.set("precious", "kept")
    probe = make_probe("default", now=time.time(), life_s=30)
    broker.ask([probe], timeout_s=5)
    broker.ask([], timeout_s=5)
    assert place.client.hkeys(f"{place.namespace}:probes") == [probe.id.encode()], "the one beside it is as it was"
    broker.withdraw([probe], [], timeout_s=5)
    assert place.client.keys(f"{place.namespace}*") == []
    assert place.client.getdel("precious") == b"kept"


def test_a_sign_is_seen_for_its_life_only(place: Place) -> None:
    broker = place.broker()
    broker.leave_signs(["brief", "long"], life_s=0.2, timeout_s=5)
    broker.leave_signs(["long"], life_s=30, timeout_s=5)
    time.sleep(0.3)
    assert broker.see_signs(["brief", "long"], timeout_s=5) == {"long"}
