"""Ticks: which instants of which schedules were sent."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier

from taskbridge.contract.stores.place import TIMEOUT_S, Place, expect, patience_s
from taskbridge.contract.stores.table import check, processes
from taskbridge.stores.base import Store
from taskbridge.stores.ticks import ScheduleState, TickClaim

_LEASE_S = 60.0


def _claim(store: Store, at: float, *, claimant: str = "one", now: float = 1000.0, schedule: str = "s") -> TickClaim:
    return store.ticks.claim(schedule, at, claimant=claimant, now=now, lease_s=_LEASE_S, timeout_s=TIMEOUT_S)


def _settle(store: Store, at: float, *, message_id: str = "", missed: int = 0) -> None:
    store.ticks.settle("s", at, message_id=message_id, missed=missed, timeout_s=TIMEOUT_S)


def _state(store: Store) -> ScheduleState:
    return store.ticks.begin("s", now=lambda: 1e9, timeout_s=TIMEOUT_S)


@check()
def a_schedule_begins_once(p: Place) -> None:
    """A schedule that nobody knew of is settled until it begins, whoever begins again and however many do at once."""
    stores, barrier = [p.store() for _ in range(4)], Barrier(8)

    def begin(number: int) -> float:
        barrier.wait()
        return stores[number % 4].ticks.begin("s", now=lambda: 1000 + number / 8, timeout_s=TIMEOUT_S).settled_until

    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(begin, range(8)))
    expect(len(seen), 1, "how many beginnings there were")
    expect(_state(stores[0]).settled_until, seen.pop(), "what is known later")
    expect(set(stores[0].ticks.states(["s", "t"], timeout_s=TIMEOUT_S)), {"s"}, "which schedules are known")
    expect(dict(stores[0].ticks.states([], timeout_s=TIMEOUT_S)), {}, "of no schedules")


@check()
def what_was_settled_by_a_fast_clock_goes_back(p: Place) -> None:
    """A schedule that was settled far into the future goes back to now; its pause and its counts stay."""
    store, other = p.store(), p.store()
    store.ticks.pause("s", paused=True, at=1000.0, timeout_s=TIMEOUT_S)
    _settle(store, 1e6, message_id="m", missed=3)
    expected = ScheduleState(settled_until=1010.0, paused=True, last_id="m", last_planned_at=1e6, missed=3)
    expect(store.ticks.begin("s", now=lambda: 1010.0, timeout_s=TIMEOUT_S), expected, "what is known then")
    seen = other.ticks.begin("s", now=lambda: 1009.0, timeout_s=TIMEOUT_S)
    expect(seen, expected, "what somebody else sees, whose clock is a little behind")


@check()
def a_changed_schedule_begins_anew(p: Place) -> None:
    """A schedule that is new, was changed, or is there again, begins; whoever notes the same changes nothing."""
    one, two = p.store(), p.store()

    def note(store: Store, at: float, *, knows: str = "task", **plans: str) -> float:
        noted = {name: ["task", plan] for name, plan in plans.items()}
        store.ticks.note(noted, knows=lambda task: task == knows, at=at, timeout_s=TIMEOUT_S)
        return _state(two).settled_until

    one.ticks.begin("s", now=lambda: 10.0, timeout_s=TIMEOUT_S)
    expect(note(one, 20.0, s="a", t="a"), 10.0, "where nothing was noted before")
    expect(note(two, 30.0, s="a", t="a"), 10.0, "the same")
    expect(note(two, 40.0, knows="other", u="a"), 10.0, "by a worker of other tasks")
    expect(note(one, 50.0, s="b", t="a"), 50.0, "another plan")
    expect(note(two, 60.0, s="a", t="a"), 60.0, "the one before again")
    expect(note(two, 70.0, t="a"), 60.0, "without it")
    expect(note(one, 80.0, s="a", t="a"), 80.0, "with it again")


@check()
def a_claim_makes_no_schedule_known(p: Place) -> None:
    """A tick may be claimed before its schedule begins, which then still begins as if nobody knew of it."""
    store = p.store()
    expect(_claim(store, 10.0), TickClaim.OURS, "a claim")
    expect(dict(store.ticks.states(["s"], timeout_s=TIMEOUT_S)), {}, "what is known")
    expect(store.ticks.begin("s", now=lambda: 5.0, timeout_s=TIMEOUT_S).settled_until, 5.0, "its beginning")


@check()
def one_claims_a_tick(p: Place) -> None:
    """Of many that claim a tick at once, one is told that it is theirs."""
    stores, barrier = [p.store() for _ in range(4)], Barrier(16)

    def claim(number: int) -> list[TickClaim]:
        barrier.wait()
        return [_claim(stores[number % 4], float(at), claimant=f"c{number}") for at in range(5)]

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(claim, range(16)))
    for at in range(5):
        counts = Counter(claims[at] for claims in told)
        expect(counts, Counter({TickClaim.OURS: 1, TickClaim.CLAIMED: 15}), f"what 16 were told of tick {at}")
    expect(_claim(stores[0], 0.0, schedule="other"), TickClaim.OURS, "the same instant of another schedule")


@check(processes)
def one_process_claims_a_tick(p: Place) -> None:
    """Of several processes that claim the same ticks, each tick is one's."""
    actors = [p.actor("claim_ticks", "s", "60", f"actor {number}") for number in range(3)]
    for actor in actors:
        expect(actor.line(), "ready", "a process")
    for actor in actors:
        actor.go_on()
    told = [line for actor in actors for line in actor.lines()]
    ours = sorted(float(line.partition(":")[2]) for line in told if line.startswith("ours:"))
    expect(ours, [float(each) for each in range(1, 61)], "the ticks that were somebody's")
    expect({line.partition(":")[0] for line in told}, {"ours", "claimed"}, "what they were told")


