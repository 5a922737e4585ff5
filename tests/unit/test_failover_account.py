"""The account of a failover run fails where it must: lost and early messages, and pauses that are too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.happenings import Fate, Letter, Run
from tests.failover.account import Account, Limits, Strike, longest_pause, settle_up
from tests.failover.load import Sent

LIMITS = Limits(lost=0, sends_s=10.0, runs_s=10.0)
STRIKE = Strike(what="the master", at=100.0)


def sent(key: str, at: float) -> Sent:
    return Sent(key=key, at=at, until=at + 0.1, due=at, fate="sent")


def returned(key: str, start: float) -> Run:
    return Run(key=key, attempt=1, pid=1, session=1, worker="w1.1", start=start, end=start + 0.1, ending="returned")


def stream() -> tuple[list[Sent], list[Run]]:
    """Return a message a second for 20 s, none of which is wrong."""
    return [sent(f"m{at}", at) for at in range(100, 121)], [returned(f"m{at}", at + 0.2) for at in range(100, 121)]


def account_of(sends: list[Sent], runs: list[Run], letters: tuple[Letter, ...] = ()) -> Account:
    return settle_up(sends, runs, letters, [STRIKE], until=120.0)


def test_nothing_is_wrong_with_a_stream_that_ran() -> None:
    account = account_of(*stream())
    assert account.problems(LIMITS) == []
    assert (account.fates["sent"], account.starts, account.repeated) == (21, 21, 0)


def test_an_accepted_message_that_never_ran_is_lost() -> None:
    sends, runs = stream()
    account = account_of(sends, runs[1:])
    assert any(problem.startswith("lost: m100") for problem in account.problems(LIMITS))
    assert account.problems(replace(LIMITS, lost=None)) == [], "it is only counted there"
    assert "lost 1;" in "\n".join(account.lines())


def test_an_accepted_message_that_was_started_and_never_ended_is_lost() -> None:
    sends, runs = stream()
    account = account_of(sends, [replace(runs[0], end=None, ending=""), *runs[1:]])
    assert account.problems(LIMITS)


def test_a_dead_letter_is_an_end() -> None:
    sends, runs = stream()
    letter = Letter(key="m100", reason="exhausted", error="E", died_at=101.0)
    assert account_of(sends, runs[1:], (letter,)).problems(LIMITS) == []


@pytest.mark.parametrize(("fate", "problems"), [("unsure", 0), ("refused", 1)])
def test_a_message_that_may_have_been_taken_may_run_and_a_refused_one_may_not(fate: Fate, problems: int) -> None:
    sends, runs = stream()
    account = account_of([replace(sends[0], fate=fate), *sends[1:]], runs)
    assert len(account.problems(LIMITS)) == problems
    assert account.taken == (fate == "unsure")


def test_a_start_before_its_time_is_a_fault() -> None:
    sends, runs = stream()
    account = account_of([replace(sends[0], due=sends[0].due + 3), *sends[1:]], runs)
    assert [problem.partition(":")[0] for problem in account.problems(LIMITS)] == ["started before its time (rule D1)"]


def test_a_pause_is_counted_from_the_kill_to_the_next_and_to_the_end() -> None:
    assert longest_pause([90, 101, 103, 110], 100, 112) == 7
    assert longest_pause([101], 100, 112) == 11
    assert longest_pause([], 100, 112) == 12
    assert longest_pause([104], 100, 105) == 4


def test_a_pause_over_its_limit_is_a_fault() -> None:
    sends, runs = stream()
    late_sends = account_of([each for each in sends if not 101 < each.at < 113], runs)
    assert [problem for problem in late_sends.problems(LIMITS) if "no send was accepted for 12" in problem]
    late_runs = account_of(sends, [each for each in runs if not 101 < each.start < 113] + [returned("m113", 113.1)])
    assert [problem for problem in late_runs.problems(LIMITS) if "no task was started for" in problem]


def test_a_message_that_returned_twice_is_counted() -> None:
    sends, runs = stream()
    account = account_of(sends, [*runs, returned("m100", 105.0)])
    assert account.repeated == 1
    assert account.problems(LIMITS) == []
