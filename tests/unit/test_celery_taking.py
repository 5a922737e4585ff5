"""What a Celery worker on Redis does with messages that it has taken together, when something goes wrong on the way."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("celery")
pytest.importorskip("redis")

from taskbridge.engines.celery.transport import Channel, _Reply


class Leases:
    """Notes what a channel says of its messages."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.given_back: list[str] = []

    def took(self, *tags: str) -> None:
        self.held += tags

    def give_back(self, tag: str) -> None:
        self.given_back.append(tag)


@pytest.fixture
def channel() -> Any:
    made: Any = object.__new__(Channel)
    made.connection = None  # for what kombu does with a channel that nobody refers to any more
    made.leases = Leases()
    made._tags = ["t.0", "t.1", "t.2", "t.3"]
    made._asked = SimpleNamespace(served=lambda _: "a queue")
    made._expected = deque()
    return made


def test_what_nobody_holds_yet_goes_back_if_a_message_before_it_cannot_be_delivered(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over(_: Any, tag: str, queue: str, item: bytes) -> None:
        if tag == "t.1":
            raise ConnectionError

    monkeypatch.setattr(Channel, "_hand_over", hand_over)
    with pytest.raises(ConnectionError):
        channel._hand_over_all([1, b"a", 1, b"b", 2, b"c"])

    assert channel.leases.held == ["t.0", "t.1", "t.2"]
    assert channel.leases.given_back == ["t.2"]


@pytest.mark.parametrize("kind", [_Reply.TAKEN, _Reply.TAKEN_AFTER_WAIT])
def test_what_may_have_been_taken_goes_back_once(channel: Any, kind: _Reply) -> None:
    channel._expected.extend((_Reply.OK, kind))
    channel._give_back_unheard()
    channel._give_back_unheard()

    assert channel.leases.given_back == channel._tags


def test_nothing_goes_back_that_was_not_asked_for(channel: Any) -> None:
    channel._expected.append(_Reply.LOOKED)
    channel._give_back_unheard()

    assert channel.leases.given_back == []
