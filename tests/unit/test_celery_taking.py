"""What a Celery worker does with messages that it has taken together, when something goes wrong on the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("celery")

from taskbridge import Bridge
from taskbridge.brokers.base import Held
from taskbridge.engines.celery import transport
from taskbridge.exceptions import BrokerUnavailable

TAKEN = [Held(f"t.{number}", 0, b"{}", suspect=False) for number in range(4)]


class Queues:
    """Four messages; notes what goes back."""

    def __init__(self) -> None:
        self.changes = 1
        self.given_back: list[str] = []
        self.asked: list[int] = []
        self.is_away = False

    def lists_of(self, queues: Any) -> Any:
        return queues

    def take(self, lists: Any, most: int, *, timeout_s: float) -> list[Held]:
        self.asked.append(most)
        if self.is_away:
            raise BrokerUnavailable("it is away")
        return TAKEN[:most]

    def is_quiet(self, queues: Any, *, in_vain: bool) -> bool:
        return True

    def look_again(self, at: float) -> None: ...

    def serve(self, loop: Any) -> None: ...

    def give_back(self, tag: str) -> None:
        self.given_back.append(tag)

    def flush(self) -> None: ...


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def channel(queues: Queues) -> Any:
    """Return a channel that consumes, and may take up to eight messages."""
    bridge = Bridge("celery+memory://")
    bridge.native.engine.consumer = SimpleNamespace(free_slots=lambda: 8)
    connection = bridge.native.connection_for_read()
    made = connection.channel()
    made.queues = made.watch = made.connection.watch = queues
    made.basic_consume("a queue", False, lambda message: None, "a consumer")
    return made


def test_what_nobody_holds_yet_goes_back_if_a_message_before_it_cannot_be_delivered(
    channel: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over(_: Any, taken: Held) -> None:
        if taken.tag == "t.1":
            raise ConnectionError

    monkeypatch.setattr(transport.Channel, "_hand_over", hand_over)
    with pytest.raises(ConnectionError):
        channel.deliver()

    assert queues.given_back == ["t.2", "t.3"]


def test_it_takes_again_when_there_was_a_change_and_not_before(
    channel: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.Channel, "_hand_over", lambda *_: None)
    assert channel.deliver()
    assert not channel.deliver()
    assert queues.asked == [8]

    queues.changes += 1
    assert channel.deliver()
    assert queues.asked == [8, 8]


def test_a_broker_that_does_not_answer_ends_nothing_and_is_asked_again_later(
    channel: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.Channel, "_hand_over", lambda *_: None)
    monkeypatch.setattr(transport, "monotonic", lambda: 100.0)
    queues.is_away = True
    assert not channel.deliver()
    assert not channel.deliver()
    assert len(queues.asked) == 1, "it rests"

    queues.is_away = False
    monkeypatch.setattr(transport, "monotonic", lambda: float("inf"))
    assert channel.deliver()


@pytest.mark.parametrize("has_children", [True, False])
def test_a_pool_of_processes_has_a_turn_after_each_in_which_something_was_delivered(
    channel: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch, has_children: bool
) -> None:
    """It writes to its children in the loop's turns, in no order with ours; else they wait for the next timer."""
    engine, turns, wakes = channel.connection.engine, SimpleNamespace(on_tick=set(), add_reader=lambda *_: None), []
    monkeypatch.setattr(transport.Channel, "_hand_over", lambda *_: None)
    monkeypatch.setattr(engine, "wake", lambda: wakes.append(True))
    monkeypatch.setattr(engine, "queues", queues)
    monkeypatch.setattr(engine.life, "has_children", has_children)
    channel.connection.register_with_event_loop(None, turns)
    (turn,) = turns.on_tick

    turn()
    assert wakes == [True] * has_children
    turn()
    assert wakes == [True] * has_children, "nothing was delivered"
