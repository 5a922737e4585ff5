"""What is kept of schedules is read whoever has written it: a newer release, or somebody else (rules S8 and I1)."""

from __future__ import annotations

import json
import time

import pytest

from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.ticks import Plan, ScheduleState, TickClaim, Ticks, loads


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


def test_a_claim_by_a_clock_that_was_ahead_holds_a_schedule_up_no_longer_than_any() -> None:
    ticks = Ticks(MemoryBackend(time.time))

    def claim(claimant: str, now: float) -> TickClaim:
        return ticks.claim("s", 100.0, claimant=claimant, now=now, lease_s=10.0, timeout_s=1)

    assert claim("ahead", 1e6) is TickClaim.OURS
    assert claim("one", 1000.0) is TickClaim.AGAIN
    assert claim("other", 1001.0) is TickClaim.CLAIMED
    assert claim("other", 1010.0) is TickClaim.AGAIN
