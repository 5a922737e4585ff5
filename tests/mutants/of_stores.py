"""Stores with one promise broken, each of which must turn the suite red.

They break what is built in, in this process: most of them the store in memory, or what it has in common with SQL.
"""

# What is put in the place of a method is a lambda where it can be, and none of its arguments has a type.
# pyright: reportUnknownLambdaType=none, reportUnknownVariableType=none, reportUnknownMemberType=none
# pyright: reportUnknownArgumentType=none, reportUnknownParameterType=none

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from math import inf
from typing import Any, Final, Literal
from unittest.mock import patch

from taskbridge.contract.stores.table import CHECKS
from taskbridge.stores.backend import ABSENT, NEW
from tests.mutants.applying import STORE, environment

Kind = Literal["memory", "redis", "sqlite", "postgresql"]

_MEMORY: Final = "taskbridge.stores.memory"
_REDIS: Final = "taskbridge.stores.redis.backend"
_SQL: Final = "taskbridge.stores.sql"
_MARKS: Final = "taskbridge.stores.marks"
_RECORDS: Final = "taskbridge.stores.records"
_TICKS: Final = "taskbridge.stores.ticks"
_TRANSITIONS: Final = "taskbridge.stores.transitions"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreMutant:
    """A store with a promise broken.

    Attributes:
        name: The function's that says how.
        title: What is broken, as a sentence.
        check: The name of the check that must fail.
        kind: The store on which it must.
        module: Where it is broken.
        path: What is broken there, such as `Records.create`.
        make: Returns what is put in its place, given what was there.
    """

    name: str
    title: str
    check: str
    kind: Kind
    module: str
    path: str
    make: Callable[[Any], Any]

    def apply(self) -> Callable[[], None]:
        """Break it, in this process, and return what mends it."""
        owner: Any = import_module(self.module)
        *before, last = self.path.split(".")
        for name in before:
            owner = getattr(owner, name)
        was = getattr(owner, last)
        setattr(owner, last, self.make(was))
        return lambda: setattr(owner, last, was)

    @contextmanager
    def broken(self) -> Generator[None]:
        """Break it, in this process and those that a check starts, for as long as the context lasts."""
        mend = self.apply()
        try:
            with patch.dict(os.environ, environment(STORE, self.name)):
                yield
        finally:
            mend()


_mutants: Final[dict[str, StoreMutant]] = {}

MUTANTS: Final[Mapping[str, StoreMutant]] = _mutants
"""Every mutant by name."""

Make = Callable[[Any], Any]


def mutant(check: str, module: str, path: str, kind: Kind = "memory") -> Callable[[Make], Make]:
    """Return a decorator that adds to the table what a function puts in the place of something."""

    def add(make: Make) -> Make:
        name, title = make.__name__, (make.__doc__ or "").partition("\n")[0].rstrip(".")
        if name in _mutants:
            raise ValueError(f"there is a mutant {name!r} already")
        _mutants[name] = StoreMutant(
            name=name, title=title, check=check, kind=kind, module=module, path=path, make=make
        )
        return make

    return add


def unproven() -> list[str]:
    """Return the checks that no mutant turns red."""
    return sorted(set(CHECKS) - {each.check for each in MUTANTS.values()})


# Records


@mutant("a_record_says_what_was_sent", _TRANSITIONS, "new")
def forgets_the_delay(new: Any) -> Any:
    """A record of a delayed message says that it waits for a worker."""
    return lambda message, delay_s=0.0: new(message)


@mutant("many_records_are_made_at_once", _RECORDS, "Records.create")
def makes_a_thousand(create: Any) -> Any:
    """Of many records only a thousand are made."""
    return lambda self, messages, *, timeout_s: create(self, messages[:1000], timeout_s=timeout_s)


