"""What becomes of messages that were cancelled so lately that nobody knows it yet, or that meet odd errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from taskbridge import Bridge, Message
from taskbridge.engines.settle import NotRun, begin, bury_unreadable, finish, not_settled, record_buried
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable
from taskbridge.hooks import Event
from taskbridge.retry import CancelledVerdict, Dead, Done, GivenBack, RunAgain, Verdict

_LATE_S = 0.5
"""How late a busy machine may find a message that was due; at most half of the shortest pause."""


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    bridge.task(name="t")(print)
    monkeypatch.setattr(bridge.cancellations, "has", lambda message, timeout_s: False)
    yield bridge
    bridge.close()


def failed(bridge: Bridge, *, cancelled: bool) -> Verdict:
    """Run a message's first attempt, which fails, and return what becomes of it."""
    given: dict[str, Any] = {"id": "m", "task": "t", "queue": "default", "args_json": "[]", "kwargs_json": "{}"}
    message = Message(**given, enqueued_at=time.time())
    records = bridge.records
    assert records is not None
    assert begin(bridge.bound("t"), message, redelivered=False) is message
    if cancelled:
        records.cancel("m", at=time.time(), timeout_s=5)
    return finish(bridge.bound("t"), message, RunAgain(8 * 86400.0, ValueError("no")))


def test_nothing_is_parked_for_a_message_that_was_cancelled_just_before_its_run_ended(bridge: Bridge) -> None:
    events: list[Event] = []
    bridge.on("discarded")(events.append)

    verdict = failed(bridge, cancelled=True)

    assert isinstance(verdict, CancelledVerdict)
    assert bridge.counts().delayed == 0
    assert bridge.handle("m").status().state == "cancelled"
    assert len(events) == 1


def test_the_next_attempt_of_one_that_was_not_cancelled_is_parked(bridge: Bridge) -> None:
    assert isinstance(failed(bridge, cancelled=False), RunAgain)
    assert bridge.counts().delayed == 1
    assert bridge.handle("m").status().state == "retrying"


def _not_settled(bridge: Bridge, message: Message) -> Message | None:
    """Meet an error that nobody foresaw, and return the message as it comes again; None if it does not."""
    verdict = not_settled(bridge, message, KeyError("nobody thought of it"))
    wire, broker = bridge.wire, bridge.broker
    while bridge.counts().delayed:
        bridge.engine.native.clock.move_to(broker.next_due())  # type: ignore[attr-defined]
        broker.promote_due()  # type: ignore[attr-defined]
    taken: Message | None = wire.take(None)  # type: ignore[attr-defined]
    assert isinstance(verdict, Dead if taken is None else NotRun)  # what an engine shows of it
    return taken


