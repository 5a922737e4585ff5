"""A5, A7, A8 and R9: workers that die, in the middle of a task and everywhere else."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from taskbridge import DeadLetter, TaskFailed
from taskbridge.contract import deaths
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import KILL, POLICIES, RETURN, WORKER_LOST, Plan, fail, hold
from taskbridge.contract.registry import (
    ALONE,
    SHORT_LEASE,
    STORED,
    scenario,
    with_marks,
    with_processes,
    with_processes_and_marks,
)
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import QUEUES, Variant
from taskbridge.contract.workers import Worker

_AFTER_LEASE_S: Final = 10.0
_RESTART_S: Final = 4.0
"""How long a supervisor may take to have a worker running again, after its first pauses."""
_STARTS_WITHOUT_MARKS: Final = 11
_TAKEN_S: Final = 6.0
"""How long a message may take whose queue has a free process.

Celery may have handed it to the dead one before, and looks every 5 s what became of it (celery/concurrency/asynpool.py,
AsynPool.timers); then a process has to take it.
"""
_NOTICED_S: Final = 4.0
"""After how long the main process of three has surely noticed that one has died: Dramatiq's waits for each of them for
1 s in turn (dramatiq/cli.py, main)."""
_LOOKED_AT_S: Final = 3.0
"""How long a second delivery may wait before it is looked at again."""


def _lost_within_s(h: Harness) -> float:
    """Return within how many seconds a killed worker's message starts elsewhere (rule A2)."""
    return _AFTER_LEASE_S + (0.0 if h.target.address.broker == "amqp" else h.spec.lease_s)


@scenario("A5", "A2", "R9", "ST2", on=(STORED,), where=with_processes_and_marks)
def a_killed_run_is_a_failed_attempt(h: Harness) -> None:
    """A run that was killed with its worker is a failed attempt; if it was the only one, it is dead."""
    first = h.start_worker(threads=2)
    again, once = h.begin(Plan(steps=(hold("killed"), RETURN)), Plan(steps=(hold("killed"),), policy="once"))
    second = h.start_worker(threads=2, answers=False)
    h.environment.kill(first)
    killed_at = h.bridge.now()
    limit_s = _lost_within_s(h)
    h.finished(again.id, once.id, within_s=limit_s + h.patience_s)
    h.check(second.wait(0) is None, "the other worker should go on")
    starts = h.starts(again.id)
    h.equal("its attempts", [start.attempt for start in starts], [1, 2])
    h.in_time("a start on another worker", starts[1].at - killed_at, limit_s + 2)
    h.equal("what it was told", (starts[1].data["context"]["previous_error"] or [""])[0], WORKER_LOST)
    h.equal("the end of the one with several attempts", h.final(again.id)[0].kind, "succeeded")
    h.equal("the starts of the one with a single attempt", len(h.starts(once.id)), 1)
    _is_lost(h, once)
    h.bridge.handle(again.id).result(h.patience_s)  # its record is written after the hook
    status = h.bridge.handle(again.id).status()
    errors = [None if attempt.error is None else attempt.error.type for attempt in status.attempts]
    h.equal("what its record says", (status.state, errors), ("done", [WORKER_LOST, None]))
    error = h.refused(TaskFailed, h.bridge.handle(once.id).result, h.patience_s)
    h.equal("what its result says", (error.reason, error.type), ("exhausted", WORKER_LOST))


def _is_lost(h: Harness, item: Sent) -> None:
    final = h.final(item.id)[0]
    told = (final.kind, final.data["reason"], final.data["error"])
    h.equal("how it ended", told, ("dead", "exhausted", "WorkerLost"))
    letters = [(letter.reason, _error(letter)) for letter in h.letters(item.id)]
    h.equal("its dead letters", letters, [("exhausted", WORKER_LOST)])


@scenario("A5", on=(STORED,), where=with_processes_and_marks)
def a_task_that_kills_its_worker_dies(h: Harness) -> None:
    """A task that always kills its worker is dead after as many starts as it has attempts."""
    kill_by_every_attempt(h, processes=1, threads=2)


