"""AR, RC, A9 and PG: what is around runs, and what they know and tell."""

from __future__ import annotations

from typing import Any, Final

from taskbridge import Status, Task, UnsupportedError
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import DISCARD, RETURN, Plan, Step, fail, hold
from taskbridge.contract.registry import (
    ORDINARY,
    PROCESSES,
    RECORDED,
    SHORT_GRACE,
    STORED,
    scenario,
    with_processes,
    with_records,
)
from taskbridge.contract.scenarios.results import outcome_of, result_of, status_of, until_it_is
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.tasks import AROUND, MATCHED

_HOOKS: Final = ("before_send", "after_send", MATCHED)
_INSIDE: Final = (
    "before_run",
    "outer in",
    "inner in",
    "async in",
    "start",
    "end",
    "async out",
    "inner out",
    "outer out",
)
_SOON_S: Final = 2.0
_MOST_TASKS: Final = 3
_SHORT: Final = 9
_RETIRES_S: Final = 1.0
"""After which time a process that has run enough surely takes no more."""
_AFTER_GRACE_S: Final = 2.0


def _surrounded(h: Harness, task: Any, *steps: Step, note: str = "none", **headers: str) -> Sent:
    return h.own(task.using(headers=headers).send([step.plain() for step in steps], note=note))


def _tasks(h: Harness) -> list[Task[..., str]]:
    coroutine: Any = h.tasks.surrounded_coroutine
    return [h.tasks.surrounded, coroutine]


@scenario("AR", on=(ORDINARY, PROCESSES))
def what_is_around_runs_is_entered_and_left(h: Harness) -> None:
    """What is around runs is entered in order, knows the run, reaches it by context variables, and is left again."""
    for task in _tasks(h):
        item = _surrounded(h, task, fail("TransientError"), RETURN, note="a word")
        h.finished(item.id)
        for attempt, end, ending in ((1, "retrying", "TransientError"), (2, "succeeded", "returned")):
            records = [each for each in h.records(item.id) if each.attempt == attempt and each.kind not in _HOOKS]
            h.equal("what happened, in order", [each.kind for each in records], [*_INSIDE, end])
            outs = [each.data["ending"] for each in records if each.kind.endswith(" out")]
            h.equal("what came out of the run", outs, [ending] * 3)
            h.equal("its argument", records[1].data["note"], "a word")
            h.equal("a context variable of what is around", records[4].data["tag"], f"around {attempt}")
    (other,) = h.run([Plan(steps=(RETURN,))])
    h.equal("what is around other tasks", [each for each in h.records(other.id) if each.kind == "outer in"], [])


@scenario("AR", on=(ORDINARY, PROCESSES))
def what_is_around_runs_decides_about_errors(h: Harness) -> None:
    """What is around runs may refuse them, and swallow or replace their errors; what it raises is the attempt's."""
    for task in _tasks(h):
        refused = _surrounded(h, task, RETURN, **{AROUND: "refuse"})
        swallowed = _surrounded(h, task, fail(), **{AROUND: "swallow"})
        replaced = _surrounded(h, task, fail(), **{AROUND: "replace"})
        discarded = _surrounded(h, task, DISCARD)
        ends = h.finished(refused.id, swallowed.id, replaced.id, discarded.id)
        told = [(end.kind, end.data["reason"], end.data["error"]) for end in ends]
        expected = [
            ("dead", "exhausted", "PermanentError"),
            ("succeeded", "", None),
            ("dead", "exhausted", "TransientError"),
            ("discarded", "the program says so", None),
        ]
        h.equal("how they ended", told, expected)
        h.equal("the starts of a refused run", h.starts(refused.id), [])
        outer = [each.data["ending"] for each in h.records(refused.id, "outer out")]
        h.equal("what the outer one saw of it", outer, ["PermanentError"] * 2)


@scenario("H")
def hooks_are_for_the_tasks_they_name(h: Harness) -> None:
    """A hook that is for some tasks only is called for messages of these."""
    matched, other = _surrounded(h, h.tasks.surrounded, RETURN), h.send(Plan(steps=(RETURN,)))
    h.finished(matched.id, other.id)
    h.equal("the calls for its tasks", len(h.records(matched.id, MATCHED)), 1)
    h.equal("the calls for others", h.records(other.id, MATCHED), [])


@scenario("A9", "A4", on=(SHORT_GRACE,))
def a_task_sees_that_its_worker_stops(h: Harness) -> None:
    """A task sees that its worker was told to stop, and not before; in a thread and in a process of its own."""
    choices: tuple[dict[str, Any], ...] = ({"threads": 2}, {"processes": 2})
    for given in choices:
        worker = h.start_worker(**given)
        (item,) = h.begin(Plan(steps=(Step(until_stopping=True),)))
        h.pause(0.5)
        h.equal("its end before the worker was told", h.ends(item.id), [])
        with Stopwatch() as watch:
            told_at = h.bridge.now()
            h.stop(worker)
        h.equal("its end", [end.data["ending"] for end in h.ends(item.id)], ["returned"])
        h.in_time("its end", h.ends(item.id)[0].at - told_at - watch.stalled_s(), _SOON_S)
        h.equal("how its message ended", h.final(item.id)[0].kind, "succeeded")


