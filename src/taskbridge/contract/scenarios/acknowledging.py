"""A: acknowledgement, crashes and shutdown; and R8, which is about both."""

from __future__ import annotations

import os
import signal
from typing import Any, Final

from taskbridge.contract.differences import expected
from taskbridge.contract.harness import STOP_S, Harness, Sent
from taskbridge.contract.program import RETURN, Plan, Step, hold
from taskbridge.contract.registry import (
    ALONE,
    SHORT_GRACE,
    SHORT_GRACE_AND_LEASE,
    SHORT_LEASE,
    STORED,
    scenario,
    with_processes,
    with_processes_and_marks,
)
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.workers import Worker

_AFTER_LEASE_S: Final = 10.0
_AT_ONCE_S: Final = 2.0
"""How long a message that is back in its queue may take to start on a worker that has begun to take messages."""
_CLEANUP_S: Final = 0.2
_LONGER_CLEANUP_S: Final = 0.8
_REACTION_S: Final = 0.5
"""How long a signal may be on its way before a worker takes nothing new, beside what the machine stands still."""


@scenario("A1", "A2", on=(SHORT_LEASE,), where=with_processes)
def a_killed_worker_loses_nothing(h: Harness) -> None:
    """What a killed worker held starts again on another within the lease and ten seconds."""
    first = h.start_worker(threads=2)
    sent = h.begin(*[Plan(steps=(hold("again"),)) for _ in range(2)])
    h.start_worker(threads=2, answers=False)
    h.environment.kill(first)
    killed_at = h.bridge.now()
    h.tasks.open("again")
    limit_s = _AFTER_LEASE_S + (0.0 if h.target.address.broker == "amqp" else h.spec.lease_s)
    for item in sent:
        again = h.started(item.id, times=2, within_s=limit_s + h.patience_s)
        h.in_time("a start on another worker", again.at - killed_at, limit_s)
    h.equal("how they ended", [record.kind for record in h.final(*(item.id for item in sent))], ["succeeded"] * 2)
    h.idle()


@scenario("A3", on=(SHORT_LEASE,))
def a_long_task_runs_once(h: Harness) -> None:
    """A live worker keeps its message, however long the task runs, though it does nothing else."""
    if h.target.in_process:
        h.start_worker(threads=2)
    else:
        h.start_worker()
        h.start_worker()
    h.run([Plan(steps=(Step(sleep_s=13),), policy="once")])


@scenario("A4", "A1", "R8", on=(SHORT_GRACE,))
def a_worker_of_threads_stops(h: Harness) -> None:
    """A worker of threads stops in its grace, and gives the rest back, without an attempt lost."""
    _stops(h, processes=1, threads=2)


@scenario("A4", "A1", "R8", on=(SHORT_GRACE,), where=with_processes)
def a_worker_of_processes_stops(h: Harness) -> None:
    """A worker of processes stops in its grace, and gives the rest back, without an attempt lost."""
    _stops(h, processes=2, threads=1)


def _stops(h: Harness, *, processes: int, threads: int) -> None:
    worker = h.start_worker(processes=processes, threads=threads)
    finishing, stuck = h.begin(Plan(steps=(hold("finishing"),)), Plan(steps=(hold("stuck"),)))
    waiting = [h.send(Plan(steps=(RETURN,))) for _ in range(6)]
    waited_s = worker.waited_s()
    with Stopwatch() as watch:
        told_at = _tell(h, worker)
        h.pause(_REACTION_S + h.slack_s + 0.3)
    stalled_s = max(0.0, h.bridge.now() - told_at - watch.took_s) + worker.waited_s() - waited_s
    h.tasks.open("finishing")
    _ends_in_its_grace(h, worker, told_at)
    h.equal("what became of a task that ended in the grace", h.final(finishing.id)[0].kind, "succeeded")
    _nothing_new_was_taken(h, waiting, told_at + stalled_s)
    left = [item for item in waiting if not h.starts(item.id)]
    h.until(
        lambda: sum(h.bridge.counts().waiting.values()) == len(left) + 1,
        f"{len(left) + 1} messages to be back in their queue",
    )
    h.tasks.open("stuck")
    h.start_worker(processes=processes, threads=threads)
    h.compare(left)
    h.finished(stuck.id)
    h.equal("the attempts of an interrupted task", [start.attempt for start in h.starts(stuck.id)], [1, 1])
    h.equal("what it was told", h.starts(stuck.id)[1].data["context"]["previous_error"], None)
    h.equal("its hooks", [record.kind for record in h.records(stuck.id) if record.kind in _VERDICTS], ["succeeded"])
    h.equal("the starts of a task that ended in the grace", len(h.starts(finishing.id)), 1)


@scenario("A4", on=(SHORT_GRACE,), where=with_processes)
def a_stop_of_each_process_leaves_the_grace(h: Harness) -> None:
    """A process manager that tells each process of a worker to stop takes no task's grace."""
    worker = h.start_worker(processes=2)
    running = h.begin(*[Plan(steps=(hold("running"),), policy="once") for _ in range(2)])
    for pid in {h.starts(item.id)[0].pid for item in running}:
        os.kill(pid, signal.SIGTERM)
    worker.terminate()
    h.pause(_REACTION_S)
    h.tasks.open("running")
    h.equal("how its tasks ended", [final.kind for final in h.final(*(item.id for item in running))], ["succeeded"] * 2)
    h.stop(worker)
    h.equal("the starts of its tasks", [len(h.starts(item.id)) for item in running], [1, 1])


_VERDICTS: Final = ("succeeded", "retrying", "dead", "discarded")


def _tell(h: Harness, worker: Worker) -> float:
    told_at = h.bridge.now()
    h.environment.note_end(worker)
    worker.terminate()
    return told_at


