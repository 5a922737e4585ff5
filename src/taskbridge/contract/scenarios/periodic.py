"""CR: schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any, Final

from taskbridge import Cron, ScheduleEntry
from taskbridge.contract import deaths
from taskbridge.contract.harness import FINAL, Harness
from taskbridge.contract.probe import START, Record
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import (
    STORED,
    scenario,
    with_processes_and_marks,
    with_records,
    with_records_and_cron,
)
from taskbridge.contract.tasks import Variant

_TICKS: Final = 8
"""How many ticks are waited for."""

_FEW_TICKS: Final = 3
_ON_TIME_S: Final = 1.0
_EVERY_S: Final = 1
_DAY_S: Final = 86400
_CHANGING: Final = ("changed", "back", "again")
_RUNS: Final = 2 * 380
"""More than a year for two runs a day: from one clock change to the next in spring it may be 53 weeks."""

_GONE_S: Final = 3.5
"""How long nobody is there: several ticks."""

_SEEN_S: Final = 5.0
"""How soon workers follow what is put at run time (rule CR8)."""


def planned_at(record: Record) -> float:
    """Return the instant that a message was planned for."""
    headers = record.data["headers"] if "headers" in record.data else record.data["context"]["headers"]
    return datetime.fromisoformat(headers["taskbridge.planned_at"]).timestamp()


def _of(h: Harness, schedule: str, kind: str = START) -> list[Record]:
    """Return what happened to what a schedule sent, so far."""
    found: list[Record] = []
    for record in h.environment.records.all():
        headers = record.data.get("headers") or record.data.get("context", {}).get("headers", {})
        if record.kind == kind and headers.get("taskbridge.schedule") == schedule:
            found.append(record)
    return found


def _ran(h: Harness, schedule: str) -> list[float]:
    """Return the planned instants of what was started, in order, each as often as it was."""
    return sorted(planned_at(record) for record in _of(h, schedule))


def _worker(h: Harness, schedules: Sequence[Mapping[str, Any]], *, dies: str = "", threads: int = 4) -> Any:
    return h.start_worker(threads=threads, variant=Variant(schedules=schedules, dies=dies), answers=not dies)


def _declare(h: Harness, *schedules: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Declare schedules here, to look at them; workers in processes of their own get them as a variant."""
    h.tasks.declare_schedules(schedules)
    return schedules


def _entry(h: Harness, name: str) -> ScheduleEntry:
    return next(entry for entry in h.bridge.schedules.list() if entry.name == name)


def _started(h: Harness, schedule: str) -> set[str]:
    return {record.id for record in _of(h, schedule)}


def _ended(h: Harness, schedule: str) -> set[str]:
    return {record.id for kind in FINAL for record in _of(h, schedule, kind)}


def _goes_on(h: Harness, schedule: str, since: float) -> bool:
    return max(_ran(h, schedule), default=0.0) > since


def _is_whole(instants: Sequence[float]) -> bool:
    """Return whether each second is there from the first of these instants to the last, once or more often."""
    return len(set(instants)) > instants[-1] - instants[0]


def _without_gaps(h: Harness, what: str, instants: Sequence[float], every_s: float) -> None:
    expected = [instants[0] + number * every_s for number in range(len(instants))]
    h.equal(what, [instant - instants[0] for instant in instants], [instant - instants[0] for instant in expected])


@scenario("CR1", "CR2", on=(STORED,), where=with_records)
def ticks_are_sent_once_by_any_number_of_workers(h: Harness) -> None:
    """Three workers send each tick once and in time, and go on where one of them is killed."""
    tick_by_three_workers(h, _TICKS)