@mutant("making_a_record_overwrites_none", _MEMORY, "MemoryBackend.create")
def overwrites(create: Any) -> Any:
    """A record that is there is made anew."""

    def make_anew(self: Any, entries: Any, *, timeout_s: float) -> None:
        self.remove([key for key, _, _ in entries], timeout_s=timeout_s)
        create(self, entries, timeout_s=timeout_s)

    return make_anew


@mutant("what_is_gone_is_not_taken_over", _MEMORY, "MemoryBackend.write")
def takes_over_what_is_gone(write: Any) -> Any:
    """What another process has removed is written again."""

    def take(self: Any, writes: Any, *, timeout_s: float) -> Any:
        there = self.get([each.key for each in writes], timeout_s=timeout_s)
        anyway = [replace(each, seen=NEW) if text is None else each for each, text in zip(writes, there, strict=True)]
        return write(self, anyway, timeout_s=timeout_s)

    return take


@mutant("a_record_tells_of_each_attempt", _TRANSITIONS, "_ended")
def forgets_errors(ended: Any) -> Any:
    """An attempt doesn't tell why it failed."""
    return lambda attempt, ending: (*ended(attempt, ending)[:4], None)


@mutant("a_result_is_kept_as_it_was", _TRANSITIONS, "ended")
def cuts_results(ended: Any) -> Any:
    """A long result is cut."""

    def cut(old: Any, message: Any, ending: Any, run: Any, *, writer: str) -> Any:
        text = ending.result_json
        short = ending if text is None else replace(ending, result_json=text[:65536])
        return ended(old, message, short, run, writer=writer)

    return cut


@mutant("a_message_may_end_without_a_start", _TRANSITIONS, "ended")
def needs_a_start(ended: Any) -> Any:
    """An end without a start changes nothing."""

    def refuse(old: Any, message: Any, ending: Any, run: Any, *, writer: str) -> Any:
        if old is None or not old.get("attempts"):
            return None
        return ended(old, message, ending, run, writer=writer)

    return refuse


@mutant("a_text_may_hold_what_is_no_character", _TRANSITIONS, "ended")
def takes_characters_only(ended: Any) -> Any:
    """An end is recorded with nothing but characters in it."""

    def encode(old: Any, message: Any, ending: Any, run: Any, *, writer: str) -> Any:
        ok = replace(ending, traceback=ending.traceback.encode(errors="ignore").decode(), reason="")
        return ended(old, message, ok, run, writer=writer)

    return encode


@mutant("a_late_start_changes_nothing", _TRANSITIONS, "_of_life")
def takes_late_starts(of_life: Any) -> Any:
    """What an earlier attempt says counts."""
    return lambda old, message: of_life(None if old is None else {**old, "attempt": 0}, message) and old


@mutant("a_late_end_changes_nothing", _TRANSITIONS, "FINAL")
def knows_no_end(final: Any) -> Any:
    """A final record changes."""
    return frozenset()


@mutant("a_late_end_changes_nothing", _REDIS, "RedisBackend.write", "redis")
def writes_over_others(write: Any) -> Any:
    """A record is written though somebody else has written it since it was read or guessed."""

    def write_anyway(self: Any, writes: Any, *, timeout_s: float) -> Any:
        texts = self.get([each.key for each in writes], timeout_s=timeout_s)
        anyway = [
            replace(each, seen=NEW if text is None else text.partition("\n")[0])
            for each, text in zip(writes, texts, strict=True)
        ]
        return write(self, anyway, timeout_s=timeout_s)

    return write_anyway


@mutant("a_replay_begins_anew", _RECORDS, "Records._write_starts", "redis")
def writes_no_starts(write_starts: Any) -> Any:
    """The starts of runs are not written."""
    return lambda self, starts: None


@mutant("an_attempt_ends_once", _TRANSITIONS, "ended")
def ends_twice(ended: Any) -> Any:
    """An attempt that has ended may end again."""

    def end(*args: Any, writer: str) -> Any:
        kept = ended(*args, writer=writer)
        return None if kept is None else {**kept, "over": 0}

    return end


