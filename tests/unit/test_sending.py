"""What is recorded of messages that could not be sent, or not all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskbridge import Bridge, BrokerUnavailable, NoSuchRecord, SendError
from taskbridge.exceptions import PartlyPublished


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    yield bridge
    bridge.close()


class Ids(list[str]):
    """The ids of what was about to be sent."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        bridge.on("before_send")(lambda event: self.append(event.message.id if event.message else ""))


def states(bridge: Bridge, ids: list[str]) -> list[str]:
    return [state_of(bridge, each) for each in ids]


def state_of(bridge: Bridge, message_id: str) -> str:
    try:
        return bridge.handle(message_id).status().state
    except NoSuchRecord:
        return "unknown"


@pytest.mark.parametrize(("maybe_taken", "state"), [(False, "unknown"), (True, "queued")])
def test_only_what_was_surely_not_sent_loses_its_record(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, maybe_taken: bool, state: str
) -> None:
    ids = Ids(bridge)
    task = bridge.task(name="add")(lambda: 1)

    def refuse(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens", maybe_taken=maybe_taken)

    monkeypatch.setattr(bridge.broker, "publish", refuse)
    monkeypatch.setattr(bridge.broker, "park", refuse)
    for send in (task.send, lambda: task.schedule(60)):
        with pytest.raises(BrokerUnavailable):
            send()

    assert states(bridge, ids) == [state, state.replace("queued", "scheduled")]


def test_a_tick_that_somebody_else_may_have_sent_keeps_its_record(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge.task(name="add", every=60)(lambda: 1)
    [schedule] = bridge.schedules.planned().values()
    message_id = bridge.schedules.send(schedule, 1.8e9)

    def refuse(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens")

    monkeypatch.setattr(bridge.broker, "publish", refuse)
    with pytest.raises(BrokerUnavailable):
        bridge.schedules.send(schedule, 1.8e9)

    assert state_of(bridge, message_id) == "queued"


def test_of_many_those_that_were_surely_not_sent_lose_theirs(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids(bridge)
    task = bridge.task(name="add")(lambda: 1)
    quiet = bridge.task(name="quiet", results=False)(lambda: 1)

    def refuse(*_: Any, timeout_s: float) -> None:
        cause = BrokerUnavailable("it was cut", maybe_taken=True)
        raise PartlyPublished(cause, accepted=frozenset({0}), unsure=frozenset({2}))

    monkeypatch.setattr(bridge.broker, "publish", refuse)
    with pytest.raises(SendError):
        bridge.send_many([task.call(), task.call(), task.call(), quiet.call(), task.call()])

    assert states(bridge, ids) == ["queued", "unknown", "queued", "unknown", "unknown"]


def test_nothing_is_sent_without_its_record(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    task = bridge.task(name="add")(lambda: 1)
    quiet = bridge.task(name="quiet", results=False)(lambda: 1)

    def away(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("the store is away")

    monkeypatch.setattr(bridge.records, "create", away)
    with pytest.raises(BrokerUnavailable, match="the store is away"):
        task.send()
    with pytest.raises(BrokerUnavailable, match="the store is away"):
        task.schedule(60)
    with pytest.raises(SendError, match="the store is away"):
        bridge.send_many([task.call(), quiet.call()])
    quiet.send()

    assert (bridge.counts().waiting, bridge.counts().delayed) == ({"default": 1}, 0)


def test_what_cannot_be_removed_stays_and_the_error_is_the_broker_s(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = Ids(bridge)

    def refuse(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens")

    monkeypatch.setattr(bridge.broker, "publish", refuse)
    monkeypatch.setattr(bridge.records, "forget", refuse)
    with pytest.raises(BrokerUnavailable, match="nobody listens"):
        bridge.task(name="add")(lambda: 1).send()

    assert "1 messages were not sent, but stay recorded" in caplog.text
    assert states(bridge, ids) == ["queued"]


def test_an_instant_is_reckoned_by_the_stores_clock_where_nothing_is_recorded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bridge = Bridge("celery+memory://")
    bridge._made["clock"] = lambda: time.time() + 3600
    quiet = bridge.task(name="quiet", results=False)(lambda: 1)
    delays: list[float] = []

    def park(pairs: list[tuple[Any, float]], *, timeout_s: float) -> None:
        delays.extend(delay_s for _, delay_s in pairs)

    monkeypatch.setattr(bridge.broker, "park", park)
    quiet.schedule(datetime.now(timezone.utc) + timedelta(hours=2))
    quiet.schedule(60)
    bridge.close()

    assert delays == pytest.approx([3600, 60], abs=30)
