"""H: hooks."""

from __future__ import annotations

from typing import Final

from taskbridge.contract.harness import Harness
from taskbridge.contract.program import DISCARD, RETURN, Plan, fail, hold
from taskbridge.contract.registry import ALONE, ORDINARY, PROCESSES, scenario, with_processes
from taskbridge.contract.tasks import FAIL_HOOKS, STAMP

_LATE_S: Final = 1.0


@scenario("H", on=(ORDINARY, PROCESSES))
def hooks_are_called(h: Harness) -> None:
    """Hooks are called in order, with what happened, where it happened."""
    good, dead, discarded = h.run(
        [
            Plan(steps=(fail("TransientError"), RETURN), queue="vip", priority="high"),
            Plan(steps=(fail("PermanentError"),), policy="giving_up"),
            Plan(steps=(DISCARD,)),
        ]
    )
    later = h.send(Plan(steps=(RETURN,), delay_s=0.4))
    h.final(later.id)
    delays = [record.data["delay_s"] for kind in ("before_send", "after_send") for record in h.records(later.id, kind)]
    h.equal("the delays that the sending hooks were told", delays, [0.4, 0.4])
    results = [record.data["result"] for record in h.records(good.id, "succeeded")]
    h.equal("the result", results, [f"result of {good.id}"])
    h.equal("the error of a retry", h.records(good.id, "retrying")[0].data["error"], "TransientError")
    h.equal("the error of a dead one", h.records(dead.id, "dead")[0].data["error"], "PermanentError")
    h.equal(
        "the reason of a discarded one", h.records(discarded.id, "discarded")[0].data["reason"], "the program says so"
    )
    for record in h.records(good.id):
        if "queue" in record.data:
            told = (record.data["task"], record.data["queue"], record.data["priority"])
            h.equal(f"the message of {record.kind}", told, ("contract.program.standard", "vip", good.plan.priority))
    for item in (good, dead, discarded):
        _in_one_thread(h, item.id)


def _in_one_thread(h: Harness, id: str) -> None:
    """Check that the hooks of a run were called in the thread that ran it."""
    for start in h.starts(id):
        places = {
            (record.pid, record.thread)
            for record in h.records(id)
            if record.attempt == start.attempt and not record.kind.endswith("_send")
        }
        h.equal("the threads of an attempt and its hooks", places, {(start.pid, start.thread)})


@scenario("H")
def failing_hooks_change_nothing(h: Harness) -> None:
    """Hooks that fail change nothing."""
    headers = {FAIL_HOOKS: "yes"}
    h.run(
        [
            Plan(steps=(fail(), RETURN), headers=headers),
            Plan(steps=(fail(),), policy="once", headers=headers),
            Plan(steps=(DISCARD,), headers=headers),
            Plan(steps=(RETURN,), delay_s=0.3, headers=headers),
        ]
    )


@scenario("H")
def hooks_add_headers(h: Harness) -> None:
    """A hook before sending may add headers."""
    sent = h.run([Plan(steps=(fail(), RETURN), headers={STAMP: "yes"})])[0]
    headers = [start.data["context"]["headers"] for start in h.starts(sent.id)]
    h.equal("the headers of both runs", headers, [{STAMP: "yes", "stamped": "by a hook"}] * 2)


@scenario("H", on=(ALONE,))
def workers_tell_when_they_start_and_stop(h: Harness) -> None:
    """A worker's process tells when it starts and when it stops."""
    worker = h.start_worker(processes=2)
    sent = [h.send(Plan(steps=(RETURN,))) for _ in range(6)]
    h.finished(*(item.id for item in sent))
    h.stop(worker)
    records = h.environment.records.all()
    started = [record for record in records if record.kind == "worker_started"]
    stopping = [record for record in records if record.kind == "worker_stopping"]
    processes = 1 if h.target.in_process else 2
    h.equal("the processes that started", len({record.pid for record in started}), processes)
    h.equal("the worker_started hooks", len(started), processes)
    h.equal("the processes that stopped", {record.pid for record in stopping}, {record.pid for record in started})
    h.equal("the worker_stopping hooks", len(stopping), processes)
    ran = {start.pid for start in h.environment.runs()}
    h.check(ran <= {record.pid for record in started}, "a process ran tasks that had not told of its start")
    for record in started:
        first = next((start.at for start in h.environment.runs() if start.pid == record.pid), record.at)
        h.check(record.at <= first, "a process told of its start after its first task")


@scenario("H", on=(ALONE,))
def worker_stopping_comes_last(h: Harness) -> None:
    """A worker tells that it stops when none of its tasks runs any more."""
    worker = h.start_worker(threads=2)
    long = h.send(Plan(steps=(hold("long"),)))
    h.started(long.id)
    worker.terminate()
    h.pause(_LATE_S)
    h.tasks.open("long")
    code = worker.wait(h.spec.grace_s + h.patience_s)
    h.equal("the exit code of a worker that was told to stop", code, 0)
    told = [record for record in h.environment.records.all() if record.kind == "worker_stopping"]
    h.equal("the worker_stopping hooks", len(told), 1)
    ended = h.ends(long.id)[0]
    h.check(told[0].at >= ended.at, f"it told of its end {ended.at - told[0].at:.2f} s before that of its task")


@scenario("H", on=(ALONE,), where=with_processes)
def worker_hooks_are_called_in_the_main_thread(h: Harness) -> None:
    """Those hooks are called in the main thread."""
    h.stop(h.start_worker(processes=2, threads=2))
    for record in h.environment.records.all():
        if record.kind in ("worker_started", "worker_stopping"):
            h.check(record.main_thread, f"{record.kind} was called in another thread")