@mutant("a_run_that_was_given_back_is_no_attempt", _TRANSITIONS, "ended")
def counts_what_was_given_back(ended: Any) -> Any:
    """A run that was given back is an attempt."""

    def end(old: Any, message: Any, ending: Any, run: Any, *, writer: str) -> Any:
        kept = ended(old, message, ending, run, writer=writer)
        if kept is None or old is None or ending.state != "queued":
            return kept
        return {**kept, "attempts": old.get("attempts", ())}

    return end


@mutant("a_start_that_its_run_overtook_changes_nothing", _TRANSITIONS, "started")
def takes_overtaken_starts(started: Any) -> Any:
    """A start counts whenever it arrives."""
    return lambda old, message, run, *, writer: started(old and {**old, "writer": ""}, message, run, writer=writer)


@mutant("a_replay_begins_anew", _TRANSITIONS, "created")
def knows_no_replays(created: Any) -> Any:
    """A record of a message that is replayed stays as it was."""
    return lambda old, message, delay_s: created(old, message, delay_s) if old is None else None


@mutant("a_record_of_what_was_not_sent_is_forgotten", _TRANSITIONS, "is_untouched")
def forgets_all(is_untouched: Any) -> Any:
    """A record is forgotten even if something was heard of its message."""
    return lambda row: True


@mutant("a_record_tells_of_the_latest_attempts", _TRANSITIONS, "MOST_ATTEMPTS")
def tells_of_all_attempts(most: Any) -> Any:
    """A record grows by each attempt."""
    return 1_000_000


@mutant("a_record_is_kept_for_result_ttl", _TRANSITIONS, "kept_s")
def keeps_for_ever(kept_s: Any) -> Any:
    """Records are kept for ever."""
    return lambda row, *, result_ttl_s, now, unended_s=0.0: None


@mutant("a_record_is_kept_for_result_ttl", _TRANSITIONS, "kept_s")
def keeps_none_longer(kept_s: Any) -> Any:
    """A record is forgotten after `result_ttl` even if its message still waits."""
    return lambda row, *, result_ttl_s, now, unended_s=0.0: result_ttl_s


@mutant("tables_are_made_by_many_at_once", f"{_SQL}.schema", "version_of", "sqlite")
def looks_for_no_tables(version_of: Any) -> Any:
    """Tables are made without looking whether they are there."""
    return lambda run, finds_schema: 0


# Cancelling


@mutant("what_is_cancelled_before_it_runs_never_starts", _TRANSITIONS, "_won")
def starts_anyway(won: Any) -> Any:
    """A start wins over a cancellation, however late."""
    return lambda row, run: row["state"] == "cancelled"


@mutant("a_start_that_could_not_know_wins", _TRANSITIONS, "_won")
def lets_no_start_win(won: Any) -> Any:
    """A start that could not know of a cancellation changes nothing."""
    return lambda row, run: False


@mutant("what_is_cancelled_stays_so_without_a_run", _TRANSITIONS, "ended")
def ends_what_never_ran(ended: Any) -> Any:
    """An end counts even if its run is not known."""

    def end(old: Any, message: Any, ending: Any, run: Any, *, writer: str) -> Any:
        from taskbridge.stores.transitions import Run  # here, as all that is broken

        known = Run("", 0.0) if run is None else run
        return ended(old, message, ending, known, writer=writer)

    return end


@mutant("what_runs_is_asked_to_end", _TRANSITIONS, "_end")
def lets_it_wait(end: Any) -> Any:
    """A record that was asked to be cancelled may wait for its next attempt."""

    def wait(row: Any, ending: Any, number: int, attempts: Any) -> Any:
        return {**end({**row, "cancel_asked": False}, ending, number, attempts), "cancel_asked": True}

    return wait