def _ends_in_its_grace(h: Harness, worker: Worker, told_at: float) -> None:
    grace_s = h.spec.grace_s
    h.ends_in_time(worker, grace_s + STOP_S)
    took_s = h.bridge.now() - told_at
    h.check(took_s >= grace_s, f"a running task has {grace_s} s of grace, but the worker ended after {took_s:.2f} s")


def _nothing_new_was_taken(h: Harness, waiting: list[Sent], told_at: float) -> None:
    starts = [start for item in waiting for start in h.starts(item.id)]
    late = [start.at - told_at for start in starts if start.at > told_at + _REACTION_S + h.slack_s]
    h.equal("the seconds after being told to stop at which tasks were started", late, [])


@scenario("A4", "R8", "C", on=(SHORT_GRACE_AND_LEASE,))
def interrupted_runs_of_threads_clean_up(h: Harness) -> None:
    """What is interrupted as the grace ends may clean up for a second, and a thread that is left keeps no worker."""
    _clean_up(h, processes=1, threads=3)


@scenario("A4", "R8", "C", on=(SHORT_GRACE_AND_LEASE,), where=with_processes)
def interrupted_runs_of_processes_clean_up(h: Harness) -> None:
    """The same, where each task has a process of its own."""
    _clean_up(h, processes=2, threads=1)


def _clean_up(h: Harness, *, processes: int, threads: int) -> None:
    worker = h.start_worker(processes=processes, threads=threads)
    if not h.target.in_process:
        h.final(h.own(h.tasks.around.send("never opened")).id)
    coroutine: Any = h.tasks.coroutine
    cut = [
        h.send(Plan(steps=(Step(sleep_s=25, cleanup_s=_CLEANUP_S),))),
        h.send_to(coroutine, Plan(steps=(Step(sleep_s=25, cleanup_s=_LONGER_CLEANUP_S),))),
    ]
    for item in cut:
        h.started(item.id)
    _ends_in_its_grace(h, worker, _tell(h, worker))
    endings = [[end.data["ending"] for end in h.ends(item.id)] for item in cut]
    h.equal("how runs ended that were interrupted", endings, [["Interrupted"], ["CancelledError"]])


@scenario("R8", "A4", on=(STORED,), where=with_processes_and_marks)
def stuck_runs_of_threads_are_given_back(h: Harness) -> None:
    """Runs that the end of their worker can't interrupt start again at once, and are no attempts."""
    _gives_back_stuck_runs(h, processes=1, threads=2)


@scenario("R8", "A4", on=(STORED,), where=with_processes_and_marks)
def stuck_runs_of_processes_are_given_back(h: Harness) -> None:
    """The same, where each task has a process of its own."""
    _gives_back_stuck_runs(h, processes=2, threads=1)


def _gives_back_stuck_runs(h: Harness, *, processes: int, threads: int) -> None:
    worker = h.start_worker(processes=processes, threads=threads)
    stuck = h.begin(*[Plan(steps=(Step(stuck="sleep", free="free"),), policy="once") for _ in range(2)])
    told_at = _tell(h, worker)
    _ends_in_its_grace(h, worker, told_at)
    is_interrupted = expected(h.target, threads=threads)["interrupted in C"]
    h.equal("whether long calls were interrupted", [bool(h.ends(item.id)) for item in stuck], [is_interrupted] * 2)
    h.tasks.open("free")
    h.start_worker(processes=processes, threads=threads)
    ready_at = h.bridge.now()
    for item in stuck:
        again = h.started(item.id, times=2)
        h.in_time("the next start of a run that was given back", again.at - ready_at, _AT_ONCE_S)
    h.equal("how they ended", [record.kind for record in h.final(*(item.id for item in stuck))], ["succeeded"] * 2)
    h.idle()
    for item in stuck:
        h.equal("its attempts", [start.attempt for start in h.starts(item.id)], [1, 1])


@scenario("A6", on=(ALONE,))
def nothing_waits_behind_a_long_task(h: Harness) -> None:
    """No message waits behind a long task while another slot is free."""
    if h.target.in_process:
        h.start_worker(threads=2)
    else:
        h.start_worker()
        h.start_worker()
    plans = [Plan(steps=(hold("long"),)), *[Plan(steps=(RETURN,))] * 8]
    program = h.tasks.programs[plans[0].policy]
    handles = program.send_many([program.call(plan.plain_steps()) for plan in plans])  # so that all wait at once
    long, *quick = [h.own(handle, plan) for handle, plan in zip(handles, plans, strict=True)]
    h.final(*(item.id for item in quick))
    h.started(long.id)
    for _ in range(2):
        quick = [h.send(Plan(steps=(RETURN,))) for _ in range(8)]
        h.final(*(item.id for item in quick))
    h.tasks.open("long")
    h.finished(long.id)


QUEUES: Final = ("contract", "left", "right", "vip")


@scenario("A6", on=(STORED,), where=with_processes_and_marks)
def nothing_waits_behind_a_long_task_on_another_queue(h: Harness) -> None:
    """No message of four queues waits behind a long task of another one while another worker is idle."""
    for _ in range(2):
        h.start_worker(queues=QUEUES)
    long = h.begin(Plan(steps=(hold("long"),)))[0]
    for _ in range(3):
        quick = [h.send(Plan(steps=(RETURN,), queue=queue)) for queue in QUEUES * 3]
        h.final(*(item.id for item in quick))
    h.tasks.open("long")
    h.finished(long.id)
    more = [h.send(Plan(steps=(RETURN,), queue=queue)) for queue in QUEUES * 3]  # whoever took nothing takes again
    h.finished(*(item.id for item in more))
