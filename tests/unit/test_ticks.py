"""What is kept of schedules is read whoever has written it: a newer release, or somebody else (rules S8 and I1)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from taskbridge.stores.backend import Write, head_of
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.ticks import Plan, ScheduleState, TickClaim, Ticks, key_of, loads


def test_what_a_newer_release_tells_beside_what_is_known_here_is_left_out() -> None:
    """Else a paused schedule would go on as soon as an older worker reads of it."""
    known = ScheduleState(settled_until=5.0, paused=True, last_id="m", last_planned_at=4.0, missed=2)
    plan = Plan(state=known, claims={6.0: ("one", 16.0)})
    state, claims = json.loads(plan.dumps())
    newer = [{**state, "owner": "me"}, [[*claim, "more"] for claim in claims], {"more": 1}]
    assert loads(json.dumps(newer)) == plan


@pytest.mark.parametrize(
    "odd",
    [
        *("", "x", "[", "5", "[]", "[null]", "[5,[]]", "[[],[]]", "[{},[]]"),
        *("[null,5]", "[null,[[1]]]", '[null,"abc"]'),
        *('[{"settled_until":"x"},[]]', '[{"settled_until":NaN},[]]', '[{"settled_until":1,"last_id":5},[]]'),
        *(f'[null,[[{"9" * 400},"c",1]]]', "[" * 100_000),
    ],
)
def test_what_can_not_be_read_begins_anew(odd: str) -> None:
    assert loads(odd) == Plan()


def test_a_tick_is_settled_without_being_read_again_unless_its_schedule_was_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = MemoryBackend(lambda: 0.0)
    ticks, other, get = Ticks(backend), Ticks(backend), backend.get
    read: list[str] = []

    def reading(keys: Any, **given: Any) -> Any:
        read.extend(keys)
        return get(keys, **given)

    monkeypatch.setattr(backend, "get", reading)
    for at in (10.0, 20.0):
        assert ticks.claim("s", at, claimant="one", now=at, lease_s=10.0, timeout_s=1) is TickClaim.OURS
        if at == 20.0:
            other.pause("s", paused=True, at=at, timeout_s=1)
        before = len(read)
        ticks.settle("s", at, message_id=f"m{at}", missed=0, timeout_s=1)
        assert len(read) - before == (at == 20.0)
        state = other.states(["s"], timeout_s=1)["s"]
        assert (state.settled_until, state.last_id, state.paused) == (at, f"m{at}", at == 20.0)
    ticks.settle("s", 15.0, message_id="older", missed=1, timeout_s=1)
    assert other.states(["s"], timeout_s=1)["s"].last_id == "m20.0"


def test_a_claim_of_an_instant_that_is_none_is_left_out() -> None:
    state = Plan(state=ScheduleState(settled_until=5.0))
    text = json.dumps([json.loads(state.dumps())[0], [[each, "one", 1.0] for each in (-1e300, 1e300, float("nan"))]])
    assert loads(text) == state


def test_a_claim_by_a_clock_that_was_ahead_holds_a_schedule_up_no_longer_than_any() -> None:
    ticks = Ticks(MemoryBackend(time.time))

    def claim(claimant: str, now: float) -> TickClaim:
        return ticks.claim("s", 100.0, claimant=claimant, now=now, lease_s=10.0, timeout_s=1)

    assert claim("ahead", 1e6) is TickClaim.OURS
    assert claim("one", 1000.0) is TickClaim.AGAIN
    assert claim("other", 1001.0) is TickClaim.CLAIMED
    assert claim("other", 1010.0) is TickClaim.AGAIN


class Edited:
    """A schedule of which one tick, 100.0, was claimed by `one` as it was changed at 101.0."""

    def __init__(self, *, paused: bool = False) -> None:
        self.backend = MemoryBackend(lambda: 0.0)
        self.ticks = Ticks(self.backend)
        self.ticks.begin("s", now=lambda: 90.0, revision=1, begins_at=90.0, timeout_s=1)
        assert self.claim("one", 100.0, 100.0) is TickClaim.OURS
        if paused:
            self.ticks.pause("s", paused=True, at=100.0, timeout_s=1)
        self.write(self.plan.begun(revision=3, begins_at=101.0, at=101.0))

    @property
    def plan(self) -> Plan:
        [text] = self.backend.get([key_of("s")], timeout_s=1)
        return loads(text)

    @property
    def state(self) -> ScheduleState:
        return self.ticks.states(["s"], timeout_s=1)["s"]

    def write(self, plan: Plan) -> None:
        [text] = self.backend.get([key_of("s")], timeout_s=1)
        assert self.backend.write([Write(key_of("s"), head_of(text), plan.dumps())], timeout_s=1) == [True]

    def claim(self, claimant: str, planned_at: float, now: float) -> TickClaim:
        return self.ticks.claim("s", planned_at, claimant=claimant, now=now, lease_s=10.0, timeout_s=1)

    def settle(self, planned_at: float, message_id: str = "", missed: int = 0) -> None:
        self.ticks.settle("s", planned_at, message_id=message_id, missed=missed, timeout_s=1)


def test_a_tick_that_was_about_to_be_sent_as_its_schedule_was_changed_is_sent_by_its_claimant_alone() -> None:
    edited = Edited()

    assert edited.claim("other", 100.0, 120.0) is TickClaim.SETTLED
    edited.settle(100.0, "m")
    assert (edited.state.last_id, edited.state.last_planned_at) == ("m", 100.0), "`overlap` asks for that"
    assert edited.state.settled_until == 101.0
    assert edited.claim("other", 120.0, 130.0) is TickClaim.OURS
    assert edited.state.missed == 0


def test_it_counts_as_missed_once_if_its_claimant_says_nothing_in_time(caplog: pytest.LogCaptureFixture) -> None:
    edited = Edited()

    assert edited.claim("other", 105.0, 105.0) is TickClaim.OURS
    assert edited.state.missed == 0, "its claimant may send it yet"
    edited.settle(105.0, "n")
    assert edited.claim("other", 111.0, 111.0) is TickClaim.OURS
    edited.settle(111.0, "o")
    assert edited.claim("other", 112.0, 112.0) is TickClaim.OURS
    edited.settle(100.0, "m")
    assert (edited.state.missed, edited.state.last_id, set(edited.plan.claims)) == (1, "o", {112.0})
    at = "1970-01-01T00:01:40+00:00"
    [told] = [text for text in caplog.messages if "missed" in text]
    assert told == f"schedule s: 1 missed, from {at} to {at} (changed as it was to send)"


@pytest.mark.parametrize("is_refused", [True, False])
def test_it_counts_as_missed_if_its_claimant_could_not_send_it(is_refused: bool) -> None:
    edited = Edited()
    for _ in range(2):
        if is_refused:
            edited.ticks.release("s", 100.0, claimant="one", timeout_s=1)
        else:  # its arguments can't be encoded, say
            edited.settle(100.0, missed=1)

    assert (edited.state.missed, edited.plan.claims) == (1, {})


def test_what_is_paused_or_begins_anew_in_the_code_is_not_missed() -> None:
    assert Edited(paused=True).plan.claims == {}

    edited = Edited()
    edited.ticks.note({"s": ["task", "a"]}, knows=lambda _: True, at=102.0, timeout_s=1)
    edited.ticks.note({"s": ["task", "b"]}, knows=lambda _: True, at=103.0, timeout_s=1)
    assert (edited.plan.claims, edited.state.missed, edited.state.settled_until) == ({}, 0, 103.0)


def test_a_claim_of_a_tick_that_is_due_after_an_edit_is_kept() -> None:
    edited = Edited()
    assert edited.claim("one", 104.0, 103.9) is TickClaim.OURS, "by a clock that is a little behind"
    edited.write(edited.plan.begun(revision=5, begins_at=103.9, at=103.9))

    assert edited.claim("other", 104.0, 104.0) is TickClaim.CLAIMED
    edited.settle(104.0, "m")
    assert edited.claim("other", 104.0, 104.1) is TickClaim.SETTLED
