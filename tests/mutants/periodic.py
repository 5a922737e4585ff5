"""CR, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from tests.mutants.table import mutant, put

_SCHEDULES = "taskbridge.schedules.plan"
_SCHEDULER = "taskbridge.schedules.sender"
_TICKS = "taskbridge.stores.ticks"

_MANY = "ticks_are_sent_once_by_any_number_of_workers"
_KILLED = "a_kill_while_a_tick_is_sent_changes_nothing"
_CLOCKS = "times_of_day_live_through_clock_changes"
_MEANWHILE = "what_was_due_meanwhile_is_caught_up_as_asked"
_CHANGED = "a_changed_schedule_begins_anew"
_CLOCKS_DIFFER = "clocks_that_differ_change_nothing"
_LIVE = "what_is_put_at_run_time_is_followed_until_it_is_deleted"
_CUT_OFF = "what_a_change_cuts_off_counts_as_missed"
_OVERLAP = "what_is_not_to_overlap_waits_for_the_last_one"


def _claim_otherwise(change: Any) -> None:
    """Answer claims of ticks otherwise."""
    claims = importlib.import_module("taskbridge.stores.ticks").TickClaim
    put(_TICKS, "Ticks.claim", lambda claim: lambda *args, **given: change(claims, claim(*args, **given)))


def _decide_otherwise(change: Any) -> None:
    """Decide about ticks with other arguments."""

    def make(decide: Any) -> Any:
        def otherwise(timing: Any, **given: Any) -> Any:
            changed, arguments = change(timing, given)
            return decide(changed, **arguments)

        return otherwise

    put(_SCHEDULER, "decide", make)


@mutant("CR1", _MANY, "dramatiq+redis")
def everybody_has_the_claim() -> None:
    """Each worker that asks for a tick is told to send it."""
    _claim_otherwise(lambda claims, claim: claims.OURS if claim is claims.CLAIMED else claim)

    def make(settle: Any) -> Any:
        def late(*args: Any, **given: Any) -> Any:
            time.sleep(0.5)  # for that long a tick is claimed and not settled, else chance decides whether two meet
            return settle(*args, **given)

        return late

    put(_TICKS, "Ticks.settle", make)


@mutant("CR1", _MANY)
def ticks_are_sent_early() -> None:
    """A tick is sent half a second before its time."""

    def make(deal: Any) -> Any:
        return lambda self, schedule, watched, state, now: deal(self, schedule, watched, state, now + 0.5) - 0.5

    put(_SCHEDULER, "Ticker._deal", make)


@mutant("CR1", _MANY)
def what_was_sent_is_forgotten() -> None:
    """A tick that was sent is not settled."""
    put(_TICKS, "Ticks.settle", lambda settle: lambda self, schedule, planned_at, **given: None)


@mutant("CR2", _KILLED, "dramatiq+redis")
def a_claim_holds_for_ever() -> None:
    """What a worker has claimed that was killed, nobody else sends."""
    _claim_otherwise(lambda claims, claim: claims.CLAIMED if claim is claims.AGAIN else claim)


@mutant("CR2", _KILLED, "celery+redis")
def each_sends_a_message_of_its_own() -> None:
    """What is sent again has another id."""
    new_id = importlib.import_module("taskbridge.message").new_id
    put("taskbridge.schedules.listing", "tick_id", lambda _: lambda *args: new_id())


@mutant("CR3", _CLOCKS)
def skipped_times_are_left_out() -> None:
    """What a clock change skips is not due on that day."""

    def make(ticks: Any) -> Any:
        def shown_only(self: Any, after: float) -> Any:
            hours = [int(hour) for hour in self.expression.split()[1].split(",")]
            return (tick for tick in ticks(self, after) if datetime.fromtimestamp(tick, self.zone).hour in hours)

        return shown_only

    put(_SCHEDULES, "Cron.ticks", make)


@mutant("CR3", _CLOCKS)
def repeated_times_are_due_twice() -> None:
    """What a clock change repeats is due both times."""

    def make(ticks: Any) -> Any:
        def twice(self: Any, after: float) -> Any:
            for tick in ticks(self, after):
                again = datetime.fromtimestamp(tick, self.zone).replace(fold=1).timestamp()
                yield from sorted({tick, max(tick, again)})

        return twice

    put(_SCHEDULES, "Cron.ticks", make)


@mutant("CR4", _MEANWHILE)
def all_is_always_caught_up() -> None:
    """Everything that was due is sent, whatever the schedule says."""
    _decide_otherwise(lambda timing, given: (timing, {**given, "watched_since": 0.0}))


@mutant("CR4", _MEANWHILE)
def nothing_is_ever_caught_up() -> None:
    """Nothing that was due is sent, whatever the schedule says."""
    _decide_otherwise(lambda timing, given: (replace(timing, catch_up="none"), given))


@mutant("CR4", _MEANWHILE)
def what_is_missed_is_not_counted() -> None:
    """Ticks that were left out count as sent."""

    def make(settle: Any) -> Any:
        return lambda self, *args, missed, **given: settle(self, *args, missed=0, **given)

    put(_TICKS, "Ticks.settle", make)


@mutant("CR5", _OVERLAP)
def everything_overlaps() -> None:
    """Nobody looks whether the last message has ended."""
    put(_SCHEDULER, "Ticker._overlaps", lambda _: lambda self, schedule, state: False)


@mutant("CR6", _MEANWHILE)
def a_pause_is_not_kept() -> None:
    """A paused schedule goes on."""
    _decide_otherwise(lambda timing, given: (timing, {**given, "paused": False}))


@mutant("CR6", _MEANWHILE)
def a_pause_is_caught_up() -> None:
    """What was due during a pause is sent when the schedule is resumed."""
    put("taskbridge.schedules.listing", "Schedules.resume", _resume_and_catch_up)
    put(_SCHEDULER, "decide", _wait_while_paused)


@mutant("CR7", _CHANGED, "celery+redis")
def what_is_planned_is_not_noted() -> None:
    """A schedule that was changed goes on from where the one before was."""
    put(_TICKS, "Ticks.note", lambda note: lambda self, plans, **given: True)


_STORED = "taskbridge.schedules.stored"


@mutant("CR8", _LIVE, "celery+redis")
def nobody_looks_for_what_is_put() -> None:
    """A worker does not look for schedules that others have put."""

    def make(follow: Any) -> Any:
        return lambda self, *, at_once=False: follow(self, at_once=True) if at_once else None

    put("taskbridge.schedules.listing", "Schedules.follow", make)


@mutant("CR8", _LIVE, "dramatiq+redis")
def what_is_put_counts_as_missed() -> None:
    """What is due as a worker comes to see a schedule was missed."""

    def make(watch: Any) -> Any:
        def late(self: Any, schedule: Any, here_since: float, now: float) -> Any:
            known, watched = self._watched.get(schedule.name), watch(self, schedule, here_since, now)
            return watched if watched is known else replace(watched, since=now + 1.5)

        return late

    put(_SCHEDULER, "Ticker._watch", make)


@mutant("CR8", _LIVE, "celery+redis")
def what_was_deleted_goes_on_where_it_is_known() -> None:
    """A worker goes on with what was deleted, and the store doesn't stop it."""
    put(_TICKS, "ScheduleState.supersedes", lambda _: lambda self, revision: False)

    def make(follow: Any) -> Any:
        def keeping(self: Any, *args: Any, **given: Any) -> None:
            before = self.known
            follow(self, *args, **given)
            self.known = {**before, **self.known}

        return keeping

    put(_STORED, "StoredSchedules.follow", make)