def tick_by_three_workers(h: Harness, ticks: int) -> int:
    """Let three workers send so many ticks of a second, and kill one of them halfway.

    Returns:
        How many instants came, each of which was run once.
    """
    schedules = _declare(h, {"name": "second", "every": 1, "catch_up": "all"})
    workers = [_worker(h, schedules) for _ in range(1 if h.target.in_process else 3)]
    first = ticks // 2
    h.until(lambda: len(_ran(h, "second")) >= first, "the first ticks", within_s=first + h.patience_s)
    sent = Counter(planned_at(record) for record in _of(h, "second", "after_send"))
    h.equal("how often a tick was sent", set(sent.values()), {1})
    if not h.target.in_process:
        h.environment.kill(workers[0])
    lease_s = h.spec.lease_s
    h.until(
        lambda: len(_ran(h, "second")) >= ticks,
        "the ticks after that",
        within_s=lease_s + ticks + h.patience_s,
    )
    h.bridge.schedules.pause("second")
    # What the killed worker held, which counts as waiting nowhere, starts again when its lease is over (rule A2).
    limit_s = lease_s + 10 + h.patience_s
    h.until(lambda: _is_whole(_ran(h, "second")), "a run of each instant", within_s=limit_s)
    # One may have been running as its worker was killed: that one is dead.
    h.until(lambda: _ended(h, "second") >= _started(h, "second"), "the end of what was sent", within_s=limit_s)
    h.idle(within_s=limit_s)
    _without_gaps(h, "the instants that were run, each once", _ran(h, "second"), 1)
    early = [record.at - planned_at(record) for record in _of(h, "second") if record.at < planned_at(record)]
    h.equal("what started before its time", early, [])
    late_s = min(record.at - planned_at(record) for record in _of(h, "second"))
    h.in_time("the start of the fastest tick", late_s, _ON_TIME_S)
    h.equal("what was missed", _entry(h, "second").missed, 0)
    return len(_ran(h, "second"))


@scenario("CR1", "X1", "O1", on=(STORED,), where=with_processes_and_marks)
def clocks_that_differ_change_nothing(h: Harness) -> None:
    """Workers whose clocks are hours ahead and behind keep to the store's: what expires, probes, and schedules."""
    schedules = _declare(h, {"name": "second", "every": 1, "catch_up": "all"})
    queues, sent = ("left", "right"), dict[str, str]()
    began = h.bridge.now()
    for queue, ahead_s in zip(queues, (7200.0, -7200.0), strict=True):
        variant = Variant(schedules=schedules, ahead_s=ahead_s)
        h.start_worker(queues=[queue, "contract"], threads=2, variant=variant)
    for queue in queues:
        sent[h.send(Plan(steps=(RETURN,), queue=queue, expires_s=600)).id] = "succeeded"
        sent[h.send(Plan(steps=(RETURN,), queue=queue, delay_s=1, expires_s=0.3)).id] = "discarded"
    h.equal("the health", set(h.bridge.health(*queues, timeout=h.scaled(15)).queues.values()), {"consumed"})
    h.equal("how messages ended", [record.kind for record in h.final(*sent)], list(sent.values()))
    h.until(lambda: len(_ran(h, "second")) >= _FEW_TICKS, "ticks")
    ran = _ran(h, "second")
    h.check(began < ran[0] and ran[-1] <= h.bridge.now(), f"ticks should be between {began} and now: {ran}")
    h.bridge.schedules.pause("second")
    h.idle()
    _without_gaps(h, "the instants that were run, each once", _ran(h, "second"), 1)
    h.equal("what was missed", _entry(h, "second").missed, 0)


@scenario("CR7", on=(STORED,), where=with_processes_and_marks)
def a_changed_schedule_begins_anew(h: Harness) -> None:
    """Of a schedule that was changed, changed back, or removed and added again, nothing is sent that was due before."""
    plans = ({"changed": _DAY_S, "back": 1, "again": 1}, {"changed": 1, "back": _DAY_S}, dict.fromkeys(_CHANGING, 1))
    starts, ends = list[float](), list[float]()
    for plan in plans:
        schedules = [{"name": name, "every": every_s, "catch_up": "all"} for name, every_s in plan.items()]
        starts.append(h.bridge.now())
        worker = _worker(h, schedules)
        for name in (name for name, every_s in plan.items() if every_s == 1):
            h.until(partial(_goes_on, h, name, starts[-1]), f"a tick of {name!r}")
        h.stop(worker)
        ends.append(h.bridge.now())
    h.start_worker()
    h.idle()
    h.check(min(_ran(h, "changed")) > starts[1], "what was changed should begin then")
    _without_gaps(h, "what was run of what was changed, and stayed so", _ran(h, "changed"), 1)
    for name in ("back", "again"):
        h.equal(f"what was due of {name!r}", [each for each in _ran(h, name) if ends[0] < each <= starts[2]], [])