@scenario("A5", on=(STORED,), where=with_processes_and_marks)
def a_task_that_kills_its_process_dies(h: Harness) -> None:
    """The same, where each task has a process of its own."""
    kill_by_every_attempt(h, processes=2, threads=1)


def kill_by_every_attempt(h: Harness, *, processes: int, threads: int, policy: str = "twice") -> int:
    """Send a message whose every attempt kills the process that it runs in, to a worker that is started again.

    Args:
        h: The scenario.
        processes: Of the worker.
        threads: Of each process.
        policy: The message's, by its name in `POLICIES`; one with a limit.

    Returns:
        How often it was started: as often as its policy has attempts.
    """
    attempts = POLICIES[policy].max_attempts
    assert attempts is not None
    h.start_worker(processes=processes, threads=threads, supervised=True)
    poison = h.send(Plan(steps=(KILL,), policy=policy))
    h.final(poison.id, within_s=attempts * (_lost_within_s(h) + h.scaled(_RESTART_S)) + h.patience_s)
    after = h.send(Plan(steps=(RETURN,)))
    h.finished(after.id)
    starts = [start.attempt for start in h.starts(poison.id)]
    h.equal("its attempts", starts, list(range(1, attempts + 1)))
    _is_lost(h, poison)
    return len(starts)


@scenario("A6", "A2", on=(STORED,), where=with_processes_and_marks)
def a_dead_process_stops_no_other(h: Harness) -> None:
    """When a process of a worker dies that runs nothing, the others go on taking messages, and end what they run."""
    worker = h.start_worker(processes=3, supervised=True)
    long = h.send(Plan(steps=(hold("long"),), policy="once"))
    busy = h.started(long.id).pid
    records = h.environment.records.all()
    pids = {record.pid for record in records if record.kind == "worker_started" and worker.owns(record.pid)}
    os.kill(min(pids - {busy}), signal.SIGKILL)
    for _ in range(4):
        h.pause(_NOTICED_S / 3)
        quick = h.send(Plan(steps=(RETURN,)))
        took_s = h.final(quick.id)[0].at - quick.after
        h.in_time("taking a message while another process is gone", took_s, _TAKEN_S)
    h.tasks.open("long")
    h.equal("how the long task ended", h.final(long.id)[0].kind, "succeeded")
    h.idle()
    h.equal("its attempts", [start.attempt for start in h.starts(long.id)], [1])


def without_marks(target: Target) -> str:
    """Keep out targets with attempt marks, and those whose worker can't be killed."""
    if target.address.broker == "amqp":
        return ""
    return "its broker keeps attempt marks" if target.keeps_marks else with_processes(target)


@scenario("A5", on=(SHORT_LEASE,), where=without_marks)
def a_task_that_kills_its_worker_dies_without_marks(h: Harness) -> None:
    """Without attempt marks, what came back ten times without an outcome is dead."""
    h.start_worker(processes=2, supervised=True)
    # As it would be after nine starts; a second copy of it would be started as often as the first.
    poison = h.send_saying(Plan(steps=(KILL,), policy="once"), redelivered=_STARTS_WITHOUT_MARKS - 2)
    h.final(poison.id, within_s=h.patience_s + 30)
    h.check(1 <= len(h.starts(poison.id)) <= 2, "it should be started eleven times at most")
    h.equal("the error of its dead letter", {_error(letter) for letter in h.letters(poison.id)}, {WORKER_LOST})


@scenario("I2", "A5", on=(STORED,), where=with_processes_and_marks)
def a_crash_before_the_start_is_counted(h: Harness) -> None:
    """A message with which its worker crashes before each start is dead in the end, and the one behind it runs."""
    sent = _crash_before_the_start(h, "internal_error", requeues=4)  # as it would be after four more crashes
    h.equal("the number of its dead letters", len(h.letters(sent.id)), 1)


