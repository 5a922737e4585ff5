"""Dead letters as an application sees them, in one process."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from taskbridge import Bridge, DeadEntry, DeadLetter, ErrorInfo, Message, NoSuchDeadLetter, RetryPolicy
from taskbridge.contract.odd_errors import TextRaises
from taskbridge.durations import LONGEST_DELAY_S
from taskbridge.message import loads
from taskbridge.stores.base import Claim


@pytest.fixture
def bridge() -> Bridge:
    return Bridge("inline://?threads=0", retry=RetryPolicy.never(), dead_ttl=3600)


def message(id: str = "m1", **changes: Any) -> Message:
    plain = Message(id=id, task="shop.mail", queue="default", args_json="[1]", kwargs_json="{}", enqueued_at=1.0)
    return replace(plain, **changes)


def bury(bridge: Bridge, *messages: Message, **changes: Any) -> None:
    for each in messages:
        letter = DeadLetter(message=each, reason="exhausted", died_at=bridge.now())
        bridge.broker.bury(replace(letter, **changes), timeout_s=1)


def test_a_replay_begins_a_life_of_its_own() -> None:
    dead = message(attempt=5, error=ErrorInfo(type="ValueError", message="x"), waits=2, waits_since=3.0, redelivered=4)
    again = dead.replayed(now=10.0)
    assert again == message(replays=1, due_at=10.0)
    assert again.replayed(now=10.0).life != again.life != dead.life


@pytest.mark.parametrize(("expires_at", "kept"), [(None, None), (9.0, None), (10.0, None), (11.0, 11.0)])
def test_only_an_expiry_that_has_passed_is_forgotten(expires_at: float | None, kept: float | None) -> None:
    assert message(expires_at=expires_at).replayed(now=10.0).expires_at == kept


def test_a_replayed_message_keeps_its_count_on_the_way() -> None:
    again = message(replays=3)
    assert loads(again.dumps()) == again
    assert '"replays"' not in message().dumps()


def test_marks_of_an_earlier_life_do_not_count() -> None:
    store, first = Bridge("dramatiq+memory://").store, message()
    assert store is not None
    marks = store.marks
    marks.started(first)
    marks.ended(first)
    assert marks.claim(first, timeout_s=1) is Claim.ENDED
    assert marks.claim(first.replayed(now=1.0), timeout_s=1) is Claim.RUN


def test_an_unknown_task_can_be_replayed(bridge: Bridge) -> None:
    ran: list[int] = []
    bury(bridge, message(), reason="unknown_task")
    bridge.task(name="shop.mail")(ran.append)
    assert bridge.dead.replay("m1").ids == ("m1",)
    bridge.run_until_idle()
    assert ran == [1]
    assert bridge.dead.list().entries == ()


def test_bytes_that_cannot_be_read_cannot_be_replayed(bridge: Bridge) -> None:
    bridge.broker.bury(DeadLetter(message=None, reason="undecodable", raw=b"}{", died_at=5.0), timeout_s=1)
    [entry] = bridge.dead.list().entries
    assert (entry.raw, entry.task, entry.arguments, entry.died_at) == (b"}{", None, "", _at(5))
    assert bridge.dead.replay(entry.id).unreadable == (entry.id,)
    assert bridge.dead.replay_all().unreadable == (entry.id,)
    assert bridge.dead.get(entry.id) == entry


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def test_background_threads_run_what_is_replayed_before_anything_is_sent() -> None:
    bridge = Bridge("inline://")
    ran = threading.Event()
    bridge.task(name="shop.mail")(lambda _: ran.set())
    bury(bridge, message())
    bridge.dead.replay_all()
    assert ran.wait(60)
    bridge.close()


def test_pages_follow_one_another_though_letters_go(bridge: Bridge) -> None:
    bury(bridge, *(message(f"m{number}") for number in range(5)))
    first = bridge.dead.list(limit=2)
    bridge.dead.purge(entry.id for entry in first.entries)
    second = bridge.dead.list(limit=2, after=first.next)
    third = bridge.dead.list(limit=2, after=second.next)
    assert [entry.id for page in (first, second, third) for entry in page.entries] == ["m0", "m1", "m2", "m3", "m4"]
    assert third.next is None


def test_pages_end_though_a_letter_was_buried_twice(bridge: Bridge) -> None:
    bury(bridge, message("m1"), message("m1"), message("m2"), died_at=5.0)
    page = bridge.dead.list(limit=1)
    seen = [*page.entries]
    while page.next is not None:
        page = bridge.dead.list(limit=1, after=page.next)
        seen += page.entries
        assert len(seen) <= 3, "the pages have no end"
    assert [entry.id for entry in seen] == ["m1", "m2"]


def test_what_makes_no_sense_is_refused(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        bridge.dead.list(limit=0)
    with pytest.raises(ValueError, match="after must be the next of a page, not 'm1'"):
        bridge.dead.list(after="m1")
    with pytest.raises(NoSuchDeadLetter, match="there is no dead letter 'm1'"):
        bridge.dead.get("m1")


@pytest.mark.parametrize("after", ["1e999:m1", "-inf:m1", "nan:m1"])
def test_a_place_that_is_no_time_is_refused(bridge: Bridge, after: str) -> None:
    with pytest.raises(ValueError, match="after must be the next of a page"):
        bridge.dead.list(after=after)


@pytest.mark.parametrize("per_second", [1e-12, 1e-320])
def test_a_slow_replay_delays_no_message_for_more_than_8_years(bridge: Bridge, per_second: float) -> None:
    bridge.task(name="shop.mail")(print)
    bury(bridge, message("m1"), message("m2"))
    assert bridge.dead.replay_all(per_second=per_second).ids == ("m1", "m2")
    assert (bridge.counts().delayed, bridge.counts().dead) == (1, 0)
    status = bridge.handle("m2").status()
    assert status.due_at is not None
    assert status.due_at.timestamp() <= bridge.now() + LONGEST_DELAY_S


def test_arguments_are_shown_as_in_a_call(bridge: Bridge) -> None:
    bury(bridge, message(args_json='[1,{"$":"tuple","v":[2]}]', kwargs_json='{"fast":true}'))
    bury(bridge, message("m2", args_json='[{"$":"no such tag","v":1}]'))
    plain, strange = bridge.dead.list().entries
    assert plain.arguments == "1, (2,), fast=True"
    assert strange.arguments == '[{"$":"no such tag","v":1}] {}'


def test_a_redact_function_sees_no_arguments_that_cannot_be_decoded(bridge: Bridge) -> None:
    bury(bridge, message(args_json='[{"$":"no such tag","v":"secret"}]'))

    @bridge.dead.redact
    def hide(entry: DeadEntry) -> DeadEntry:
        return entry

    assert "secret" not in repr(bridge.dead.get("m1"))


def test_what_an_engine_shows_of_a_message_is_redacted_too(bridge: Bridge) -> None:
    sent = message(args_json='["secret",1]', kwargs_json='{"card":"secret"}')
    assert (bridge.dead.redacts, bridge.dead.shown_arguments(sent)) == (False, ("('secret', 1)", "{'card': 'secret'}"))

    @bridge.dead.redact
    def hide(entry: DeadEntry) -> DeadEntry:
        if not entry.kwargs:
            raise ValueError("unforeseen")
        return replace(entry, args=("***", *entry.args[1:]), kwargs=dict.fromkeys(entry.kwargs, "***"))

    assert (bridge.dead.redacts, bridge.dead.shown_arguments(sent)) == (True, ("('***', 1)", "{'card': '***'}"))
    assert bridge.dead.shown_arguments(replace(sent, kwargs_json="{}")) == ("()", "{}")


@pytest.mark.parametrize("odd", ["returns nothing", "exits", "arguments without a text"])
def test_an_odd_redact_function_shows_nothing_and_ends_nothing(bridge: Bridge, odd: str) -> None:
    sent = message(args_json='["secret"]')

    def hide(entry: DeadEntry) -> Any:
        if odd == "exits":
            raise SystemExit(1)
        return replace(entry, args=(TextRaises(),)) if odd == "arguments without a text" else None

    bridge.dead.redact(hide)
    shown = bridge.dead.shown_arguments(sent)
    assert "secret" not in "".join(shown)
    if odd != "arguments without a text":
        bury(bridge, sent)
        assert bridge.dead.get("m1").arguments.startswith("(hidden: the redact function failed: ")
