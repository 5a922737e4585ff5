"""CA: cancelling."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from taskbridge import TaskCancelled
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, Step, ask, fail, hold
from taskbridge.contract.registry import RECORDED, STORED, scenario, with_records
from taskbridge.contract.scenarios.results import outcome_of, result_of, status_of, until_it_is

_KNOWN_S: Final = 1.0
"""After which time a worker knows of a cancellation."""

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
    h.pause(_KNOWN_S + h.slack_s)
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
