"""What becomes of messages that were cancelled so lately that their worker does not know it yet (rule CA2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from taskbridge import Bridge, Message
from taskbridge.engines.settle import begin, finish
from taskbridge.hooks import Event
from taskbridge.retry import Cancelled, RunAgain, Verdict


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    bridge.task(name="t")(print)
    monkeypatch.setattr(bridge, "was_cancelled", lambda message: False)
    yield bridge
    bridge.close()


def failed(bridge: Bridge, *, cancelled: bool) -> Verdict:
    """Run a message's first attempt, which fails, and return what becomes of it."""
    given: dict[str, Any] = {"id": "m", "task": "t", "queue": "default", "args_json": "[]", "kwargs_json": "{}"}
    message = Message(**given, enqueued_at=time.time())
    records = bridge.records
    assert records is not None
    assert begin(bridge, message, redelivered=False) is None
    if cancelled:
        records.cancel("m", at=time.time(), timeout_s=5)
    return finish(bridge, message, RunAgain(8 * 86400.0, ValueError("no")))


def test_nothing_is_parked_for_a_message_that_was_cancelled_just_before_its_run_ended(bridge: Bridge) -> None:
    events: list[Event] = []
    bridge.on("discarded")(events.append)

    verdict = failed(bridge, cancelled=True)

    assert isinstance(verdict, Cancelled)
    assert bridge.counts().delayed == 0
    assert bridge.handle("m").status().state == "cancelled"
    assert len(events) == 1


def test_the_next_attempt_of_one_that_was_not_cancelled_is_parked(bridge: Bridge) -> None:
    assert isinstance(failed(bridge, cancelled=False), RunAgain)
    assert bridge.counts().delayed == 1
    assert bridge.handle("m").status().state == "retrying"