@mutant("an_end_says_what_it_left", _RECORDS, "Records.ended")
def says_what_it_was_told(ended: Any) -> Any:
    """Who records an end is told what it said."""

    def told(self: Any, message: Any, ending: Any, *, timeout_s: float) -> Any:
        ended(self, message, ending, timeout_s=timeout_s)
        return ending.state

    return told


@mutant("what_is_final_is_not_cancelled", _TRANSITIONS, "cancelled")
def cancels_what_is_final(cancelled: Any) -> Any:
    """A final record can be cancelled."""
    return lambda old, *, at, interrupt: {**old, "state": "cancelled", "ended_at": at}


@mutant("what_is_to_be_interrupted_says_so", _TRANSITIONS, "_LASTING")
def forgets_what_is_to_be_interrupted(lasting: Any) -> Any:
    """A start forgets that its run is to be interrupted."""
    return tuple(name for name in lasting if name != "interrupt")


@mutant("a_record_tells_how_far_a_run_has_come", _TRANSITIONS, "_LASTING")
def keeps_the_progress_of_the_attempt_before(lasting: Any) -> Any:
    """A run that has told nothing shows how far the one before had come."""
    return (*lasting, "progress")


@mutant("cancelling_and_starting_are_atomic", _MEMORY, "MemoryBackend.write")
def starts_in_two_steps(write: Any) -> Any:
    """A start is written without looking whether the record still is what was read."""
    changed = threading.Condition()
    reached: set[tuple[str, bool]] = set()

    def reach(key: str, cancels: bool) -> None:
        with changed:
            reached.add((key, cancels))
            changed.notify_all()

    def wait_for(key: str, cancels: bool) -> None:
        with changed:  # else chance decides whether the two meet
            changed.wait_for(lambda: (key, cancels) in reached, 1.0)

    def two_steps(self: Any, writes: Any, *, timeout_s: float) -> Any:
        (each,) = writes
        if each.cancels:
            wait_for(each.key, False)
            done = write(self, writes, timeout_s=timeout_s)
            reach(each.key, True)
            return done
        reach(each.key, False)
        wait_for(each.key, True)
        with self._lock:
            self._put(each.key, each.text, each.kept_s)
        return [True]

    return two_steps


@mutant("a_cursor_tells_what_was_cancelled_since", _TRANSITIONS, "life_of")
def tells_the_id(life_of: Any) -> Any:
    """A cancellation is told by the message's id."""
    return lambda record: record.id


@mutant("no_cancellation_is_skipped", _MEMORY, "MemoryBackend.cancelled_since")
def moves_the_cursor_too_far(cancelled_since: Any) -> Any:
    """The cursor is moved past what came while the cancellations were read."""

    def skip(self: Any, cursor: str, *, most: int, timeout_s: float) -> Any:
        lives = cancelled_since(self, cursor, most=most, timeout_s=timeout_s)[1]
        time.sleep(0.002)
        return str(len(self._cancelled)), lives

    return skip


# Waiting


@mutant("whoever_waits_is_woken", _MEMORY, "MemoryBackend.write")
def wakes_nobody_by_cancelling(write: Any) -> Any:
    """Nobody is woken by a cancellation."""
    return lambda self, writes, **given: write(
        self, [replace(each, tells=each.tells and not each.cancels) for each in writes], **given
    )


@mutant("a_watch_ends", "taskbridge.stores.notifications", "Watches.add")
def watches_for_ever(add: Any) -> Any:
    """Who has stopped to watch is woken."""
    return lambda self, key, wake, *, gone=None: (lambda: None, add(self, key, wake, gone=gone)[1])


@mutant("a_thousand_wait_at_once", _RECORDS, "Records.watch")
def takes_a_thread_for_each(watch: Any) -> Any:
    """Each watch has a thread of its own."""

    def start(self: Any, message_id: str, wake: Any) -> Any:
        stopped = threading.Event()
        threading.Thread(target=stopped.wait, args=(5.0,), daemon=True).start()
        stop = watch(self, message_id, wake)

        def stop_both() -> None:
            stop()
            stopped.set()

        return stop_both

    return start