@check()
def a_claim_has_a_lease(p: Place) -> None:
    """After its lease a claim may be taken over, by one, who is told so; its own claimant may take it again at once."""
    stores, barrier = [p.store() for _ in range(4)], Barrier(8)
    expect(_claim(stores[0], 10.0, now=1000.0), TickClaim.OURS, "the first")
    expect(_claim(stores[1], 10.0, claimant="two", now=1000.0 + _LEASE_S - 1), TickClaim.CLAIMED, "within its lease")
    expect(_claim(stores[2], 10.0, now=1001.0), TickClaim.AGAIN, "its own claimant")

    def claim(number: int) -> TickClaim:
        barrier.wait()
        return _claim(stores[number % 4], 10.0, claimant=f"c{number}", now=1002.0 + _LEASE_S)

    with ThreadPoolExecutor(8) as pool:
        counts = Counter(pool.map(claim, range(8)))
    expect(counts, Counter({TickClaim.AGAIN: 1, TickClaim.CLAIMED: 7}), "what 8 were told after its lease")


@check()
def a_claim_may_be_taken_back(p: Place) -> None:
    """A claim that its claimant takes back is as if never made; it can't be taken back for another claimant."""
    store, other = p.store(), p.store()
    for at in (10.0, 20.0):
        expect(_claim(store, at), TickClaim.OURS, "a tick")
    other.ticks.release("s", 10.0, claimant="two", timeout_s=TIMEOUT_S)
    expect(_claim(other, 10.0, claimant="two"), TickClaim.CLAIMED, "after somebody else took it back")
    store.ticks.release("s", 10.0, claimant="one", timeout_s=TIMEOUT_S)
    expect(_claim(other, 10.0, claimant="two"), TickClaim.OURS, "after its claimant took it back")
    expect(_claim(other, 20.0, claimant="two"), TickClaim.CLAIMED, "another tick")
    expect(_claim(other, 20.0, claimant="two", now=1001.0 + _LEASE_S), TickClaim.AGAIN, "the same, after its lease")
    store.ticks.release("s", 20.0, claimant="one", timeout_s=TIMEOUT_S)
    expect(_claim(store, 20.0, now=1002.0 + _LEASE_S), TickClaim.CLAIMED, "after who had it before took it back")
    store.ticks.release("unknown", 10.0, claimant="one", timeout_s=TIMEOUT_S)


@check(processes)
def a_killed_claimants_tick_is_claimed_again(p: Place) -> None:
    """The tick of a claimant that was killed is another's after the lease, and not before."""
    store, actor = p.store(), p.actor("claim_tick", "s", "1.5")
    expect(actor.line(), "ours", "the claimant")
    actor.kill()
    claims: list[TickClaim] = []
    deadline = time.monotonic() + patience_s()
    while not claims or (claims[-1] is TickClaim.CLAIMED and time.monotonic() < deadline):
        time.sleep(0.05)
        claims.append(store.ticks.claim("s", 1.0, claimant="two", now=time.time(), lease_s=60, timeout_s=TIMEOUT_S))
    expect(claims[-1], TickClaim.AGAIN, "after the lease")
    expect(TickClaim.OURS in claims, False, "whether it was ours meanwhile")


@check()
def what_is_settled_stays_settled(p: Place) -> None:
    """A tick that is settled, and all before it, are never claimed again; what was missed is counted once."""
    store, other = p.store(), p.store()
    store.ticks.begin("s", now=lambda: 5.0, timeout_s=TIMEOUT_S)
    expect(_claim(store, 5.0), TickClaim.SETTLED, "a tick before its beginning")
    for at in (10.0, 20.5, 30.0):
        expect(_claim(store, at), TickClaim.OURS, "a tick")
    _settle(store, 20.5, message_id="m20", missed=2)
    expect(_state(other), ScheduleState(settled_until=20.5, last_id="m20", last_planned_at=20.5, missed=2), "settled")
    _settle(other, 20.5, message_id="again", missed=2)
    _settle(other, 10.0, message_id="before", missed=2)
    expect(_state(other), ScheduleState(settled_until=20.5, last_id="m20", last_planned_at=20.5, missed=2), "as before")
    for at in (10.0, 20.5):
        expect(_claim(other, at, claimant="two", now=1e6), TickClaim.SETTLED, "a settled tick, after the lease")
    expect(_claim(other, 30.0, claimant="two"), TickClaim.CLAIMED, "a later tick's claim")
    _settle(store, 30.0, missed=1)
    expect(_state(other), ScheduleState(settled_until=30.0, last_id="m20", last_planned_at=20.5, missed=3), "skipped")


