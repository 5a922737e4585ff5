"""What a restart of workers may run again, and what it may not."""

from __future__ import annotations

import pytest

from taskbridge.contract.probe import END, START, Record
from taskbridge.contract.scenarios.shutdown import run_again

OLD, NEW = 1, 2
GRACE_S = 2.0


def record(kind: str, at: float, pid: int, ending: str = "") -> Record:
    return Record(kind=kind, at=at, pid=pid, thread=0, main_thread=True, id="id", attempt=1, data={"ending": ending})


def at_fault(*records: Record, told_at: float | None = 10.0) -> list[int]:
    """Return the processes whose runs were started again without need; the old one may have been told to stop."""
    starts, ends = ([each for each in records if each.kind == kind] for kind in (START, END))
    told = {} if told_at is None else {OLD: told_at}
    return [run.pid for run in run_again(starts, ends, told=told, grace_s=GRACE_S)]


@pytest.mark.parametrize("ends", [[], [record(END, 12.1, OLD, "Interrupted")]])
def test_what_the_end_of_a_grace_interrupts_is_started_again(ends: list[Record]) -> None:
    assert at_fault(record(START, 9.9, OLD), *ends, record(START, 12.2, NEW), record(END, 12.3, NEW)) == []


def test_what_has_ended_is_not_started_again() -> None:
    assert at_fault(record(START, 9.9, OLD), record(END, 10.0, OLD, "returned"), record(START, 12.2, NEW)) == [OLD]


def test_what_still_runs_is_not_started_again() -> None:
    assert at_fault(record(START, 9.9, OLD), record(START, 12.2, NEW), record(END, 12.3, OLD, "returned")) == [OLD]


@pytest.mark.parametrize("again_at", [10.2, 15.0])
def test_nothing_is_interrupted_in_its_grace(again_at: float) -> None:
    interrupted = record(END, 10.1, OLD, "Interrupted")
    assert at_fault(record(START, 9.9, OLD), interrupted, record(START, again_at, NEW)) == [OLD]


def test_nothing_is_lost_where_nobody_was_told_to_stop() -> None:
    assert at_fault(record(START, 9.9, OLD), record(START, 12.2, NEW), told_at=None) == [OLD]
