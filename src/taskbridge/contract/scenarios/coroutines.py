"""C: coroutines."""

from __future__ import annotations

from typing import Any

from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step, fail
from taskbridge.contract.registry import ALONE, ORDINARY, PROCESSES, scenario


@scenario("C", on=(ALONE,))
def coroutines_share_a_loop(h: Harness) -> None:
    """Coroutines run side by side on one loop a process, each in its own context."""
    h.start_worker(threads=4)
    sent = [h.own(h.tasks.meeting.send("meeting")) for _ in range(4)]
    try:
        h.until(lambda: all(h.starts(item.id) for item in sent), "four coroutines to run at a time on four slots")
    finally:
        h.tasks.open("meeting")
    h.final(*(item.id for item in sent))
    starts = [h.starts(item.id)[0] for item in sent]
    ends = [h.ends(item.id)[0] for item in sent]
    loops = {(start.pid, start.data["loop"]) for start in starts}
    h.equal("the loops of each process", len(loops), len({start.pid for start in starts}))
    for item, start, end in zip(sent, starts, ends, strict=True):
        h.equal("what a hook before the run set", start.data["tag"], f"{item.id} in a hook")
        h.equal("what the coroutine set before it waited", end.data["tag"], f"{item.id} in the coroutine")
        h.equal("what a task of its own sees", end.data["in_task"], [f"{item.id} in the coroutine", item.id])


@scenario("C", "R2", on=(ORDINARY, PROCESSES))
def coroutines_are_judged_alike(h: Harness) -> None:
    """A coroutine succeeds, fails and is retried like a function."""
    task: Any = h.tasks.coroutine
    good = h.send_to(task, Plan(steps=(fail(), Step(sleep_s=0.1))))
    bad = h.send_to(task, Plan(steps=(fail(),)))
    exiting = h.send_to(task, Plan(steps=(fail("SystemExit"), RETURN)))
    finals = h.finished(good.id, bad.id, exiting.id)
    seen = [(final.kind, final.data["reason"], final.attempt) for final in finals]
    h.equal("how they ended", seen, [("succeeded", "", 2), ("dead", "exhausted", 2), ("dead", "gave_up", 1)])
    h.equal("the result", finals[0].data["result"], f"result of {good.id}")