@scenario("I2", "A5", on=(SHORT_LEASE,), where=without_marks)
def a_crash_before_the_start_is_counted_without_marks(h: Harness) -> None:
    """The same without attempt marks, where it is dead when it came back ten times; each copy of it is."""
    _crash_before_the_start(h, "exhausted", redelivered=_STARTS_WITHOUT_MARKS - 2)


def _crash_before_the_start(h: Harness, reason: str, **counted: int) -> Sent:
    h.start_worker(threads=2, supervised=True, variant=Variant(dies=deaths.CRASHING))
    sent = h.send_saying(Plan(steps=(RETURN,), headers={deaths.UNEXPECTED: "always"}), **counted)
    behind = h.send(Plan(steps=(RETURN,)))
    within_s = 2 * (_lost_within_s(h) + h.scaled(_RESTART_S)) + h.patience_s
    kinds = [final.kind for final in h.finished(sent.id, behind.id, within_s=within_s)]
    h.equal("how they ended", kinds, ["dead", "succeeded"])
    h.equal("its starts", h.starts(sent.id), [])
    letters = {(letter.reason, _error(letter)) for letter in h.letters(sent.id)}
    h.equal("its dead letters", letters, {(reason, WORKER_LOST)})
    return sent


def _error(letter: DeadLetter) -> str:
    return "" if letter.error is None else letter.error.type


@scenario("A7", on=(STORED,), where=with_marks)
def a_second_delivery_is_not_run(h: Harness) -> None:
    """An attempt that is delivered again is not run again, neither while it runs nor after it has ended."""
    h.start_worker(threads=4)
    if not h.target.in_process:
        h.start_worker(threads=4, answers=False)
    running, failing = h.send(Plan(steps=(hold("second"),), policy="once")), h.send(Plan(steps=(fail(), RETURN)))
    h.started(running.id)
    for _ in range(3):
        h.deliver_again(running)
    h.pause(_LOOKED_AT_S)  # each is looked at while the first one runs
    h.equal("the starts of an attempt that was delivered again", len(h.starts(running.id)), 1)
    h.tasks.open("second")
    h.final(running.id, failing.id)
    for item in (running, failing):
        h.deliver_again(item)
    h.idle()
    h.equal("the starts of an attempt that was delivered again", len(h.starts(running.id)), 1)
    h.equal("the attempts of one that was retried", [start.attempt for start in h.starts(failing.id)], [1, 2])
    h.equal("its verdicts", _verdicts(h, running), ["succeeded"])


def _verdicts(h: Harness, item: Sent) -> list[str]:
    """Return what became of each attempt, in their order: a hook may be called when the next one has begun."""
    told = [record for record in h.records(item.id) if record.kind in ("succeeded", "retrying", "dead")]
    return [record.kind for record in sorted(told, key=lambda record: record.attempt)]


def _with_leases(target: Target) -> str:
    if target.in_process:
        return with_processes(target)
    return "" if target.address.broker == "redis" else "its broker sees whether a worker is connected, not what it does"


@scenario("A7", "A5", "R9", on=(STORED,), where=_with_leases)
def a_worker_that_stood_still_decides_nothing(h: Harness) -> None:
    """A worker that stood still for longer than its lease counts as dead; what it says afterwards is ignored."""
    still = h.start_worker(threads=3)
    plans = (
        Plan(steps=(hold("still"), RETURN)),
        Plan(steps=(hold("still"),), policy="once"),
        Plan(steps=(replace(fail(), gate="still"), RETURN)),
    )
    sent = h.begin(*plans)
    h.start_worker(threads=3, answers=False)
    still.pause()
    try:
        h.final(*(item.id for item in sent), within_s=_lost_within_s(h) + h.patience_s)
    finally:
        still.resume()
    h.tasks.open("still")
    h.until(lambda: all(h.ends(item.id) and len(h.ends(item.id)) == len(h.starts(item.id)) for item in sent), "the end")
    h.idle()
    for item in sent:
        verdicts = _verdicts(h, item)
        expected = ["dead"] if item.plan.policy == "once" else ["retrying", "succeeded"]
        h.equal("its verdicts", verdicts, expected)
        h.equal("its attempts", [start.attempt for start in h.starts(item.id)], [1, 2][: len(expected)])


