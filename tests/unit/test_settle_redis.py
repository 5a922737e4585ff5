"""What is done about messages that may have come twice, where no engine is needed to see it: rules A7, R5, R9 and H."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from taskbridge import Bridge, BrokerUnavailable, Message
from taskbridge.engines.settle import NotRun, begin, later, put_off_paused, put_off_unknown, run_and_settle
from taskbridge.hooks import Event, Hooks
from taskbridge.retry import Done, Interrupted
from tests.servers import PrivateRedis


@pytest.fixture
def make_bridge(redis_server: PrivateRedis) -> Iterator[Callable[[], Bridge]]:
    made: list[Bridge] = []
    namespace = f"t{secrets.token_hex(4)}"

    def make() -> Bridge:
        bridge = Bridge(f"celery+{redis_server.url}", namespace=namespace, lease=30)
        bridge.task(name="t")(print)
        made.append(bridge)
        return bridge

    yield make
    for bridge in made:
        bridge.close()


def a_message(**given: Any) -> Message:
    known: dict[str, Any] = {
        "id": secrets.token_hex(8),
        "task": "t",
        "queue": "default",
        "enqueued_at": 1.0,
        "args_json": "[]",
        "kwargs_json": "{}",
    }
    return Message(**{**known, **given})


def stand_still(bridge: Bridge) -> None:
    """Have a process be one that has just gone on after it stood still for longer than its lease."""
    marks: Any = bridge.marks
    marks._me.get()._lapsed_at = monotonic()


def test_a_worker_that_stood_still_does_not_run_what_another_one_has_run_meanwhile(
    make_bridge: Callable[[], Bridge],
) -> None:
    still, other = make_bridge(), make_bridge()
    message = a_message()
    assert still.marks is not None
    still.marks.prepare()  # it has taken the message, and not begun with it
    assert begin(other.bound("t"), message, redelivered=True) is message
    assert other.marks is not None
    other.marks.ended(message)

    stand_still(still)

    assert begin(still.bound("t"), message, redelivered=False) == NotRun("ended before")
    assert isinstance(begin(still.bound("t"), a_message(), redelivered=False), Message)


def test_a_worker_that_always_lived_asks_nobody(make_bridge: Callable[[], Bridge]) -> None:
    bridge = make_bridge()
    assert bridge.marks is not None
    bridge.marks.prepare()
    assert not bridge.marks.stood_still()
    stand_still(bridge)
    assert bridge.marks.stood_still()


class Refusing:
    """Stands in for a broker's method that fails once."""

    def __init__(self, *, maybe_taken: bool) -> None:
        self.maybe_taken = maybe_taken
        self.seen: list[Message] = []

    def __call__(self, messages: list[Any], *, timeout_s: float) -> None:
        first = messages[0]
        self.seen.append(first[0] if isinstance(first, tuple) else first)
        if len(self.seen) == 1:
            raise BrokerUnavailable("it does not answer", maybe_taken=self.maybe_taken)


@pytest.mark.parametrize("delay_s", [0.0, 5.0])
@pytest.mark.parametrize(("maybe_taken", "flags"), [(True, [0, 1]), (False, [0, 0])])
def test_what_the_broker_may_have_taken_is_told_from_its_second_copy(
    make_bridge: Callable[[], Bridge],
    monkeypatch: pytest.MonkeyPatch,
    delay_s: float,
    maybe_taken: bool,
    flags: list[int],
) -> None:
    bridge, refusing = make_bridge(), Refusing(maybe_taken=maybe_taken)
    monkeypatch.setattr(bridge.broker, "park" if delay_s else "publish", refusing)

    later(bridge, a_message(), delay_s)

    assert [message.redelivered for message in refusing.seen] == flags


@pytest.mark.parametrize("redelivered", [True, False])
def test_an_unknown_message_that_came_before_says_so_while_it_waits(
    make_bridge: Callable[[], Bridge], monkeypatch: pytest.MonkeyPatch, redelivered: bool
) -> None:
    bridge, parked = make_bridge(), list[Message]()
    monkeypatch.setattr(bridge.broker, "park", lambda messages, timeout_s: parked.append(messages[0][0]))

    put_off_unknown(bridge, a_message(task="unknown"), redelivered=redelivered)

    assert [message.redelivered for message in parked] == [int(redelivered)]


@pytest.mark.parametrize("put_off", [put_off_unknown, put_off_paused])
def test_what_is_put_off_runs_once_if_its_worker_dies_before_it_acknowledges(
    make_bridge: Callable[[], Bridge], monkeypatch: pytest.MonkeyPatch, put_off: Callable[[Bridge, Message], None]
) -> None:
    dying, bridge, parked = make_bridge(), make_bridge(), list[Message]()
    monkeypatch.setattr(dying.broker, "park", lambda messages, timeout_s: parked.append(messages[0][0]))
    message = a_message()
    put_off(dying, message)

    assert isinstance(run_and_settle(bridge, message, redelivered=True), Done)
    assert run_and_settle(bridge, parked[0]) == NotRun("ended before")


def test_a_hook_that_exits_is_logged_and_one_that_is_interrupted_ends() -> None:
    hooks, heard = Hooks(), list[str]()
    hooks.named("succeeded").append(lambda _: sys.exit(1))
    hooks.named("succeeded").append(lambda _: heard.append("next"))

    hooks.call(Event(name="succeeded", message=a_message()))

    def end(_: Event) -> None:
        raise Interrupted

    hooks.named("dead").append(end)
    with pytest.raises(Interrupted):
        hooks.call(Event(name="dead", message=a_message()))
    assert heard == ["next"]
