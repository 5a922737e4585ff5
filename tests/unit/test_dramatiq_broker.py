"""What the Dramatiq engine's brokers tell their middleware, which is what Dramatiq tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq.middleware import Middleware, SkipMessage

from taskbridge import Bridge


class Listener(Middleware):
    """Writes down what it is told, by its own name."""

    def __init__(self, name: str, told: list[str], error: type[Exception] | None = None) -> None:
        self.name = name
        self.told = told
        self.error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.told.append(f"{self.name} before")
        if self.error is not None:
            raise self.error("on purpose")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self.told.append(f"{self.name} after {result}")
        if self.error is not None:
            raise self.error("on purpose")


@pytest.fixture
def broker() -> Iterator[Any]:
    bridge = Bridge("dramatiq+memory://")
    bridge.native.middleware.clear()
    yield bridge.native
    bridge.close()


def test_all_are_told_before_in_order_and_after_in_reverse(broker: Any) -> None:
    told: list[str] = []
    broker.emit_before("process_message", object())  # what listens is looked up, and one is added later
    for name in ("one", "two"):
        broker.add_middleware(Listener(name, told))

    broker.emit_before("process_message", object())
    broker.emit_after("process_message", object(), result=3)

    assert told == ["one before", "two before", "two after 3", "one after 3"]


def test_what_is_removed_is_not_told_any_more(broker: Any) -> None:
    told: list[str] = []
    broker.add_middleware(Listener("one", told))
    broker.emit_after("process_message", object())
    broker.middleware[:] = [each for each in broker.middleware if not isinstance(each, Listener)]

    broker.emit_after("process_message", object())

    assert told == ["one after None"]


def test_one_that_fails_is_logged_and_the_others_are_told(broker: Any, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    broker.add_middleware(Listener("one", told, ValueError))
    broker.add_middleware(Listener("two", told))

    broker.emit_before("process_message", object())
    broker.emit_after("process_message", object())

    assert told == ["one before", "two before", "two after None", "one after None"]
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 2


def test_one_that_skips_a_message_ends_it_there(broker: Any) -> None:
    told: list[str] = []
    broker.add_middleware(Listener("one", told, SkipMessage))
    broker.add_middleware(Listener("two", told))

    with pytest.raises(SkipMessage):
        broker.emit_before("process_message", object())

    assert told == ["one before"]