def test_a_message_that_is_about_to_start_waits_until_it_is_known_what_is_paused(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, outages = bridge.pauses, [StoreUnavailable("it is away")]
    assert pauses is not None

    def covers(message: Message, *, timeout_s: float) -> bool:
        if outages:
            raise outages.pop()
        return message.task == "t" and timeout_s > 0

    monkeypatch.setattr(pauses, "covers", covers)
    pauses.old_at = 0.0

    assert begin(bridge.bound("t"), _message(), redelivered=False) == NotRun("paused")
    assert bridge.counts().delayed == 1
    assert isinstance(begin(bridge.bound("other"), _message(task="other"), redelivered=False), Message)


def _message(**given: Any) -> Message:
    fields: dict[str, Any] = {"id": "m", "queue": "default", "args_json": "[]", "kwargs_json": "{}"}
    known: dict[str, Any] = {"task": "t", "enqueued_at": time.time(), **given}
    return Message(**fields, **known)


def test_a_message_that_meets_unforeseen_errors_waits_longer_each_time_and_is_dead_the_sixth_time(
    bridge: Bridge,
) -> None:
    message: Message | None = _message(attempt=2)
    began, waits = bridge.now(), []
    for _ in range(5):
        assert message is not None
        message = _not_settled(bridge, message)
        waits.append(bridge.now() - began)
        began = bridge.now()
    for wait_s, pause_s in zip(waits, (1, 2, 4, 8, 16), strict=True):
        assert pause_s <= wait_s < pause_s + _LATE_S
    assert message is not None
    assert (message.attempt, message.requeues) == (2, 5)
    assert _not_settled(bridge, message) is None
    (letter,) = bridge.dead_letters()
    assert (letter.reason, letter.id) == ("internal_error", "m")
    assert "nobody thought of it" in letter.traceback
    assert bridge.handle("m").status().state == "dead"


def test_a_setting_says_how_long_it_waits() -> None:
    bridge = Bridge("inline://?threads=0", requeue_pause=60)
    bridge.task(name="t")(print)
    began = bridge.now()
    assert _not_settled(bridge, _message(requeues=2)) is not None
    assert 240 <= bridge.now() - began < 240 + _LATE_S
    bridge.close()


def test_the_next_attempt_is_counted_anew() -> None:
    assert _message(requeues=5).next_attempt(ValueError()).requeues == 0


def test_a_message_that_can_not_be_written_is_buried_as_text(bridge: Bridge) -> None:
    odd: Any = {"key": object()}
    assert _not_settled(bridge, _message(headers=odd)) is None
    (letter,) = bridge.dead_letters()
    assert letter.reason == "internal_error"
    assert letter.message is None
    assert letter.raw is not None
    assert b"'m'" in letter.raw


def test_a_broker_that_is_away_is_not_counted(bridge: Bridge) -> None:
    bridge.stopping.set()
    assert not_settled(bridge, _message(), BrokerUnavailable("it is away")) == GivenBack()
    assert bridge.counts().delayed == 0


@pytest.mark.parametrize("verdict", [Done(1), RunAgain(60.0, ValueError("no")), Dead("exhausted", ValueError("no"))])
def test_a_verdict_does_not_hang_on_its_record(
    bridge: Bridge, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_odd(*given: Any, **named: Any) -> None:
        raise TypeError("nobody thought of it")

    monkeypatch.setattr(bridge.records, "ended", raise_odd)
    assert isinstance(begin(bridge.bound("t"), _message(), redelivered=False), Message)

    assert finish(bridge.bound("t"), _message(), verdict) is verdict

    counts = bridge.counts()
    assert (counts.delayed, counts.dead) == (isinstance(verdict, RunAgain), isinstance(verdict, Dead))


def test_what_is_buried_stays_so_whatever_its_record_holds(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_odd(*given: Any, **named: Any) -> None:
        raise TypeError("nobody thought of it")

    monkeypatch.setattr(bridge.records, "get", raise_odd)

    bury_unreadable(bridge, b"odd", reason="undecodable", error=ValueError("no"), message_id="m")

    assert [letter.raw for letter in bridge.dead_letters()] == [b"odd"]


def test_a_message_that_can_not_even_be_buried_goes_back(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_odd(*given: Any, **named: Any) -> None:
        raise TypeError("nobody thought of it")

    bridge.stopping.set()
    for act in ("park", "bury"):
        monkeypatch.setattr(bridge.broker, act, raise_odd)
    assert not_settled(bridge, _message(), KeyError("nobody thought of it")) == GivenBack()


@pytest.mark.parametrize("reason", ["undecodable", "internal_error"])
def test_a_parked_message_that_can_not_be_published_is_dead_and_so_is_its_record(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    broker: Any = bridge.broker
    engine: Any = bridge.engine.native
    handle = bridge.task(name="later")(print).schedule(5)
    if reason == "undecodable":
        [(due_at, number, text)] = broker._parked
        broker._parked = [(due_at, number, text.replace('"task":', '"tusk":', 1))]
    else:
        monkeypatch.setattr(bridge.wire, "encode", lambda message: 1 / 0)
    engine.clock.move_to(broker.next_due())

    assert broker.promote_due(partial(record_buried, bridge)) == 0
    assert [letter.reason for letter in bridge.dead_letters()] == [reason]
    status = handle.status()
    assert (status.state, status.reason) == ("dead", reason)
