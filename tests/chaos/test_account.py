"""The account of a chaos run finds what is lost, and does not take any incident for an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from taskbridge.contract.probe import Records
from tests.chaos.account import Account, settle_up
from tests.chaos.causes import Conditions
from tests.chaos.happenings import Incident, Letter, Run, Send, runs_of, suicides

LEASE_S = 5.0


def a_send(kind: str = "plain", **changes: Any) -> Send:
    known: dict[str, Any] = {"key": "m1", "at": 100.0, "due": 100.0, "fate": "sent"}
    return Send(**{**known, **changes}, kind=kind)


def a_run(attempt: int = 1, start: float = 101.0, end: float | None = None, ending: str = "", **changes: Any) -> Run:
    known: dict[str, Any] = {"key": "m1", "pid": 11, "session": 10, "worker": "w1.1"}
    return Run(**{**known, **changes}, attempt=attempt, start=start, end=end, ending=ending)


def done(attempt: int = 1, start: float = 101.0, end: float = 101.1, **changes: Any) -> Run:
    return a_run(attempt, start, end, "returned", **changes)


def failed(attempt: int = 1, start: float = 101.0, end: float = 101.1, **changes: Any) -> Run:
    return a_run(attempt, start, end, "NotNow", **changes)


def a_kill(at: float, *pids: int, who: str = "w1.") -> Incident:
    return Incident(kind="kill", at=at, until=at, who=who, pids=frozenset(pids))


def a_freeze(at: float, until: float, who: str = "w1.") -> Incident:
    return Incident(kind="freeze", at=at, until=until, who=who)


def an_outage(at: float, until: float, who: str = "") -> Incident:
    return Incident(kind="outage", at=at, until=until, who=who)


ON_REDIS = Conditions(lease_s=LEASE_S, broker="redis", marks="broker")
ON_RABBITMQ = Conditions(lease_s=LEASE_S, broker="amqp", marks=None)
WITH_STORE = Conditions(lease_s=LEASE_S, broker="amqp", marks="apart")


def account_of(
    runs: Sequence[Run],
    *incidents: Incident,
    send: Send | None = None,
    letters: Sequence[Letter] = (),
    on: Conditions = ON_REDIS,
) -> Account:
    return settle_up([a_send() if send is None else send], runs, letters, incidents, on)


def test_what_was_sent_is_done_or_dead_or_discarded() -> None:
    sends = [a_send(), a_send("hopeless", key="m2"), a_send("discarding", key="m3"), a_send(key="m4", fate="refused")]
    runs = [done()]
    runs += [failed(attempt, 100.0 + attempt, 100.5 + attempt, key="m2") for attempt in (1, 2, 3)]
    runs += [a_run(1, 101, 101.1, "Discard", key="m3")]
    letters = [Letter(key="m2", reason="exhausted", error="NotNow", died_at=104)]

    account = settle_up(sends, runs, letters, [], ON_REDIS)

    assert account.is_good
    assert account.outcomes == {"done": 1, "dead": 1, "discarded": 1}
    assert (account.starts, account.duplicates.total()) == (5, 0)


@pytest.mark.parametrize("runs", [[], [failed()], [a_run(1, 101)]], ids=["never started", "failed", "never ended"])
def test_a_message_without_an_outcome_is_lost_whatever_happened(runs: list[Run]) -> None:
    account = account_of(runs, a_kill(101.05), an_outage(99, 103))

    assert len(account.lost) == 1
    assert not account.is_good
    assert any(line.startswith("FAULT LOST m1") for line in account.lines())


@pytest.mark.parametrize("fate", ["unsure", "refused"])
def test_what_the_producer_was_told_is_not_sent_need_not_have_an_outcome(fate: Any) -> None:
    assert account_of([], send=a_send(fate=fate)).is_good


def test_only_what_may_have_been_taken_may_run_though_it_was_not_sent() -> None:
    assert account_of([done()], send=a_send(fate="unsure")).is_good
    assert not account_of([done()], send=a_send(fate="refused")).is_good


AGAIN = [done(), done(1, 108.0, 108.1, pid=22, session=20, worker="w2.1")]
WENT_ON = [done(), done(2, 108.0, 108.1, pid=22, session=20, worker="w2.1")]
TAKEN_UP = [a_run(1, 101.0), done(2, 108.0, 108.1, pid=22, session=20, worker="w2.1")]
TAKEN_UP_AS_SAME = [a_run(1, 101.0), done(1, 108.0, 108.1, pid=22, session=20, worker="w2.1")]


@pytest.mark.parametrize("runs", [AGAIN, WENT_ON, TAKEN_UP, TAKEN_UP_AS_SAME])
@pytest.mark.parametrize("on", [ON_REDIS, ON_RABBITMQ, WITH_STORE])
@pytest.mark.parametrize(
    "incidents",
    [
        [],
        [a_kill(101.05, 33)],
        [a_kill(101.05, 11, who="w2.")],
        [a_kill(100.9, 11)],
        [a_freeze(100, 104)],
        [a_freeze(100, 107, who="w3.")],
        [an_outage(100.5, 103, who="w3."), an_outage(90, 94)],
    ],
    ids=[
        "none",
        "another process",
        "another place",
        "before it",
        "a short freeze",
        "another's freeze",
        "another's outage",
    ],
)
def test_a_start_is_unexplained_if_nothing_befell_the_one_before_it(
    runs: list[Run], on: Conditions, incidents: list[Incident]
) -> None:
    account = account_of(runs, *incidents, on=on)

    assert not account.is_good
    assert any("nothing explains the start" in fault for fault in account.faults)


@pytest.mark.parametrize(
    ("runs", "incident", "on", "cause"),
    [
        (TAKEN_UP, a_kill(101.5, 11), ON_REDIS, "killed while it ran"),
        (TAKEN_UP, a_kill(101.5, 10), ON_REDIS, "killed while it ran"),
        (TAKEN_UP, a_kill(101.5), WITH_STORE, "killed while it ran"),
        (TAKEN_UP_AS_SAME, a_kill(101.5, 11), ON_RABBITMQ, "killed while it ran"),
        (WENT_ON, a_kill(101.2, 11), ON_REDIS, "killed after its end"),
        (AGAIN, a_kill(101.2, 11), ON_RABBITMQ, "killed after its end"),
        (WENT_ON, a_freeze(101, 107), ON_REDIS, "frozen beyond"),
        (WENT_ON, an_outage(100.5, 102), ON_REDIS, "its acknowledgement met an outage"),
        (AGAIN, an_outage(100.5, 102, who="w1."), ON_RABBITMQ, "met an outage"),
        (AGAIN, an_outage(100, 100.5, who="producer"), WITH_STORE, "published twice"),
    ],
)
def test_a_start_is_explained_by_what_befell_the_one_before_it(
    runs: list[Run], incident: Incident, on: Conditions, cause: str
) -> None:
    account = account_of(runs, incident, on=on)

    assert account.is_good, account.lines()
    assert list(account.duplicates.values()) == [1]
    assert cause in next(iter(account.duplicates))


@pytest.mark.parametrize("on", [ON_REDIS, WITH_STORE])
def test_an_attempt_that_is_marked_is_not_started_again_but_counts(on: Conditions) -> None:
    assert not account_of(TAKEN_UP_AS_SAME, a_kill(103, 11), on=on).is_good
    assert not account_of(AGAIN, a_kill(101.2, 11), on=on).is_good


def test_a_mark_is_forgotten_some_time_after_the_end() -> None:
    late = [done(), done(1, 101.1 + LEASE_S + 61, 200.0, pid=22, worker="w2.1")]

    assert account_of(late, an_outage(101, 102), on=WITH_STORE).is_good
    assert not account_of(late, on=WITH_STORE).is_good
    assert not account_of(AGAIN, an_outage(101, 102, who="w1."), on=WITH_STORE).is_good


def test_a_mark_may_be_lost_with_the_broker_that_keeps_it() -> None:
    assert account_of(TAKEN_UP_AS_SAME, a_kill(103, 11), an_outage(100.5, 101.5)).is_good


def test_what_was_given_back_starts_again_as_the_same_attempt() -> None:
    runs = [a_run(1, 101.0, 103.0, "Interrupted"), done(1, 104.0, 104.1, pid=22)]

    assert account_of(runs, Incident(kind="stop", at=100.5, until=110, who="w1.")).is_good
    assert not account_of(runs).is_good


@pytest.mark.parametrize(
    ("runs", "kind", "letters", "problem"),
    [
        ([done()], "plain", [Letter(key="m1", reason="exhausted", error="x.WorkerLost", died_at=102)], "dead, reason"),
        ([done()], "plain", [Letter(key="m1", reason="unknown_task", error="", died_at=102)], "dead, reason"),
        ([done(1, 99.0, 99.1)], "plain", [], "too early"),
        ([a_run(1, 101), done(2, 107)], "plain", [], "never ended, though nobody killed"),
        ([done()], "hopeless", [], "it returned, which it never does"),
        ([failed(), failed(2, 102, 102.1)], "once", [], "attempt 2 of at most 1"),
        (
            [failed(), failed(2, 102, 102.1), failed(3, 103, 103.1)],
            "hopeless",
            [Letter(key="m1", reason="exhausted", error="NotNow", died_at=104)] * 2,
            "2 dead letters",
        ),
    ],
)
def test_what_breaks_a_rule_is_a_fault(runs: list[Run], kind: str, letters: list[Letter], problem: str) -> None:
    account = account_of(runs, send=a_send(kind), letters=letters)

    assert any(problem in fault for fault in account.faults), account.lines()
    assert not account.is_good


def test_a_message_of_one_attempt_may_be_dead_if_its_worker_was_killed() -> None:
    letters = [Letter(key="m1", reason="exhausted", error="taskbridge.exceptions.WorkerLost", died_at=108)]

    account = account_of([a_run(1, 101)], a_kill(101.5, 11), send=a_send("once"), letters=letters)

    assert account.is_good, account.lines()
    assert account.outcomes == {"dead": 1}


def test_what_nobody_sent_is_a_fault() -> None:
    assert not account_of([done(), done(key="m2")]).is_good


def test_runs_are_read_from_what_tasks_write(tmp_path: Path) -> None:
    line = (
        '{{"kind": "{}", "at": {}, "pid": 11, "thread": 1, "main_thread": true, "id": "a", "attempt": 1, "data": {}}}\n'
    )
    whose = '{"key": "m1", "worker": "w1.1", "session": 10, "ending": "NotNow", "delay_s": 0.5}'
    kinds = [("start", 101), ("end", 101.5), ("retrying", 101.6), ("start", 102), ("suicide", 103)]
    (tmp_path / "probe").write_text("".join(line.format(kind, at, whose) for kind, at in kinds))
    records = Records(tmp_path / "probe").all()

    first, second = runs_of(records)

    assert (first.end, first.ending, first.delay_s, first.failed) == (101.5, "NotNow", 0.5, True)
    assert (second.start, second.end, second.failed) == (102, None, False)
    assert suicides(records) == [a_kill(103, 11, who="w1.1")]


def test_a_process_that_kills_itself_is_dead_once_it_writes_nothing(tmp_path: Path) -> None:
    line = (
        '{{"kind": "{}", "at": {}, "pid": {}, "thread": 1, "main_thread": true, "id": "a", "attempt": 1, "data": {}}}\n'
    )
    whose = '{"key": "m1", "worker": "w1.1", "session": 10}'
    kinds = [("suicide", 103, 11), ("start", 103.002, 11), ("start", 103.3, 12), ("start", 107, 11)]
    (tmp_path / "probe").write_text("".join(line.format(kind, at, pid, whose) for kind, at, pid in kinds))

    (kill,) = suicides(Records(tmp_path / "probe").all())

    assert (kill.at, kill.until) == (103, 103.002)
    begun_as_it_died = [a_run(1, 103.002), done(1, 104, pid=12)]
    begun_by_another = [a_run(1, 103.003, pid=13), done(1, 104, pid=12)]
    assert account_of(begun_as_it_died, kill, on=ON_RABBITMQ).is_good
    assert not account_of(begun_by_another, kill, on=ON_RABBITMQ).is_good