@mutant("whoever_waits_is_woken_by_another_process", f"{_SQL}.sqlite", "_version", "sqlite")
def sees_no_change(version: Any) -> Any:
    """What another process changes is not seen."""
    return lambda connection: 0


# Ticks


@mutant("a_schedule_begins_once", _TICKS, "Ticks.begin")
def begins_again(begin: Any) -> Any:
    """A schedule begins whenever it is asked for."""

    def again(self: Any, schedule: str, *, now: Any, timeout_s: float) -> Any:
        self._backend.remove([f"schedule:{schedule}"], timeout_s=timeout_s)
        return begin(self, schedule, now=now, timeout_s=timeout_s)

    return again


@mutant("what_was_settled_by_a_fast_clock_goes_back", _TICKS, "SKEW_S")
def goes_back_at_once(skew_s: Any) -> Any:
    """A schedule goes back however little it is ahead."""
    return 0.0


@mutant("what_was_settled_by_a_fast_clock_goes_back", _TICKS, "SKEW_S")
def never_goes_back(skew_s: Any) -> Any:
    """A schedule that was settled into the future waits until then."""
    return float("inf")


@mutant("a_changed_schedule_begins_anew", _TICKS, "Ticks.note")
def notes_no_schedules(note: Any) -> Any:
    """Nobody notes which schedules there are."""
    return lambda self, plans, **rest: True


@mutant("a_claim_makes_no_schedule_known", _TICKS, "Ticks.claim")
def makes_schedules_known(claim: Any) -> Any:
    """A claim makes a schedule known."""

    def begun(self: Any, schedule: str, planned_at: float, **rest: Any) -> Any:
        self.begin(schedule, now=lambda: planned_at - 1, timeout_s=1)
        return claim(self, schedule, planned_at, **rest)

    return begun


@mutant("one_claims_a_tick", _TICKS, "Ticks.claim")
def claims_for_all(claim: Any) -> Any:
    """Whoever claims a tick is told that it is theirs."""

    def ours(self: Any, schedule: str, planned_at: float, **rest: Any) -> Any:
        self._backend.remove([f"schedule:{schedule}"], timeout_s=1)
        return claim(self, schedule, planned_at, **rest)

    return ours


@mutant("one_process_claims_a_tick", _TICKS, "Ticks.claim", "sqlite")
def claims_for_this_process(claim: Any) -> Any:
    """Claims are known to one process only."""
    from taskbridge.stores.memory import MemoryBackend
    from taskbridge.stores.ticks import Ticks

    ticks = Ticks(MemoryBackend(time.time))
    return lambda self, *args, **rest: claim(ticks, *args, **rest)


@mutant("a_claim_has_a_lease", _TICKS, "Ticks.claim")
def claims_for_ever(claim: Any) -> Any:
    """A claim is never taken over."""
    return lambda self, *args, now, **rest: claim(self, *args, now=0.0, **rest)


@mutant("a_claim_has_a_lease", _TICKS, "Ticks.claim")
def takes_over_at_once(claim: Any) -> Any:
    """A claim is taken over before its lease has ended."""
    return lambda self, *args, lease_s, **rest: claim(self, *args, lease_s=-1.0, **rest)


@mutant("a_claim_may_be_taken_back", _TICKS, "Ticks.release")
def takes_no_claim_back(release: Any) -> Any:
    """A claim that is taken back stays."""
    return lambda self, *args, **rest: None