@scenario("CR8", on=(STORED,), where=with_records)
def what_is_put_at_run_time_is_followed_until_it_is_deleted(h: Harness) -> None:
    """A schedule is put, changed and deleted while workers run, and one is killed; each of its ticks is sent once."""
    workers = [h.start_worker(threads=4) for _ in range(1 if h.target.in_process else 3)]
    call, schedules = h.tasks.programs["once"].call([RETURN.plain()]), h.bridge.schedules
    asked_at = h.bridge.now()  # it begins somewhere in between
    schedules.put("live", call, every=1, catch_up="none")
    put_at = h.bridge.now()
    h.until(lambda: len(_ran(h, "live")) >= _FEW_TICKS, "the first ticks")
    seen_s = min(record.at for record in _of(h, "live", "after_send")) - put_at
    h.in_time("what was put", seen_s, _SEEN_S + 1)  # and a second until a tick is due
    if not h.target.in_process:
        h.environment.kill(workers[0])
    h.until(lambda: _goes_on(h, "live", h.bridge.now() - 1) and _is_whole(_ran(h, "live")), "a run of each instant")
    before_at = h.bridge.now()
    schedules.put("live", call, every=2, catch_up="none")  # begins somewhere in between
    changed_at = h.bridge.now()
    h.until(lambda: _goes_on(h, "live", changed_at + 2), "ticks after the change")
    missed = _entry(h, "live").missed
    h.equal("deleting it", schedules.delete("live"), True)
    deleted_at = h.bridge.now()
    h.pause(_GONE_S)
    h.idle(within_s=h.spec.lease_s + 10 + h.patience_s)
    ran = _ran(h, "live")
    h.equal("instants that were run twice", len(ran) - len(set(ran)), 0)
    h.check(asked_at <= ran[0] <= put_at + 1, f"the first tick after {asked_at} should be run, not {ran[0]}")
    h.check(ran[-1] <= deleted_at, f"nothing after {deleted_at} should be run, but {ran[-1]} was")
    last_s = max(record.at for record in _of(h, "live", "after_send")) - deleted_at
    h.in_time("what was about to be sent as it was deleted", last_s, _SEEN_S)
    before = [each for each in ran if each <= before_at]
    _without_gaps(h, "what was run before the change", before, 1)
    _without_gaps(h, "what was run after it", [each for each in ran if each > changed_at], 2)
    cut_off = int(before_at) - int(before[-1])
    h.check(missed >= cut_off, f"{cut_off} ticks were cut off by the change, but {missed} count as missed: {before}")
    h.equal("whether it is there", [entry for entry in schedules.list() if entry.name == "live"], [])


@scenario("CR8", on=(STORED,), where=with_records)
def what_a_change_cuts_off_counts_as_missed(h: Harness) -> None:
    """What was due while no worker was there is not sent once its schedule has other times, and counts as missed."""
    call, schedules = h.tasks.programs["once"].call([RETURN.plain()]), h.bridge.schedules
    worker = h.start_worker(threads=4)
    schedules.put("cut", call, every=1, catch_up="all")
    h.until(lambda: len(_ran(h, "cut")) >= _FEW_TICKS, "the first ticks")
    h.stop(worker)
    gone_at = h.bridge.now()
    h.pause(_GONE_S)
    before_at = h.bridge.now()
    schedules.put("cut", call, every=2, catch_up="all")
    changed_at = h.bridge.now()
    missed = _entry(h, "cut").missed
    h.start_worker(threads=4)
    h.until(lambda: _goes_on(h, "cut", changed_at), "a tick after the change")
    h.equal("deleting it", schedules.delete("cut"), True)
    h.idle()
    ran = _ran(h, "cut")
    h.equal("what was run of what was cut off", [each for each in ran if gone_at < each <= before_at], [])
    last = int(max(each for each in ran if each <= gone_at))
    least = int(before_at) - last - 1  # the worker may have claimed one as it ended
    h.check(
        least <= missed <= int(changed_at) - last,
        f"all from {last} to between {before_at} and {changed_at} should count as missed, but {missed} do",
    )


