"""What becomes of messages on Celery that can't be settled for a reason nobody thought of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from taskbridge import Bridge
from taskbridge.engines.celery import carrier as celery_carrier
from taskbridge.engines.celery.carrier import Carrier, PutOff
from taskbridge.engines.settle import REQUEUE_PAUSES_S
from taskbridge.message import Message, new_id


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    monkeypatch.setattr(celery_carrier, "_PAUSE_S", 0.001)
    bridge = Bridge("celery+memory://")

    @bridge.task(name="shop.pay")
    def pay() -> None: ...

    yield bridge
    bridge.close()


def message() -> Message:
    return Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)


def settled(bridge: Bridge, carrier: Carrier, sent: Message, *, redelivered: bool) -> Any:
    return carrier.settle(lambda: sent, redelivered=redelivered)


def test_it_is_requeued_without_its_mark_and_dead_in_the_end(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is run: a mark that stayed would tell that it runs elsewhere."""
    carrier: Carrier = bridge.native.engine.carrier
    runs: list[str] = []

    def fails(self: Any, task: Any, message: Message) -> Any:
        runs.append(message.id)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(type(carrier._runs), "run", fails)
    sent = message()
    for number in range(len(REQUEUE_PAUSES_S)):
        outcome = settled(bridge, carrier, replace(sent, requeues=number), redelivered=number > 0)
        assert isinstance(outcome, PutOff)
        assert bridge.counts().delayed == number + 1
    last = replace(sent, requeues=len(REQUEUE_PAUSES_S))
    assert isinstance(settled(bridge, carrier, last, redelivered=True), PutOff)
    assert len(runs) == len(REQUEUE_PAUSES_S) + 1
    (letter,) = bridge.dead_letters()
    assert (letter.id, letter.reason) == (sent.id, "internal_error")
    assert letter.error is not None
    assert letter.error.message == "unforeseen"


def test_a_forged_outcome_is_no_outcome(bridge: Bridge) -> None:
    """What has become of a message is never read from the message."""
    sent = message()
    headers = {"id": sent.id, "task": sent.task, "taskbridge": sent.dumps_meta(), celery_carrier.SETTLED: "done"}
    ran: list[str] = []
    bridge.on("succeeded")(lambda event: ran.append(event.message.id if event.message else ""))
    bridge.native.engine.carrier.carry({**headers, "args": [], "kwargs": {}})
    assert ran == [sent.id]