# Progress


def _until_progress(h: Harness, item: Sent, done: float, total: float | None, note: str) -> Status:
    def told() -> list[Status]:
        status = status_of(h, item)
        seen = status.progress and (status.progress.done, status.progress.total, status.progress.note)
        return [status] if seen == (done, total, note) else []

    with Stopwatch() as watch:
        found = h.until(told, f"a progress of {done:g}")[0]
    h.in_time("the news of it", watch.took_s, _SOON_S)
    return found


@scenario("PG", on=(RECORDED,), where=with_records)
def a_run_tells_how_far_it_has_come(h: Harness) -> None:
    """The status shows how far a run has come; at its end the last that it told, and nothing of an attempt before."""
    item = h.own(h.tasks.telling.send("telling"))
    h.started(item.id)
    status = _until_progress(h, item, 1, 4, "the first")
    h.equal("its state", status.state, "running")
    h.equal("how much of all is done", status.progress and status.progress.fraction, 0.25)
    h.tasks.open("telling")
    h.started(item.id, times=2)
    until_it_is(h, item, "running")
    h.until(lambda: len(status_of(h, item).attempts) == 2, "the record of its second run")
    h.equal("the progress of its second run", status_of(h, item).progress, None)
    h.tasks.open("telling again")
    h.finished(item.id)
    result_of(h, item)
    done = status_of(h, item).progress
    h.equal("its progress at the end", done and (done.done, done.total, done.note), (4, 4, ""))


@scenario("PG", on=(RECORDED,), where=with_records)
def the_last_progress_of_a_failed_attempt_is_kept(h: Harness) -> None:
    """Of much that a run tells at once the last is kept, until the next attempt starts."""
    item = h.own(h.tasks.telling_once.send("telling once"))
    h.started(item.id)
    h.tasks.open("telling once")
    h.finished(item.id)
    h.refused(Exception, outcome_of, h, item)
    done = status_of(h, item).progress
    h.equal("its progress", done and (done.done, done.total), (2.199, None))


@scenario("PG", on=(RECORDED,))
def a_run_that_is_not_recorded_can_not_tell(h: Harness) -> None:
    """A run whose task is not recorded is told that it can't tell how far it has come."""
    item = h.own(h.tasks.telling_nobody.send("nobody"))
    end = h.finished(item.id)[0]
    h.equal("its error", (end.kind, end.data["error"]), ("dead", UnsupportedError.__name__))


# Processes that end for others


@scenario("RC", on=(STORED,), where=with_processes)
def a_process_ends_after_so_many_tasks(h: Harness) -> None:
    """A process that has run enough tasks ends, and another takes its place; a task that runs is not interrupted."""
    h.start_worker(threads=2, supervised=True, max_tasks=_MOST_TASKS)
    (long,) = h.begin(Plan(steps=(hold("long"),), policy="once"))
    sent = [h.send(Plan(steps=(RETURN,), policy="once")) for _ in range(_MOST_TASKS)]
    h.final(*(item.id for item in sent))
    h.leave_alone(_RETIRES_S)  # else it may have run the others before it has come to take no more
    sent += [h.send(Plan(steps=(RETURN,), policy="once")) for _ in range(_SHORT - _MOST_TASKS)]
    h.final(*(item.id for item in sent), within_s=h.patience_s + 3 * h.scaled(10))
    h.pause(h.spec.grace_s + _AFTER_GRACE_S)
    h.tasks.open("long")
    h.finished(long.id)
    pids = [start.pid for item in sent for start in h.starts(item.id)]
    h.equal("the starts", (len(pids), len(h.starts(long.id))), (len(sent), 1))
    h.equal("how the long one ended", h.final(long.id)[0].kind, "succeeded")
    most = max(pids.count(pid) for pid in pids)
    h.check(most < _SHORT, f"a process ran {most} tasks, and was to end after {_MOST_TASKS}")


@scenario("RC", on=(STORED,), where=with_processes)
def a_process_ends_with_so_much_memory(h: Harness) -> None:
    """A process that has had enough memory ends, where each task has a process of its own, too."""
    h.start_worker(processes=1, supervised=True, max_memory=1)
    sent: list[Sent] = []
    for _ in range(3):
        sent.append(h.send(Plan(steps=(RETURN,), policy="once")))
        h.finished(sent[-1].id, within_s=h.patience_s + h.scaled(10))
        h.leave_alone(_RETIRES_S)
    pids = {start.pid for item in sent for start in h.starts(item.id)}
    h.check(len(pids) > 1, "all were run by one process")