@scenario("CR2", on=(STORED,), where=with_processes_and_marks)
def a_kill_while_a_tick_is_sent_changes_nothing(h: Harness) -> None:
    """A worker killed between claiming a tick and sending it, or right after, leaves it to another; it runs once."""
    schedules = _declare(h, {"name": "often", "every": _EVERY_S, "catch_up": "all"})
    lease_s = h.spec.lease_s
    for place in deaths.SCHEDULING:
        worker = _worker(h, schedules, dies=place)
        died = worker.wait(lease_s + h.patience_s) is not None
        h.check(died, f"the worker should have died where it was to: {place}")
        h.environment.kill(worker)
    [sent] = {planned_at(record) for record in _of(h, "often", "after_send")}
    _worker(h, schedules)
    h.until(lambda: len(_ran(h, "often")) >= _TICKS, "ticks after that", within_s=2 * lease_s + h.patience_s)
    h.bridge.schedules.pause("often")
    h.idle()
    ran = _ran(h, "often")
    h.equal("the first that was run", ran[0], sent)
    _without_gaps(h, "the instants that were run, each once", ran, _EVERY_S)
    ids = {record.id for record in _of(h, "often", "after_send") if planned_at(record) == sent}
    h.equal("how many ids the tick was sent with", len(ids), 1)


@scenario("CR3", on=(STORED,), where=with_records_and_cron)
def times_of_day_live_through_clock_changes(h: Harness) -> None:
    """A time of day that a clock change skips is due once as that is over; one that comes twice, the first time."""
    zones = {"Europe/Rome": "30 2 * * *", "America/New_York": "30 1,2 * * *", "Australia/Lord_Howe": "45 1 * * *"}
    for zone, cron in zones.items():
        _declare(h, {"name": zone, "cron": cron, "timezone": zone})
    for entry in h.bridge.schedules.list(runs=_RUNS):
        h.check(isinstance(entry.timing, Cron), f"{entry.name} should be a cron schedule")
        hours = len(entry.timing.spec.split()[1].split(","))
        days = Counter(run.date() for run in entry.next_runs)
        for which in (0, -1):  # some of the first day may be over, and some of the last be left out
            del days[entry.next_runs[which].date()]
        h.equal(f"how many runs a day has in {entry.name}", set(days.values()), {hours})
        changes = [run for run in entry.next_runs if run.minute not in (30, 45)]
        repeated = [run for run in entry.next_runs if run.fold]
        h.equal(f"what is due the second time in {entry.name}", repeated, [])
        if "Lord_Howe" not in entry.name:  # there the clocks go from 2:00 to 2:30, and back to 1:30
            apart = {round((after - before).days / 365.25) for before, after in pairwise(changes)}
            h.check(
                bool(changes) and apart <= {1},
                f"{entry.name} should have a time that is skipped once a year: {changes}",
            )
            h.equal(f"when the skipped time is made up for in {entry.name}", {run.hour for run in changes}, {3})
            h.equal("its minute", {run.minute for run in changes}, {0})


