"""N: workers of one kind beside those of another."""

from __future__ import annotations

from functools import partial
from typing import Final

from taskbridge.contract.differences import expected
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import DISCARD, Plan, fail
from taskbridge.contract.registry import BRIEFLY_UNKNOWN, scenario, with_processes
from taskbridge.contract.scenarios.routing import by_a_stranger
from taskbridge.contract.tasks import LATE, OUTLASTED
from taskbridge.contract.workers import is_gone

_GONE_S: Final = 1.0
"""How long after `worker_stopping` a process would be gone that waits for nothing; long before the grace is over."""

_LINES: Final = 1000
_LOUD: Final = ("WARNING", "ERROR", "CRITICAL")


@scenario("N", "H", on=(BRIEFLY_UNKNOWN,), where=with_processes)
def workers_differ_as_the_page_says(h: Harness) -> None:
    """Workers with one thread and with more differ in what the page lists, and tell the same in their logs."""
    for threads in (1, 2):
        gate = f"outlast {threads}"
        worker = h.start_worker(threads=threads)
        around = h.own(h.tasks.around.send(gate))
        sent = [h.send(Plan(steps=(fail(),), policy="once")), h.send(Plan(steps=(DISCARD,)))]
        stranger = by_a_stranger(h, f"{LATE}.{threads}")
        h.finished(around.id, stranger.id, *(item.id for item in sent), within_s=h.patience_s + 5)
        worker.terminate()
        h.until(lambda: _pids(h, "worker_stopping") == _pids(h, "worker_started"), "the worker to be about to stop")
        wanted = expected(h.target, threads=threads)
        if wanted["threads awaited"]:
            h.pause(h.scaled(_GONE_S))
        else:
            pid = h.starts(around.id)[0].pid
            h.until(partial(is_gone, pid), "the end of a process")
        h.tasks.open(gate)
        code = worker.wait(h.spec.grace_s + h.patience_s)
        h.equal("the exit code", code, 0)
        seen = _seen(h, around, stranger)
        for name in seen.keys() & wanted.keys():
            h.equal(f"whether this is so with --threads {threads}: {name}", seen[name], wanted[name])
        lines = worker.log(_LINES).splitlines()
        loud = [sum(_name(item) in line and any(word in line for word in _LOUD) for line in lines) for item in sent]
        h.equal("the warnings and errors about one that died, and one that was discarded", loud, [1, 0])


def _name(item: Sent) -> str:
    return f"contract.program.{item.plan.policy}"


def _pids(h: Harness, kind: str) -> set[int]:
    return {record.pid for record in h.environment.records.all() if record.kind == kind}


def _seen(h: Harness, around: Sent, stranger: Sent) -> dict[str, bool]:
    start = h.starts(around.id)[0]
    threads = start.data["threads"]
    return {
        "main thread": start.main_thread,
        "forked": start.data["is_forked"],
        "hooks elsewhere": h.records(stranger.id, "dead")[0].pid not in _pids(h, "worker_started"),
        "served by each": "taskbridge-pump" in threads,
        "leased by each": "taskbridge-leases" in threads,
        "threads awaited": bool(h.records(around.id, OUTLASTED)),
    }
