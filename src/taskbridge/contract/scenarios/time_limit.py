"""T: time limits."""

from __future__ import annotations

from typing import Any, Final, Literal

from taskbridge import Task
from taskbridge.contract.harness import Harness
from taskbridge.contract.probe import Record
from taskbridge.contract.program import RETURN, WORKER_LOST, Plan, Step, hold
from taskbridge.contract.registry import (
    LONG_GRACE,
    LONG_LEASE,
    ORDINARY,
    PROCESSES,
    STORED,
    scenario,
    with_processes_and_marks,
)
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.workers import is_gone

_LIMIT_S = 0.5
_LATE_S = 5.0
_SLACK_S: Final = 1.5
"""How late a busy machine may be in ending a process, beside the time for which it stands still."""

_HARD_LIMIT_S: Final = 1.0
_ORDERLY_S: Final = 3.0
"""How long a process takes to give back what it holds."""

_GIVEN_UP_S: Final = 10.0
_AT_ONCE_S: Final = 30.0
"""How soon after the end of its process a stuck run's next attempt starts: long before the lease of 60 s is over.

Celery waits 2 s for what that had sent, and then another process has to start.
"""


@scenario("T1", on=(ORDINARY, PROCESSES))
def a_run_over_its_limit_is_ended(h: Harness) -> None:
    """A run over its limit is ended and counted as failed."""
    coroutine: Any = h.tasks.limited_coroutine
    sent = [
        _send(h, h.tasks.limited, Step(spin_s=30)),
        _send(h, h.tasks.limited, Step(sleep_s=30)),
        _send(h, coroutine, Step(sleep_s=30)),
    ]
    quick = _send(h, h.tasks.limited, Step(sleep_s=0.1))
    h.finished(*sent, quick, within_s=h.patience_s + 10)
    for limited in sent:
        h.equal("its attempts", [start.attempt for start in h.starts(limited)], [1, 2])
        final = h.final(limited)[0]
        told = (final.kind, final.data["reason"], final.data["error"])
        h.equal("how it ended", told, ("dead", "exhausted", "TimeLimitExceeded"))
        h.equal("the error of the retry", h.records(limited, "retrying")[0].data["error"], "TimeLimitExceeded")
        for before, end in zip(h.records(limited, "before_run"), h.ends(limited), strict=True):
            took_s = end.at - before.at
            h.check(took_s >= _LIMIT_S, f"it may run {_LIMIT_S} s, but was ended after {took_s:.3f} s")
            h.in_time("the end of a run over its limit", took_s, _LIMIT_S + _LATE_S)
    h.equal("how a quick run ended", h.final(quick)[0].kind, "succeeded")


def _send(h: Harness, task: Task[[list[dict[str, Any]]], str], *steps: Step) -> str:
    return h.send_to(task, Plan(steps=steps)).id


@scenario("T2", "A5", on=(STORED,), where=with_processes_and_marks)
def a_stuck_run_ends_its_worker(h: Harness) -> None:
    """A run that nothing can interrupt is ended with its worker, as a crash; what ran beside it is given back."""
    h.start_worker(threads=3, supervised=True)
    (beside,) = h.begin(Plan(steps=(hold("beside"),), policy="once"))
    stuck = _send(h, h.tasks.limited, Step(stuck="sleep"), RETURN)
    _ends_with_its_process(h, h.started(stuck))
    h.tasks.open("beside")
    _was_lost_once(h, stuck)
    h.finished(beside.id)
    h.equal("the attempts of what ran beside it", [start.attempt for start in h.starts(beside.id)], [1, 1])


@scenario("T2", "A5", on=(STORED,), where=with_processes_and_marks)
def a_run_that_stops_its_worker_is_ended(h: Harness) -> None:
    """A run that lets no thread of its worker do anything is ended all the same."""
    h.start_worker(threads=2, supervised=True)
    stuck = _send(h, h.tasks.limited, Step(stuck="search"), RETURN)
    _ends_with_its_process(h, h.started(stuck))
    _was_lost_once(h, stuck)
    h.idle()


@scenario("T2", "A5", on=(STORED,), where=with_processes_and_marks)
def a_stuck_run_ends_its_process(h: Harness) -> None:
    """Where each task has a process of its own, a stuck run ends that."""
    h.start_worker(processes=2, supervised=True)
    kinds: tuple[Literal["sleep", "search"], ...] = ("sleep", "search")
    stuck = [_send(h, h.tasks.limited, Step(stuck=kind), RETURN) for kind in kinds]
    for each in stuck:
        _ends_with_its_process(h, h.started(each))
    for each in stuck:
        _was_lost_once(h, each)
    h.idle()


@scenario("T2", "A5", on=(LONG_LEASE,), where=with_processes_and_marks)
def what_was_stuck_is_tried_again_at_once(h: Harness) -> None:
    """The next attempt of a stuck run doesn't wait for the lease of the process that ended with it."""
    h.start_worker(processes=2, supervised=True)
    stuck = _send(h, h.tasks.limited, Step(stuck="sleep"), RETURN)
    _ends_with_its_process(h, h.started(stuck))
    h.started(stuck, times=2, within_s=_AT_ONCE_S)
    _was_lost_once(h, stuck)
    h.idle()


@scenario("T3", "A5", on=(LONG_GRACE,), where=with_processes_and_marks)
def a_hard_limit_ends_the_process(h: Harness) -> None:
    """A run that goes on is ended with its process when its hard limit is over, however long the grace is."""
    h.start_worker(threads=2, supervised=True)
    stuck = _send(h, h.tasks.hard_limited, Step(stuck="sleep"), RETURN)
    _ends_with_its_process(h, h.started(stuck), within_s=_HARD_LIMIT_S + _ORDERLY_S)
    _was_lost_once(h, stuck)
    h.idle()


def _ends_with_its_process(h: Harness, start: Record, *, within_s: float | None = None) -> None:
    longest_s = _SLACK_S + (_LIMIT_S + h.spec.grace_s if within_s is None else within_s)
    with Stopwatch() as watch:
        h.until(
            lambda: is_gone(start.pid),
            "the end of a process with a stuck run",
            within_s=longest_s + h.scaled(_GIVEN_UP_S),
        )
    h.in_time("the end of a process with a stuck run", watch.took_s, longest_s)


def _was_lost_once(h: Harness, stuck: str) -> None:
    final = h.final(stuck, within_s=h.spec.lease_s + 10 + h.patience_s)[0]
    h.equal("how it ended", final.kind, "succeeded")
    starts = h.starts(stuck)
    h.equal("its attempts", [start.attempt for start in starts], [1, 2])
    h.equal("what it was told", (starts[1].data["context"]["previous_error"] or [""])[0], WORKER_LOST)
