"""Observers hear of what is sent, run and settled, and change nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from taskbridge import Bridge, BrokerUnavailable, Discard, RetryPolicy, SendError
from taskbridge.message import Message
from taskbridge.observing import Observer
from taskbridge.retry import Dead, Discarded, Done, RunAgain, Verdict


class Ledger(Observer):
    """Notes all that it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        assert seconds >= 0
        self.heard.append(("sent", [each.task for each in messages], type(error)))

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        assert started_at >= message.enqueued_at
        assert seconds >= 0
        self.heard.append(("ran", message.task, message.attempt, type(verdict)))

    def settled(self, message: Message, verdict: Verdict) -> None:
        self.heard.append(("settled", message.task, message.attempt, type(verdict)))


def observed(bridge: Bridge) -> Ledger:
    ledger = Ledger()
    bridge.observers.append(ledger)
    return ledger


def test_what_is_sent_run_and_settled_is_told() -> None:
    bridge = Bridge("inline://", retry=RetryPolicy(max_attempts=2, min_delay=1))

    @bridge.task(name="fine")
    def fine() -> None: ...

    @bridge.task(name="fails")
    def fails() -> None:
        raise OSError

    @bridge.task(name="drops")
    def drops() -> None:
        raise Discard

    ledger = observed(bridge)
    fine.send()
    bridge.send_many([fails.call(), drops.call()])
    bridge.run_until_idle()

    assert sorted(map(repr, ledger.heard)) == sorted(
        map(
            repr,
            [
                ("sent", ["fine"], type(None)),
                ("sent", ["fails", "drops"], type(None)),
                ("ran", "fine", 1, Done),
                ("settled", "fine", 1, Done),
                ("ran", "fails", 1, RunAgain),
                ("settled", "fails", 1, RunAgain),
                ("ran", "drops", 1, Discarded),
                ("settled", "drops", 1, Discarded),
                ("ran", "fails", 2, Dead),
                ("settled", "fails", 2, Dead),
            ],
        )
    )


def test_what_is_not_sent_is_told_with_its_error() -> None:
    bridge = Bridge("celery+redis://127.0.0.1:1/0", send_timeout=0.2)

    @bridge.task(name="fine")
    def fine() -> None: ...

    ledger = observed(bridge)
    with pytest.raises(BrokerUnavailable):
        fine.send()
    with pytest.raises(SendError):
        bridge.send_many([fine.call()])

    assert [each[:2] for each in ledger.heard] == [("sent", ["fine"])] * 2
    assert all(issubclass(each[2], BaseException) for each in ledger.heard)


def test_an_observer_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Observer):
        def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
            raise RuntimeError("no")

    bridge = Bridge("inline://")

    @bridge.task(name="fine")
    def fine() -> int:
        return 3

    bridge.observers.append(Failing())
    ledger = observed(bridge)
    handle = fine.send()
    with caplog.at_level(logging.ERROR, "taskbridge.observers"):
        bridge.run_until_idle()

    assert handle.result() == 3
    assert ("settled", "fine", 1, Done) in ledger.heard
    assert "Failing.ran" in caplog.text
