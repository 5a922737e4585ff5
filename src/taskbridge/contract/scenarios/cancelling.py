"""CA: cancelling."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from taskbridge import TaskCancelled
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, Step, ask, fail, hold
from taskbridge.contract.registry import RECORDED, RECORDED_PROCESSES, STORED, scenario, with_records
from taskbridge.contract.scenarios.results import outcome_of, result_of, status_of, until_it_is
from taskbridge.contract.stopwatch import Stopwatch

_KNOWN_S: Final = 1.0
"""After which time a worker knows of a cancellation."""

_INTERRUPTED_S: Final = 2.0
"""After which time an interrupted run has ended."""

_PARKED_S: Final = 5.0
"""How long what waits for its second attempt does so: a worker is told to stop meanwhile."""


def _cancel(h: Harness, item: Sent) -> str:
    return h.bridge.handle(item.id).cancel().state


def _are_dropped(h: Harness, sent: list[Sent]) -> None:
    """Check that cancelled messages come to nothing: dropped when it is their turn, told once, and not started."""
    h.final(*(item.id for item in sent), within_s=h.patience_s + 10)
    for item in sent:
        ends = [(end.kind, end.data["reason"]) for end in h.records(item.id) if end.kind in ("discarded", "dead")]
        h.equal("its end", ends, [("discarded", "cancelled")])
        h.refused(TaskCancelled, outcome_of, h, item)  # it waits for the record, which is written after the hook
        h.equal("its state", status_of(h, item).state, "cancelled")


@scenario("CA1", on=(STORED,), where=with_records)
def what_is_cancelled_does_not_start(h: Harness) -> None:
    """What is cancelled while no worker is up, in a delay or between two attempts, does not start when workers come."""
    worker = h.start_worker(threads=4)
    retrying = [h.send(Plan(steps=(ask(delay_s), RETURN))) for delay_s in (_PARKED_S, _PARKED_S + 2.0)]
    for item in retrying:
        until_it_is(h, item, "retrying")
    first_due = h.ends(retrying[0].id)[0].at + _PARKED_S
    h.stop(worker)
    queued = [h.send(Plan(steps=(RETURN,), priority=priority)) for priority in ("low", "critical")]
    delayed = [h.send(Plan(steps=(RETURN,), delay_s=delay_s)) for delay_s in (0.5, _PARKED_S)]
    cancelled = [*retrying, *queued, *delayed]
    kept = [h.send(Plan(steps=(RETURN,), delay_s=delay_s)) for delay_s in (0.0, 1.0)]
    h.equal("what cancelling says", {_cancel(h, item) for item in cancelled}, {"cancelled"})
    h.equal("what it says again", {_cancel(h, item) for item in cancelled}, {"cancelled"})
    h.pause(max(1.0, first_due - h.bridge.now()))  # some are due now, and some are not
    h.start_worker(threads=4, answers=False)
    _are_dropped(h, cancelled)
    h.equal("the results of others", [result_of(h, item) for item in kept], [f"result of {item.id}" for item in kept])
    h.idle()
    h.equal("the starts", [len(h.starts(item.id)) for item in cancelled], [1, 1, 0, 0, 0, 0])
    h.equal("what cancelling says of what is done", {_cancel(h, item) for item in kept}, {"done"})


@scenario("CA1", on=(STORED,), where=with_records)
def a_busy_worker_knows_within_a_second(h: Harness) -> None:
    """A worker that is busy knows within a second what was cancelled meanwhile."""
    h.start_worker(threads=1)
    h.begin(Plan(steps=(hold("busy"),)))
    waiting = [h.send(Plan(steps=(RETURN,))) for _ in range(3)]
    h.equal("what cancelling says", {_cancel(h, item) for item in waiting}, {"cancelled"})
    h.leave_alone(_KNOWN_S + h.slack_s)
    h.tasks.open("busy")
    _are_dropped(h, waiting)
    h.idle()
    h.equal("the starts", [len(h.starts(item.id)) for item in waiting], [0, 0, 0])


@scenario("CA2", on=(RECORDED,), where=with_records)
def a_running_task_sees_that_it_is_cancelled(h: Harness) -> None:
    """A task that is cancelled while it runs sees it; if it fails then, that was its last attempt."""
    watchful = Step(until_cancelled=True)
    failing = h.send(Plan(steps=(replace(fail(), until_cancelled=True), RETURN)))
    returning = h.send(Plan(steps=(watchful,)))
    for item in (failing, returning):
        h.started(item.id)
        until_it_is(h, item, "running")
        status = h.bridge.handle(item.id).cancel()
        h.equal("what cancelling says", (status.state, status.cancel_asked), ("running", True))
    _are_dropped(h, [failing])
    h.equal("the result of the one that returns", result_of(h, returning), f"result of {returning.id}")
    h.equal("its state", status_of(h, returning).state, "done")
    h.idle()
    h.equal("the starts", [len(h.starts(item.id)) for item in (failing, returning)], [1, 1])


@scenario("CA3", on=(RECORDED, RECORDED_PROCESSES), where=with_records)
def a_run_is_interrupted(h: Harness) -> None:
    """A run that is interrupted ends soon, whatever its policy, and is cancelled; others go on, and its worker does."""
    coroutine: Any = h.tasks.coroutine
    bystander = h.send(Plan(steps=(hold("bystander"),), policy="once"))
    sent = [
        h.send(Plan(steps=(Step(sleep_s=60),), policy="anything")),
        h.send(Plan(steps=(Step(spin_s=60),), policy="anything")),
        h.send_to(coroutine, Plan(steps=(Step(sleep_s=25),))),
    ]
    for item in (bystander, *sent):
        h.started(item.id)
        until_it_is(h, item, "running")
    h.equal("what cancelling says", _cancel(h, bystander), "running")
    for item in sent:
        status = h.bridge.handle(item.id).cancel(interrupt=True)
        h.equal("what it says", (status.state, status.cancel_asked, status.interrupt_asked), ("running", True, True))
        with Stopwatch() as watch:
            h.until(partial(h.ends, item.id), "the end of its run")
        h.in_time("the end of an interrupted run", watch.took_s, _INTERRUPTED_S)
    h.equal("how the runs ended", [h.ends(item.id)[0].data["ending"] for item in sent], _ENDINGS)
    _are_dropped(h, sent)
    h.pause(_KNOWN_S)
    h.equal("the end of a run that is only told", h.ends(bystander.id), [])
    h.tasks.open("bystander")
    h.equal("its result", result_of(h, bystander), f"result of {bystander.id}")
    h.run([Plan(steps=(Step(sleep_s=0.2),)) for _ in range(8)])
    h.equal("the starts", [len(h.starts(item.id)) for item in sent], [1, 1, 1])


_ENDINGS: Final = ["Cancelled", "Cancelled", "CancelledError"]
"""What is raised in functions, and in coroutines."""
