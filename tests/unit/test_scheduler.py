"""CR: any number of schedulers send each tick once, whoever is killed or stopped, and wherever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from itertools import takewhile
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest

from taskbridge import BrokerUnavailable, Cron, Every, StoreUnavailable
from taskbridge.durations import moment
from taskbridge.schedules.plan import CatchUp, Schedule, Timing, decide
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.records import State, Status
from taskbridge.stores.ticks import Ticks
from tests.unit.scheduler_world import CALL, Actor, World
from tests.unit.test_schedules import WINDOWS

WORKERS = 5


def scheduled(name: str, timing: Timing) -> Schedule:
    return Schedule(name=name, task="task", timing=timing)


def due(timing: Timing, begin: float, end: float) -> list[float]:
    return list(takewhile(lambda tick: tick <= end, timing.ticks(begin)))


@contextmanager
def world_of(*schedules: Schedule, begin: float, seed: int = 1, ticks: Any = None) -> Generator[World]:
    world = World(
        ticks=Ticks(MemoryBackend(lambda: begin)) if ticks is None else ticks, schedules=schedules, now=begin, seed=seed
    )
    try:
        yield world
    finally:
        world.close()


def all_day(zone: str, catch_up: CatchUp) -> list[Schedule]:
    """Return schedules that are due in the skipped and the repeated hour, and at other times."""
    return [
        scheduled("in the hour", Cron("30 2 * * *", timezone=zone, catch_up=catch_up)),
        scheduled("often in it", Cron("*/15 1-2 * * *", timezone=zone, catch_up=catch_up)),
        scheduled("all the time", Cron("*/20 * * * *", timezone=zone, catch_up=catch_up)),
        scheduled("every", Every(timedelta(hours=1), catch_up=catch_up)),
    ]


def a_day_in_disorder(ticks: Ticks) -> None:
    """Check that five schedulers on a store, which are killed and stopped, send each tick once."""
    begin, end = 1.8e9, 1.8e9 + 86400
    schedules = [
        scheduled("every", Every(600, catch_up="all")),
        scheduled("cron", Cron("*/15 1-2 * * *", timezone="Europe/Rome", catch_up="all")),
    ]
    with world_of(*schedules, begin=begin, seed=3, ticks=ticks) as world:
        for number in range(WORKERS):
            world.add(f"worker {number}")
        world.run(end, disorder=0.03)
        world.run(end + 7200)
        for schedule in schedules:
            assert [tick for tick in world.planned(schedule.name) if tick <= end] == due(schedule.timing, begin, end)
            assert world.state(schedule.name).missed == 0
    assert world.kills > 20


@pytest.mark.parametrize(("zone", "day"), WINDOWS)
def test_four_days_with_kills_and_stops_are_sent_as_planned_each_tick_once(zone: str, day: date) -> None:
    schedules = all_day(zone, "all")
    begin = (datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) - timedelta(days=2)).timestamp()
    end = begin + 4 * 86400
    with world_of(*schedules, begin=begin, seed=day.toordinal()) as world:
        for number in range(WORKERS):
            world.add(f"worker {number}")
        world.run(end, disorder=0.02)
        kills, freezes = world.kills, world.freezes
        world.run(end + 2 * 3600)  # whoever is left, and comes back, sends what is left

    assert kills > 40
    assert freezes > 40
    for schedule in schedules:
        seen = [tick for tick in world.planned(schedule.name) if tick <= end]
        assert seen == due(schedule.timing, begin, end), schedule.name
        assert world.state(schedule.name).missed == 0


@pytest.mark.parametrize("catch_up", get_args(CatchUp))
def test_as_long_as_one_worker_lives_nothing_is_missed_whatever_becomes_of_the_others(catch_up: CatchUp) -> None:
    schedules = [
        scheduled("often", Every(5, catch_up=catch_up)),
        scheduled("cron", Cron("* * * * *", catch_up=catch_up)),
    ]
    begin = 1.8e9
    with world_of(*schedules, begin=begin, seed=7) as world:
        world.away_s = (0.5, 5.0, 60.0)
        world.add("the one", is_mortal=False)
        for number in range(WORKERS - 1):
            world.add(f"worker {number}")
        world.run(begin + 3600, disorder=0.06)

    assert world.kills > 100
    for schedule in schedules:
        seen = [tick for tick in world.planned(schedule.name) if tick <= begin + 3600 - 60]
        assert seen == due(schedule.timing, begin, begin + 3600 - 60)
        assert world.state(schedule.name).missed == 0


def test_a_tick_is_sent_again_with_the_same_id_by_whoever_comes_after_a_claimant_that_died() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60)), begin=begin) as world:
        world.add("first")
        [first] = world.actors
        while not world.sent:
            world.run(world.now + 0.02)
        first.kill()  # it has sent, and not settled
        world.actors.remove(first)
        world.add("second")
        world.run(begin + 90)

    [(key, times)] = world.sent.items()
    assert key[1] == begin + 60
    assert times == 2
    assert world.state("s").missed == 0


@pytest.mark.parametrize(("catch_up", "sent", "missed"), [("none", 0, 60), ("one", 1, 59), ("all", 60, 0)])
def test_what_was_due_while_nobody_was_there_is_caught_up_as_it_is_set(
    catch_up: CatchUp, sent: int, missed: int
) -> None:
    begin, timing = 1.8e9, Every(60, catch_up=catch_up)
    with world_of(scheduled("s", timing), begin=begin) as world:
        world.add("first")
        world.run(begin + 150)
        [first] = world.actors
        first.kill()
        world.actors.remove(first)
        world.now = begin + 3750
        for number in range(WORKERS):
            world.add(f"worker {number}")
        world.run(begin + 3890)

    assert len([tick for tick in world.planned("s") if begin + 150 < tick < begin + 3750]) == sent
    assert world.state("s").missed == missed
    assert set(world.sent.values()) == {1}
    regular = [tick for tick in due(timing, begin, begin + 3890) if tick <= begin + 150 or tick > begin + 3750]
    assert set(regular) <= set(world.planned("s"))


@pytest.mark.parametrize(("catch_up", "sent"), [("none", 0), ("one", 1), ("all", 6)])
def test_what_was_due_while_the_store_was_away_is_caught_up_as_it_is_set(catch_up: CatchUp, sent: int) -> None:
    begin, timing = 1.8e9, Every(10, catch_up=catch_up)
    with world_of(scheduled("s", timing), begin=begin) as world:
        for number in range(3):
            world.add(f"worker {number}")
        world.run(begin + 35)
        world.away = True
        world.run(begin + 95)
        world.away = False
        world.run(begin + 130)

    seen = world.planned("s")
    assert len([tick for tick in seen if begin + 35 < tick < begin + 95]) == sent
    assert [tick for tick in seen if tick < begin + 35 or tick > begin + 99] == [
        begin + second for second in (10, 20, 30, 100, 110, 120, 130) if begin + second in seen
    ]
    assert {begin + 100, begin + 110, begin + 120} <= set(seen)
    assert world.state("s").missed == 6 - sent


def test_a_decision_that_takes_longer_than_a_claim_lasts_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60, catch_up="none")), begin=begin) as world:
        world.add("first")
        world.run(begin + 90)

        def slow(*args: Any, **given: Any) -> Any:
            world.now += 9.0  # a claim lasts 10 s
            return decide(*args, **given)

        monkeypatch.setattr("taskbridge.schedules.sender.decide", slow)
        world.run(begin + 250)

    assert world.planned("s") == [begin + 60, begin + 120, begin + 180, begin + 240]


def test_a_store_that_takes_its_time_to_tell_of_the_last_message_keeps_no_tick_from_being_sent() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60, overlap="skip")), begin=begin) as world:
        world.add("first")
        world.run(begin + 70)
        [actor] = world.actors
        get = actor.get

        def slow(*args: Any, **given: Any) -> Any:
            world.now += 12.0 if world.now < begin + 130 else 0.0  # longer than a claim lasts
            return get(*args, **given)

        actor.get = slow  # type: ignore[method-assign]
        world.run(begin + 150)

    assert world.planned("s") == [begin + 60, begin + 120]


def test_very_many_missed_ticks_are_dealt_with_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.schedules.plan.MOST_AT_ONCE", 1000)
    begin = 1.8e9
    schedules = [scheduled(catch_up, Every(1, catch_up=catch_up)) for catch_up in ("none", "one")]
    with world_of(*schedules, begin=begin) as world:
        world.add("first")
        world.run(begin + 0.5)
        world.actors[0].kill()
        world.actors.clear()
        world.now = begin + 50_000.5
        world.add("second")
        world.run(begin + 50_010)
        for schedule in schedules:
            sent = [tick for tick in world.planned(schedule.name) if tick <= begin + 50_000]
            assert sent == ([] if schedule.name == "none" else [begin + 50_000])
            assert world.state(schedule.name).missed == 50_000 - len(sent)


def test_a_schedule_that_is_gone_is_not_looked_at() -> None:
    begin = 1.8e9
    gone, stays = scheduled("gone", Every(5)), scheduled("stays", Every(60))
    with world_of(gone, stays, begin=begin) as world:
        world.add("first")
        world.run(begin + 7)
        world.schedules = [stays]
        world.run(begin + 61)
        [actor] = world.actors

        assert actor.wake_at == begin + 120
        assert world.planned("gone") == [begin + 5]


def test_what_a_fast_clock_has_settled_into_the_future_is_planned_again() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(10, catch_up="none")), begin=begin) as world:
        world.add("worker")
        world.run(begin + 15)
        world.ticks.settle("s", begin + 86400, message_id="", missed=8639, timeout_s=5)
        world.run(begin + 55)

    assert world.planned("s") == [begin + 10, begin + 30, begin + 40, begin + 50], "at 20 it was found"


def test_a_plan_that_changed_begins_anew_and_those_who_keep_to_the_former_go_on() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(3600, catch_up="all")), begin=begin) as world:
        world.add("old")
        world.run(begin + 1800)
        world.actors[0].planned = dict(world.actors[0].planned()).copy  # type: ignore[method-assign]
        world.schedules = [scheduled("s", Every(60, catch_up="all"))]
        world.add("new")
        world.run(begin + 3650)

    assert world.planned("s") == due(Every(60), begin + 1800, begin + 3650)
    assert set(world.sent.values()) == {1}


def test_a_schedule_that_can_not_be_dealt_with_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begin_of = 1.8e9, Actor.begin

    def odd(self: Actor, schedule: str, **given: Any) -> Any:
        if schedule == "odd":
            raise RuntimeError("unheard of")
        return begin_of(self, schedule, **given)

    monkeypatch.setattr(Actor, "begin", odd)
    with world_of(scheduled("odd", Every(5)), scheduled("sound", Every(5)), begin=begin) as world:
        world.add("worker")
        world.run(begin + 21)

    assert world.planned("sound") == due(Every(5), begin, begin + 20)


def test_a_process_that_stood_still_does_not_send_all_that_was_due_meanwhile() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60)), begin=begin) as world:
        world.add("only")
        world.run(begin + 90)
        world.actors[0].wake_at = begin + 3630
        world.run(begin + 3650)

    assert world.planned("s") == [begin + 60, begin + 3600]
    assert world.state("s").missed == 58


@pytest.mark.parametrize("state", get_args(State))
def test_overlap_skip_sends_nothing_before_the_last_one_has_ended(state: State) -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60, overlap="skip")), begin=begin) as world:
        world.add("a")
        world.add("b")
        world.run(begin + 90)
        last_id = world.state("s").last_id
        world.records[last_id] = Status(id=last_id, task="task", queue="q", state=state, enqueued_at=moment(begin))
        world.run(begin + 130)

    has_ended = state in ("done", "dead", "discarded", "cancelled")
    assert world.planned("s") == [begin + 60, begin + 120] if has_ended else [begin + 60]
    assert world.state("s").missed == (0 if has_ended else 1)


def test_a_message_without_a_record_is_no_reason_to_skip() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60, overlap="skip")), begin=begin) as world:
        world.add("a")
        world.run(begin + 130)

    assert world.planned("s") == [begin + 60, begin + 120]


def test_a_paused_schedule_sends_nothing_and_goes_on_from_where_it_is_resumed() -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60, catch_up="all")), begin=begin) as world:
        world.add("a")
        world.add("b")
        world.run(begin + 90)
        world.ticks.pause("s", paused=True, at=world.now, timeout_s=5)
        world.run(begin + 200)
        world.ticks.pause("s", paused=False, at=world.now, timeout_s=5)
        world.run(begin + 250)

    assert world.planned("s") == [begin + 60, begin + 240]
    assert world.state("s").missed == 0


def test_a_tick_that_can_not_be_sent_at_all_counts_as_missed_and_the_next_one_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = 1.8e9
    with world_of(scheduled("s", Every(60)), begin=begin) as world:
        world.add("a")
        [actor] = world.actors
        send = actor.send

        def refuse(schedule: Schedule, planned_at: float) -> str:
            if planned_at == begin + 60:
                raise LookupError("no such queue")
            return send(schedule, planned_at)

        monkeypatch.setattr(actor, "send", refuse)
        world.run(begin + 130)

    assert world.planned("s") == [begin + 120]
    assert world.state("s").missed == 1


def test_a_schedule_with_much_to_catch_up_does_not_hold_up_the_others() -> None:
    begin = 1.8e9
    with world_of(scheduled("much", Every(1, catch_up="all")), scheduled("other", Every(60)), begin=begin) as world:
        world.add("first")
        world.run(begin + 1.5)
        world.actors[0].kill()
        world.actors.clear()
        world.now = begin + 3600.5
        world.add("second")
        while not world.planned("other"):
            world.run(world.now + 0.05)

    assert len(world.planned("much")) < 1000


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("maybe_taken", [False, True])
@pytest.mark.parametrize(("catch_up", "sent"), [("none", []), ("one", [360]), ("all", [60, 120, 180, 240, 300, 360])])
def test_a_queue_that_takes_nothing_holds_up_its_own_schedule_only(
    catch_up: CatchUp, sent: list[float], maybe_taken: bool, workers: int
) -> None:
    begin = 1.8e9
    full = scheduled("full", Every(60, catch_up=catch_up))
    other = scheduled("other", Every(5, catch_up="none"))
    with world_of(full, other, begin=begin) as world:
        for number in range(workers):
            world.add(f"worker {number}")
        world.full_until = {"full": begin + 370}
        world.full_is_unsure = maybe_taken
        world.run(begin + 400)
        world.run(begin + 450)

    assert world.planned("other") == due(other.timing, begin, begin + 449)
    assert world.state("other").missed == 0
    late = [tick - begin for tick in world.planned("full") if tick < begin + 370]
    # What may have been taken is sent again, however late: nobody knows better.
    assert late == sorted({60, *sent} if maybe_taken else sent)
    assert world.planned("full")[-1] == begin + 420


def test_a_claim_that_could_not_be_given_up_is_given_up_before_the_tick_is_sent_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, release = 1.8e9, Actor.release

    def away(self: Actor, *args: Any, **given: Any) -> Any:
        if self.world.now < begin + 630:
            raise BrokerUnavailable("the store is away")
        return release(self, *args, **given)

    monkeypatch.setattr(Actor, "release", away)
    with world_of(scheduled("full", Every(600, catch_up="none")), begin=begin) as world:
        world.add("worker")
        world.full_until = {"full": begin + 620}
        world.run(begin + 1300)

    assert [tick - begin for tick in world.planned("full")] == [1200]


def test_what_is_put_changed_and_deleted_at_run_time_is_sent_once_whoever_is_killed() -> None:
    """Each of 25 schedules sends by its newest plan from when that was put until it was changed or deleted."""
    begin, random = 1.8e9, Random(5)
    lived: dict[str, list[tuple[float, float, int | None]]] = {}  # from, until, and the interval; None is none
    with world_of(begin=begin, seed=5) as world:
        world.away_s = (0.5, 5.0, 60.0)
        world.add("the one", is_mortal=False)
        for number in range(WORKERS - 1):
            world.add(f"worker {number}")
        edit = world.edit()
        for _ in range(160):
            world.run(world.now + random.choice((0.1, 3.0, 15.0)), disorder=0.03)
            name, interval = f"s{random.randrange(25)}", random.choice((None, 5, 7, 11, 13))
            plans = lived.setdefault(name, [])
            if interval is None:
                assert edit.delete(name) is bool(plans and plans[-1][2] is not None)
            else:
                edit.put(name, CALL, every=interval)
            if not plans or plans[-1][2] != interval:
                plans[-1:] = [(plans[-1][0], world.now, plans[-1][2])] if plans else []
                plans.append((world.now, inf, interval))
        end = world.now + 120
        world.run(end)
        seen = {name: world.planned(name) for name in lived}
        counts = Counter((name, planned_at) for name, planned_at, _ in world.sent)

    assert world.kills > 20
    assert set(counts.values()) == {1}, "each instant has one message id"
    late_s = 15.0  # a claim of one who was killed, and until it is noticed
    for name, plans in lived.items():
        planned = {
            tick: until for begin, until, each in plans if each for tick in due(Every(each), begin, min(until, end))
        }
        assert set(seen[name]) <= set(planned), name
        missing = [tick for tick in set(planned) - set(seen[name]) if tick < min(planned[tick], end) - late_s]
        assert missing == [], name


@pytest.mark.parametrize("seed", [1, 2])
def test_each_tick_of_what_is_changed_all_the_time_is_sent_or_missed_whoever_is_killed(seed: int) -> None:
    lost, doubled, most = lost_and_doubled(seed, edits=100)
    assert lost == []
    assert 0 <= doubled <= most, "nobody can tell whether a worker that was killed or stopped has sent what it held"


def lost_and_doubled(seed: int, *, edits: int) -> tuple[list[tuple[str, int]], int, int]:
    """Change schedules while workers are killed and stopped, and count.

    Returns:
        The schedules with ticks that were neither sent nor missed, and how many; how many were both; and how many may
        be, for a worker held them as it was killed or stopped.
    """
    begin, random = 1.8e9, Random(seed)
    plans: dict[str, list[tuple[float, int]]] = {f"s{number}": [] for number in range(6)}
    with world_of(begin=begin, seed=seed) as world:
        world.away_s = (0.5, 5.0)
        for number in range(3):
            world.add(f"worker {number}")
        edit = world.edit()
        for _ in range(edits):
            world.run(world.now + random.choice((0.1, 1.0, 3.0)), disorder=0.05)
            name, interval = random.choice([*plans]), random.choice((1, 2, 3))
            edit.put(name, CALL, every=interval, catch_up="all")
            if not plans[name] or plans[name][-1][1] != interval:
                plans[name].append((world.now, interval))
        world.run(world.now + 40.0)
        lost, doubled = list[tuple[str, int]](), 0
        for name in (name for name in plans if plans[name]):
            state, ends = world.state(name), [*(begun for begun, _ in plans[name][1:]), inf]
            planned = {
                tick
                for (begun, interval), end in zip(plans[name], ends, strict=True)
                for tick in due(Every(interval), begun, min(end, state.settled_until))
            }
            unsent = len(planned - set(world.planned(name)))
            lost += [(name, unsent - state.missed)] if unsent > state.missed else []
            doubled += max(0, state.missed - unsent)
        return lost, doubled, world.kills + world.freezes


def test_the_first_ticks_of_what_is_put_are_late_and_not_missed() -> None:
    begin = 1.8e9 + 0.5
    with world_of(begin=begin) as world:
        world.add("one")
        world.run(begin + 1.0)
        world.edit().put("s", CALL, every=1, catch_up="none")
        world.run(begin + 10.5)
        assert world.planned("s") == due(Every(1), begin + 1.0, begin + 10.0)
        assert world.state("s").missed == 0


def test_a_schedule_that_was_put_and_whose_state_is_lost_begins_anew() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.edit().put("s", CALL, every=10)
        world.shared.backend.remove(["schedule:s"], timeout_s=5.0)
        world.add("one")
        world.run(begin + 47.0)
        assert world.planned("s") == due(Every(10), begin, begin + 45.0)
        assert world.state("s").revision > 0


def test_what_an_edit_cuts_off_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.add("one")
        edit = world.edit()
        edit.put("s", CALL, every=10, catch_up="all")
        world.run(begin + 25.0)
        world.away = True
        world.run(begin + 55.0)
        edit.put("s", CALL, every=10, catch_up="one")  # at the same times: it goes on
        assert world.state("s").missed == 0
        edit.put("s", CALL, every=60)
        assert world.state("s").missed == 3
        world.away = False
        world.run(begin + 130.0)
        assert world.planned("s") == [begin + each for each in (10, 20, 60, 120)]
        world.away = True
        world.run(begin + 250.0)
        edit.delete("s")
    assert [text for text in caplog.messages if "changed first" in text] == [
        "schedule s: 3 missed, from 2027-01-15T08:00:30+00:00 to 2027-01-15T08:00:50+00:00 (it was changed first)",
        "schedule s: 2 missed, from 2027-01-15T08:03:00+00:00 to 2027-01-15T08:04:00+00:00 (it was changed first)",
    ]


def test_an_edit_says_that_it_has_not_counted_all_that_it_cuts_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("listing", "stored"):
        monkeypatch.setattr(f"taskbridge.schedules.{module}.MOST_CUT_OFF", 3)
    begin = 1.8e9
    with world_of(begin=begin) as world:
        edit = world.edit()
        edit.put("s", CALL, cron="* * * * *")
        world.now = begin + 7 * 86400.0
        edit.put("s", CALL, every=60)
        assert world.state("s").missed == 3
        world.now += 150.0
        edit.delete("s")
    assert [text.partition(", from")[0] for text in caplog.messages if "changed first" in text] == [
        "schedule s: at least 3 missed",
        "schedule s: 2 missed",
    ]


def test_nothing_is_changed_before_the_time_by_the_clock_of_the_store_is_known() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        edit = world.edit()
        edit.put("s", CALL, every=10)

        def refuse(**given: Any) -> None:
            raise StoreUnavailable("away")

        world.shared.clock = SimpleNamespace(ensure=refuse)
        changes: list[Callable[[], object]] = [
            lambda: edit.put("s", CALL, every=20),
            lambda: edit.delete("s"),
            lambda: edit.resume("s"),
        ]
        for change in changes:
            with pytest.raises(StoreUnavailable, match="away"):
                change()
        world.shared.clock = None
        [entry] = edit.list()
        assert entry.timing == Every(10, name="s")


def test_a_change_that_waits_for_the_store_counts_from_when_it_is_made() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        edit = world.edit()
        edit.put("s", CALL, every=10)
        backend = world.shared.backend
        get, waits = backend.get, [True]

        def slow(keys: Any, **given: Any) -> Any:
            if "schedule:s" in keys and waits:
                waits.clear()
                world.now = begin + 21.0
            return get(keys, **given)

        backend.get = slow
        edit.put("s", CALL, every=4)
        assert (world.state("s").settled_until, world.state("s").missed) == (begin + 21.0, 2)
        backend.get, waits = get, [True]
        backend.get = slow
        world.now = begin + 15.0
        edit.delete("s")
        assert world.state("s").settled_until == begin + 21.0


def test_one_look_at_the_store_tells_of_all_that_is_due() -> None:
    begin, asked = 1.8e9, Counter[str]()
    with world_of(*(scheduled(f"s{number}", Every(60)) for number in range(50)), begin=begin) as world:
        world.add("one")
        world.run(begin + 30.0)
        backend = world.shared.backend
        get = backend.get

        def counting(keys: Any, **given: Any) -> Any:
            asked["get"] += 1
            return get(keys, **given)

        backend.get = counting
        world.run(begin + 90.0)
        assert len(world.sent) == 50
    assert asked["get"] <= 50 + 5, "one for the claim of each, and some a step"


def test_a_pause_outlives_a_change_and_not_a_deletion() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.add("one")
        edit = world.edit()
        edit.put("s", CALL, every=10, enabled=False)
        world.run(begin + 30.0)
        edit.put("s", CALL, every=5)
        world.run(begin + 60.0)
        assert world.planned("s") == []
        assert edit.delete("s")
        edit.put("s", CALL, every=5)
        world.run(begin + 92.0)
        assert world.planned("s") == due(Every(5), begin + 60.0, begin + 90.0)


def test_what_is_put_again_at_the_same_times_goes_on_with_what_is_new_of_it() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.add("one")
        edit = world.edit()
        edit.put("s", CALL, every=10)
        world.run(begin + 25.0)
        revision = world.state("s").revision
        edit.put("s", CALL, every=10)
        assert world.state("s").revision == revision
        edit.put("s", CALL, every=10, expires=5)
        assert world.state("s").revision > revision
        world.run(begin + 47.0)
        assert world.planned("s") == due(Every(10), begin, begin + 45.0)
        assert world.state("s").missed == 0


def test_what_its_queue_has_refused_is_not_sent_late_for_a_change_of_what_is_sent() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.add("one")
        world.run(begin + 1.0)
        edit = world.edit()
        edit.put("s", CALL, every=10, catch_up="none")
        world.full_until = {"s": begin + 20.3}
        world.run(begin + 20.5)
        edit.put("s", CALL, every=10, catch_up="none", expires=60)
        world.run(begin + 35.0)
        assert world.planned("s") == [begin + 30.0]
        assert world.state("s").missed == 2


def test_a_schedule_ends_when_its_messages_would_expire() -> None:
    begin = 1.8e9
    with world_of(begin=begin) as world:
        world.add("one")
        world.edit().put("s", CALL, every=10, expires=moment(begin + 35.0))
        world.run(begin + 100.0)
        assert world.planned("s") == due(Every(10), begin, begin + 35.0)
        [entry] = world.edit().list(runs=3)
        assert entry.next_runs == ()


def test_a_deleted_schedule_leaves_nothing_for_ever() -> None:
    begin = 1.8e9
    clock = [begin]
    backend = MemoryBackend(lambda: clock[0])
    with world_of(begin=begin, ticks=Ticks(backend)) as world:
        edit = world.edit()
        edit.put("s", CALL, every=10)
        edit.delete("s")
        clock[0] += 2 * 3600
        assert world.ticks.states(["s"], timeout_s=5.0) == {}
        edit.put("s", CALL, every=10)
        clock[0] += 2 * 3600
        assert world.state("s").revision > 0