@mutant("CR8", _LIVE)
def a_deletion_is_forgotten() -> None:
    """What is deleted stays."""
    put("taskbridge.schedules.listing", "change", _keeping)


@mutant("CR8", _LIVE)
def workers_are_told_of_what_is_not_there() -> None:
    """A change is told, and what was changed is not written with it."""

    def make(commit: Any) -> Any:
        return lambda writes: commit([each for each in writes if not each.key.startswith("planned:")])

    put(_STORED, "Commit", make)


@mutant("CR8", _CUT_OFF)
def what_a_change_cuts_off_is_not_counted() -> None:
    """Nobody looks what was due as a schedule is changed."""
    put("taskbridge.schedules.listing", "cut_off", lambda _: lambda *given: [])


def _keeping(change: Any) -> Any:
    def kept(backend: Any, name: str, decide: Any, **given: Any) -> Any:
        def otherwise(old: Any, plan: Any) -> Any:
            after, *rest = decide(old, plan)
            return (old, plan, None) if after is None else (after, *rest)

        return change(backend, name, otherwise, **given)

    return kept


@mutant("CR1", _CLOCKS_DIFFER, "dramatiq+redis")
def schedules_go_by_each_workers_clock() -> None:
    """A worker plans by its own clock."""
    put("taskbridge.stores.clock", "StoreClock.__call__", lambda _: lambda self: time.time())


@mutant("X1", _CLOCKS_DIFFER, "celery+redis")
def expiry_goes_by_each_workers_clock() -> None:
    """A worker judges by its own clock what has expired."""
    put("taskbridge.parts", "Parts._make_clock", lambda _: lambda self: time.time)


def _resume_and_catch_up(_: Any) -> Any:
    def resume(self: Any, name: str) -> None:
        self._ticks_of(name).pause(name, paused=False, at=self._bridge.now(), timeout_s=5.0)

    return resume


def _wait_while_paused(decide: Any) -> Any:
    decision = importlib.import_module(_SCHEDULES).Decision

    def waiting(timing: Any, **given: Any) -> Any:
        return decision(given["now"] + 0.2) if given["paused"] else decide(timing, **given)

    return waiting