@mutant("a_claim_may_be_taken_back", _TICKS, "Ticks.release", "sqlite")
def takes_any_claim_back(release: Any) -> Any:
    """A claim is taken back whoever has it."""

    def anyones(self: Any, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        for name in ("one", "two"):
            release(self, schedule, planned_at, claimant=name, timeout_s=timeout_s)

    return anyones


@mutant("a_killed_claimants_tick_is_claimed_again", _TICKS, "Ticks.claim", "sqlite")
def loses_the_ticks_of_the_killed(claim: Any) -> Any:
    """The tick of a claimant that was killed is nobody's."""
    return lambda self, *args, now, **rest: claim(self, *args, now=0.0, **rest)


@mutant("what_is_settled_stays_settled", _TICKS, "Plan.is_settled")
def goes_back(is_settled: Any) -> Any:
    """Settling an earlier tick goes back."""
    return lambda self, planned_at: False


@mutant("a_newer_definition_supersedes_the_one_before", _TICKS, "Ticks.claim")
def claims_by_what_was_seen_before(claim: Any) -> Any:
    """A tick can be claimed whatever became of its schedule since somebody looked."""
    return lambda *args, **given: claim(*args, **{**given, "seen": None})


@mutant("a_claim_that_another_plan_cuts_off_counts_as_missed", _TICKS, "Plan.lapsed")
def forgets_what_was_cut_off(lapsed: Any) -> Any:
    """What was claimed as another plan began, and is not sent, counts as sent."""
    return lambda self, now: []


@mutant("a_pause_lasts", _TICKS, "Ticks.settle")
def ends_a_pause(settle: Any) -> Any:
    """Settling a tick ends a pause."""

    def unpaused(self: Any, schedule: str, planned_at: float, *, timeout_s: float, **rest: Any) -> Any:
        settle(self, schedule, planned_at, timeout_s=timeout_s, **rest)
        self.pause(schedule, paused=False, at=planned_at, timeout_s=timeout_s)

    return unpaused


# Marks


@mutant("one_runs_what_was_never_started", _MARKS, "Marks.claim")
def lets_all_run(claim: Any) -> Any:
    """Whoever asks may run."""
    one_at_a_time = threading.Lock()  # else all may have given it back before the first one claims it

    def run(self: Any, message: Any, *, timeout_s: float) -> Any:
        with one_at_a_time:
            self.given_back(message, timeout_s=timeout_s)
            return claim(self, message, timeout_s=timeout_s)

    return run


@mutant("what_has_ended_is_dropped", _MARKS, "Marks.ended")
def forgets_ends(ended: Any) -> Any:
    """The end of an attempt is not remembered."""
    return lambda self, message, **given: self.given_back(message, timeout_s=1)


@mutant("what_was_given_back_is_run", _MARKS, "Marks.all_given_back")
def gives_nothing_back(all_given_back: Any) -> Any:
    """What is given back with all others stays as it was."""
    return lambda self, *, timeout_s: None


@mutant("a_live_workers_run_is_its_own", _MARKS, "Worker.run", "sqlite")
def says_once_that_it_is_alive(run: Any) -> Any:
    """A worker says once that it is alive."""
    return lambda self, stop: None


@mutant("a_killed_workers_run_is_lost", _MARKS, "Marks._is_alive", "sqlite")
def takes_all_for_alive(is_alive: Any) -> Any:
    """Every worker counts as alive."""
    return lambda self, name, timeout_s: True


@mutant("a_killed_workers_run_is_lost", _MARKS, "Marks._is_alive", "sqlite")
def takes_all_for_dead(is_alive: Any) -> Any:
    """Every worker counts as dead."""
    return lambda self, name, timeout_s: False


@mutant("a_worker_that_stood_still_knows_that_its_run_is_anothers", _MARKS, "Marks.still_ours", "sqlite")
def never_asks(still_ours: Any) -> Any:
    """A worker takes its runs for its own without asking."""
    return lambda self, message, *, timeout_s: True


# Outages


@mutant("a_store_that_is_silent_is_noticed_in_time", f"{_SQL}.database", "Database._taken", "postgresql")
def waits_longer(taken: Any) -> Any:
    """A call to a silent server takes longer than it may."""
    return lambda self, mine, deadline: taken(self, mine, deadline + 4)


@mutant("a_store_that_was_away_wakes_who_waits", "taskbridge.stores.notifications", "Watches.wake_all", "postgresql")
def wakes_nobody_afterwards(wake_all: Any) -> Any:
    """Nobody is woken when the store is back."""
    return lambda self: None


# Commits, keys and the outbox


@mutant("a_commit_is_done_wholly_or_not_at_all", _MEMORY, "MemoryBackend._fits")
def looks_at_the_first_text_alone(fits: Any) -> Any:
    """Of a commit only what is made anew is looked at."""
    return lambda self, write: fits(self, write) if write.seen == ABSENT else True


@mutant("the_outbox_tells_each_entry_to_one", _MEMORY, "MemoryBackend.due_entries")
def tells_everybody(due: Any) -> Any:
    """An entry is due until it is removed."""
    return lambda self, *, most, lease_s, timeout_s: due(self, most=most, lease_s=-1.0, timeout_s=timeout_s)


@mutant("a_key_is_free_when_its_record_is_final", _TRANSITIONS, "released")
def leaves_keys_behind(_: Any) -> Any:
    """A key that is free points to its last message for ever."""
    return lambda key, pointer, me: ([], [])


@mutant("what_follows_is_hastened_as_its_holder_ends", _TRANSITIONS, "released")
def leaves_what_follows_to_the_sweep(released: Any) -> Any:
    """What follows is not due as its holder ends."""
    return lambda key, pointer, me: (released(key, pointer, me)[0], [])


@mutant("of_many_processes_one_holds_a_key", f"{_SQL}.backend", "SqlBackend._commit", "sqlite")
def takes_any_key(commit: Any) -> Any:
    """Whoever sends a key takes it."""

    def take(self: Any, run: Any, given: Any, **how: Any) -> Any:
        texts = self.get([each.key for each in given.writes], timeout_s=5.0)
        seen = [ABSENT if text is None else text.partition("\n")[0] for text in texts]
        writes = [replace(each, seen=head) for each, head in zip(given.writes, seen, strict=True)]
        return commit(self, run, replace(given, writes=writes), **how)

    return take


# Lists


@mutant("messages_are_listed_by_state_and_by_queue", _MEMORY, "MemoryBackend.listed")
def begins_each_page_anew(listed: Any) -> Any:
    """Each page of a list begins with the latest message."""
    return lambda self, kind, names, *, before, **options: listed(self, kind, names, before=(inf, ""), **options)


@mutant("messages_of_one_time_are_all_listed", _MEMORY, "MemoryBackend.listed")
def passes_over_what_has_the_same_time(listed: Any) -> Any:
    """Each page of a list begins before the time of the last message, whatever else has it."""
    return lambda self, kind, names, *, before, **options: listed(
        self, kind, names, before=before if before[0] == inf else (before[0], ""), **options
    )


@mutant("messages_are_listed_by_state_and_by_queue", _REDIS, "RedisBackend.list_soon", kind="redis")
def stays_in_the_former_list(list_soon: Any) -> Any:
    """A message stays in the list of the state that it has left."""
    return lambda self, entries: list_soon(self, [replace(each, formers=()) for each in entries])


@mutant("messages_are_listed_by_state_and_by_queue", f"{_SQL}.backend", "SqlBackend.list_soon", kind="sqlite")
def takes_out_whatever_the_list(list_soon: Any) -> Any:
    """A message is taken out of the list in which it is, whatever was asked for."""
    return lambda self, entries: list_soon(
        self, [each if each.state else replace(each, formers=("queued",)) for each in entries]
    )


@mutant("what_records_say_is_listed", _RECORDS, "Records.replacing")
def lists_what_is_sent_alone(replacing: Any) -> Any:
    """What becomes of a message after it was sent is not listed."""

    def silent(self: Any, *args: Any, **options: Any) -> Any:
        with patch.object(self, "_lists", new=False):
            return replacing(self, *args, **options)

    return silent


# Groups


@mutant("a_member_is_counted_once", _MEMORY, "MemoryBackend.tally")
def counts_each_time(tally: Any) -> Any:
    """A member is counted as often as somebody does."""

    def count(self: Any, write: Any, given: Any, *, timeout_s: float) -> Any:
        self._group(given.key).ended.pop(given.index, None)
        return tally(self, write, given, timeout_s=timeout_s)

    return count


@mutant("what_is_kept_of_ends_is_read_in_pages", _REDIS, "_member", kind="redis")
def takes_all_for_done(member: Any) -> Any:
    """A member that ended badly is told of as one that is done."""
    return lambda raw: ("done", member(raw)[1])


@mutant("the_first_that_is_open_is_found", _MEMORY, "MemoryBackend.first_open")
def takes_members_for_ended_in_order(_: Any) -> Any:
    """The first member that is open is the one after as many as have ended."""

    def first(self: Any, key: str, total: int, *, timeout_s: float) -> int | None:
        ended = len(self._group(key).ended)
        return ended if ended < total else None

    return first


@mutant("a_group_tells_of_its_end", "taskbridge.stores.backend", "Tally.is_posted")
def tells_of_the_last_alone(_: Any) -> Any:
    """A member that ended badly is not told of before all have ended."""
    return lambda self, *, all_ended: all_ended or self.posts == "always"


@mutant("a_group_tells_of_its_end", _MEMORY, "MemoryBackend.tally")
def puts_entries_off(tally: Any) -> Any:
    """An entry is due when the last one who put it there said."""

    def put_off(self: Any, write: Any, given: Any, *, timeout_s: float) -> Any:
        self._outbox.pop(given.entry.id, None)
        return tally(self, write, given, timeout_s=timeout_s)

    return put_off


@mutant("a_replay_is_counted_no_more", f"{_SQL}.groups", "SqlGroups._uncount", kind="sqlite")
def counts_replays_as_ended(_: Any) -> Any:
    """What is replayed still counts as ended."""
    return lambda self, run, members: None


@mutant("a_group_is_kept_until_it_is_over", _REDIS, "RedisBackend.end_groups", kind="redis")
def ends_for_good(end: Any) -> Any:
    """A group that is to be forgotten is, though that was taken back."""
    return lambda self, keys, *, kept_s, **rest: end(self, keys, kept_s=0.5 if kept_s is None else kept_s, **rest)


@mutant("a_group_is_kept_until_it_is_over", f"{_SQL}.groups", "SqlGroups._forget", kind="sqlite")
def goes_on_with_what_is_over(_: Any) -> Any:
    """A group whose time is over is not removed before one of the same name begins."""
    return lambda self, run, key: None


@mutant("members_are_counted_once_by_many", f"{_SQL}.groups", "SqlGroups._count", kind="sqlite")
def counts_by_a_counter(count: Any) -> Any:
    """A member is counted whether or not it was before."""

    def add(self: Any, run: Any, tally: Any) -> Any:
        run(
            "DELETE FROM taskbridge_member WHERE namespace = :namespace AND key = :key AND number = :number",
            self._its(key=tally.key, number=tally.index),
        )
        return count(self, run, tally)

    return add


@mutant("of_the_last_two_one_is_told", f"{_SQL}.groups", "SqlGroups._add", kind="postgresql")
def waits_for_no_other(add: Any) -> Any:
    """Who has completed a part of a group looks at the others without a lock."""
    return lambda self, run, key, shard, *how, **sent: 0 if shard < 0 else add(self, run, key, shard, *how, **sent)


@mutant("lists_are_counted", _MEMORY, "MemoryBackend.count_listed")
def counts_all_lists_as_one(_: Any) -> Any:
    """All messages that are listed are in the list of each state."""
    return lambda self, names, *, timeout_s: [len(self._listed)] * len(names)