@scenario("CR4", "CR6", on=(STORED,), where=with_records)
def what_was_due_meanwhile_is_caught_up_as_asked(h: Harness) -> None:
    """After a time without workers, none of what was due is sent, the latest, or all; what is paused stays so."""
    ways = ("none", "one", "all")
    schedules = _declare(
        h,
        *({"name": way, "every": _EVERY_S, "catch_up": way} for way in ways),
        {"name": "paused", "every": _EVERY_S, "catch_up": "all"},
    )
    first = _worker(h, schedules)
    names = (*ways, "paused")
    h.until(lambda: all(len(_ran(h, name)) >= 2 for name in names), "the first ticks")
    h.bridge.schedules.pause("paused")
    h.stop(first)
    gone_at = h.bridge.now()
    h.pause(_GONE_S)
    paused_after = [instant for instant in _ran(h, "paused") if instant > gone_at]
    _worker(h, schedules)
    h.until(lambda: all(max(_ran(h, way)) > h.bridge.now() - 2 * _EVERY_S for way in ways), "ticks at their time")
    h.until(lambda: len([each for each in _ran(h, "none") if each > gone_at]) >= 2, "ticks after the restart")
    h.equal("what a paused schedule sent", [each for each in _ran(h, "paused") if each > gone_at], paused_after)
    resumed_at = h.bridge.now()
    h.bridge.schedules.resume("paused")
    h.until(lambda: [each for each in _ran(h, "paused") if each > gone_at], "ticks of the schedule that was resumed")
    for name in names:
        h.bridge.schedules.pause(name)
    h.idle()
    h.equal(
        "what was due while it was paused", [each for each in _ran(h, "paused") if gone_at < each <= resumed_at], []
    )
    _caught_up(h, gone_at)


def _caught_up(h: Harness, gone_at: float) -> None:
    """Check what was run, and what was missed, of ticks due while nobody was there."""
    ran = {name: _ran(h, name) for name in ("none", "one", "all", "paused")}
    for name, instants in ran.items():
        h.equal(f"instants of {name!r} that were run twice", len(instants) - len(set(instants)), 0)
    _without_gaps(h, "what was run of 'all'", ran["all"], _EVERY_S)
    after = {name: min(each for each in ran[name] if each > gone_at) for name in ("none", "one")}
    h.check(after["none"] > gone_at + _GONE_S, "of 'none', nothing should be run that was due while nobody was there")
    h.equal("how much earlier 'one' begins again than 'none'", after["none"] - after["one"], _EVERY_S)
    for name in ("none", "one", "all"):
        planned = round((ran[name][-1] - ran[name][0]) / _EVERY_S) + 1
        h.equal(f"what was missed of {name!r}", _entry(h, name).missed, planned - len(ran[name]))
    h.equal("what was missed of 'paused'", _entry(h, "paused").missed, 0)


@scenario("CR5", on=(STORED,), where=with_records)
def what_is_not_to_overlap_waits_for_the_last_one(h: Harness) -> None:
    """A schedule that is not to overlap sends nothing while its last message waits or runs; another one does."""
    schedules = _declare(
        h,
        {"name": "skipping", "every": 1, "overlap": "skip", "gate": "overlap"},
        {"name": "allowing", "every": 1, "gate": "overlap"},
    )
    _worker(h, schedules, threads=8)
    h.until(lambda: len(_ran(h, "allowing")) >= 4, "ticks that overlap")
    h.equal("how many of the others were started", len(_ran(h, "skipping")), 1)
    h.bridge.schedules.pause("allowing")
    h.tasks.open("overlap")
    h.until(lambda: len(_ran(h, "skipping")) >= 3, "ticks after the end of the first")
    h.bridge.schedules.pause("skipping")
    h.idle()
    ran = _ran(h, "skipping")
    skipped = round(ran[-1] - ran[0]) + 1 - len(ran)
    h.check(skipped >= 2, f"some ticks should have been skipped, but only {skipped} were")
    h.check(_entry(h, "skipping").missed >= skipped, f"{skipped} ticks should count as missed: {_entry(h, 'skipping')}")
    h.equal("what was missed of those that overlap", _entry(h, "allowing").missed, 0)