@scenario("A8", "R5", on=(SHORT_LEASE,), where=with_processes)
def a_kill_between_any_two_steps_loses_nothing(h: Harness) -> None:
    """A worker killed between any two steps, from taking a message to acknowledging it, loses nothing."""
    places = dict(zip(deaths.RUNNING, QUEUES, strict=True))
    dying = start_dying(h, {queue: place for place, queue in places.items()})
    plans = (Plan(steps=(RETURN,)), Plan(steps=(fail(), RETURN)), Plan(steps=(fail(),), policy="once"))
    sent = {place: [h.send(replace(plan, queue=queue)) for plan in plans] for place, queue in places.items()}
    end_dying(h, dying)
    h.start_worker(threads=8, answers=False)
    h.finished(*(item.id for items in sent.values() for item in items), within_s=h.spec.lease_s + 10 + h.patience_s)
    for items in sent.values():
        _came_to_an_end(h, items)


def start_dying(h: Harness, places: Mapping[str, str]) -> list[Worker]:
    """Start a worker for each of some queues that kills itself when it comes to a place."""

    def start(queue: str) -> Worker:
        variant = Variant(dies=deaths.named(places[queue], h.target))
        return h.start_worker(queues=(queue,), threads=2, variant=variant, answers=False)

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(start, places))


def end_dying(h: Harness, dying: Sequence[Worker]) -> None:
    """Wait until workers have killed themselves, and end what is left of them."""
    h.until(lambda: all(worker.wait(0) is not None for worker in dying), "the death of every worker")
    for worker in dying:
        h.environment.kill(worker)


def _came_to_an_end(h: Harness, items: list[Sent]) -> None:
    """Check what became of messages that return, fail once, and fail for good; each may have been started once more."""
    *surviving, dying = items
    h.equal("how they ended", [h.final(item.id)[0].kind for item in surviving], ["succeeded"] * len(surviving))
    h.equal("how the one ended that fails for good", h.final(dying.id)[0].kind, "dead")
    h.check(len(h.letters(dying.id)) >= 1, "it should have a dead letter")
    h.equal("the dead letters of the others", [len(h.letters(item.id)) for item in surviving], [0] * len(surviving))


@scenario("A8", "D4", on=(ALONE,), where=with_processes)
def a_kill_while_it_promotes_loses_nothing(h: Harness) -> None:
    """A worker killed between taking what is due and publishing it, or right after that, loses nothing."""
    sent: list[Sent] = []
    for place in deaths.PROMOTING:
        worker = h.start_worker(threads=2, variant=Variant(dies=deaths.named(place, h.target)), answers=False)
        sent += [h.send(Plan(steps=(RETURN,), delay_s=0.5)) for _ in range(4)]
        end_dying(h, [worker])
    h.start_worker(threads=4, answers=False)
    h.finished(*(item.id for item in sent), within_s=h.patience_s + 60)
    h.equal("how they ended", {h.final(item.id)[0].kind for item in sent}, {"succeeded"})


@scenario("A7", "A8", on=(STORED,), where=with_processes_and_marks)
def a_kill_while_it_promotes_starts_nothing_twice(h: Harness) -> None:
    """A worker killed right after it has published what is due, and may do so again, starts no attempt twice."""
    dying = start_dying(h, {"right": deaths.PROMOTING[-1]})
    sent = [h.send(Plan(steps=(RETURN,), queue="left", delay_s=0.5)) for _ in range(16)]
    end_dying(h, dying)
    for _ in range(2):  # for one would know what it has run
        h.start_worker(queues=["left"], threads=2, answers=False)
    h.finished(*(item.id for item in sent), within_s=h.patience_s + 60)
    for item in sent:
        h.equal("the attempts that were started", [start.attempt for start in h.starts(item.id)], [1])