@check()
def a_pause_lasts(p: Place) -> None:
    """A pause lasts until it is ended, whatever else happens to the schedule."""
    store, other = p.store(), p.store()
    store.ticks.pause("s", paused=True, at=7.0, timeout_s=TIMEOUT_S)
    expect(_state(other), ScheduleState(settled_until=7.0, paused=True), "one that nobody knew of")
    _settle(other, 8.0, missed=1)
    _claim(other, 9.0)
    expect((_state(store).paused, _state(store).settled_until), (True, 8.0), "after it went on being planned")
    other.ticks.pause("s", paused=False, at=99.0, timeout_s=TIMEOUT_S)
    expect((_state(store).paused, _state(store).settled_until), (False, 8.0), "after its end")


@check()
def a_newer_definition_supersedes_the_one_before(p: Place) -> None:
    """Ticks of a definition that was replaced or deleted can't be claimed; those of another plan begin with it."""
    store, other = p.store(), p.store()

    def begin(revision: int, begins_at: float) -> ScheduleState:
        now = partial(float, 100)
        return store.ticks.begin("s", now=now, revision=revision, begins_at=begins_at, timeout_s=TIMEOUT_S)

    def claim(revision: int, at: float, claimant: str = "one") -> TickClaim:
        seen = replace(store.ticks.states(["s"], timeout_s=TIMEOUT_S)["s"], revision=revision)
        claims = partial(other.ticks.claim, claimant=claimant, now=100.0, lease_s=_LEASE_S, timeout_s=TIMEOUT_S)
        return claims("s", at, seen=seen)

    expect(begin(4, 90.0), ScheduleState(settled_until=100.0, revision=4), "one that nobody knew of")
    expect((claim(4, 110.0), claim(4, 120.0)), (TickClaim.OURS, TickClaim.OURS), "its ticks")
    expect(begin(6, 90.0).settled_until, 100.0, "put anew at the same times")
    expect((claim(4, 130.0), claim(6, 110.0, "two")), (TickClaim.SETTLED, TickClaim.CLAIMED), "and claimed")
    expect(begin(8, 115.0), ScheduleState(settled_until=115.0, revision=8), "put anew at other times")
    expect((claim(8, 115.0), claim(8, 120.0, "two")), (TickClaim.SETTLED, TickClaim.CLAIMED), "and claimed, one before")
    expect(begin(6, 90.0).revision, 8, "what somebody sees who doesn't know of that")
    store.ticks.pause("s", paused=True, at=200.0, timeout_s=TIMEOUT_S)
    seen = ScheduleState(settled_until=115.0, revision=8)
    late = other.ticks.claim("s", 130.0, claimant="one", now=1.0, lease_s=_LEASE_S, seen=seen, timeout_s=TIMEOUT_S)
    expect((late, claim(8, 130.0)), (TickClaim.SETTLED, TickClaim.OURS), "after it was paused, before and after a look")
    expect(_claim(other, 140.0), TickClaim.OURS, "by who has seen nothing")


@check()
def a_claim_that_another_plan_cuts_off_counts_as_missed(p: Place) -> None:
    """What was claimed as another plan began counts as missed when the claim is over, unless it was sent."""
    store, other = p.store(), p.store()

    def begin(revision: int, at: float) -> float:
        now = partial(float, at)
        state = store.ticks.begin("s", now=now, revision=revision, begins_at=at, timeout_s=TIMEOUT_S)
        return state.settled_until

    expect(begin(2, 90.0), 90.0, "its beginning")
    for at in (100.0, 101.0):
        expect(_claim(store, at, now=at), TickClaim.OURS, "a tick")
    expect(begin(4, 110.0), 110.0, "the beginning of another plan")
    expect(_claim(other, 101.0, claimant="two", now=200.0), TickClaim.SETTLED, "a tick of the one before")
    _settle(store, 100.0, message_id="m")
    expect(_claim(other, 120.0, claimant="two", now=120.0), TickClaim.OURS, "one of this, while that may still be sent")
    known = ScheduleState(settled_until=110.0, last_id="m", last_planned_at=100.0, revision=4)
    expect(_state(other), known, "what is known then")
    expect(_claim(other, 130.0, claimant="two", now=102.0 + _LEASE_S), TickClaim.OURS, "one after its claim is over")
    expect(_state(store), replace(known, missed=1), "what is known then")
