"""D: delays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step, ask, fail
from taskbridge.contract.registry import ALONE, LEASED, QUIET, scenario

_YEAR: Final = timedelta(days=365.25)
_HOUR_S: Final = 3600.0
_LONG_S: Final = 12.0
"""Long enough for both to be seen at rest, though the first one of a namespace that is delayed has queues declared."""

_MANY: Final = 2000
_SENDERS: Final = 8
_GROWTH_MB: Final = 6.0


@scenario("D1", "D2", on=(QUIET,))
def delays_are_kept(h: Harness) -> None:
    """What is delayed starts on time, and never early, first attempt or later."""
    plans = [Plan(steps=(RETURN,), delay_s=delay_s) for delay_s in (0.05, 0.5, 1.0, 1.7, 2.0, 3.3)]
    _delay_something(h)
    h.run([*plans, Plan(steps=(fail(),)), Plan(steps=(ask(1.5), RETURN))], on_time=True)


def _delay_something(h: Harness) -> None:
    """Let the sender and the worker delay a message as long as any: the first time, RabbitMQ has queues to make."""
    h.send(Plan(steps=(RETURN,), delay_s=3.3))
    retried = h.send(Plan(steps=(ask(1.5), RETURN)))
    h.until(lambda: h.records(retried.id, "retrying"), "the retry to be parked")


@scenario("D1", "D2", on=(QUIET,))
def moments_are_kept(h: Harness) -> None:
    """A moment is kept as a time is."""
    zone = timezone(timedelta(hours=-7))
    due = datetime.fromtimestamp(h.bridge.now() + 1.5, zone)
    sent = h.own(h.tasks.default.schedule(due, [RETURN.plain()]))
    past = h.own(h.tasks.default.schedule(due - timedelta(days=1), [RETURN.plain()]))
    start = h.started(sent.id, within_s=h.patience_s + 5)
    early_s = due.timestamp() - start.at
    h.check(early_s <= 0, f"it should start at {due}, but started {early_s:.6f} s before")
    h.in_time("what is due 1.5 s after it was sent", start.at - sent.after, h.target.latest_s(1.5))
    h.in_time("what is past", h.started(past.id).at - past.after, h.target.latest_s(0))
    h.says(h.refused(ValueError, h.tasks.default.schedule, due.replace(tzinfo=None), []), "naive")


@scenario("D3", on=(ALONE,))
def workers_do_not_hold_what_is_delayed(h: Harness) -> None:
    """A worker does not hold what is delayed."""
    h.start_worker(threads=2)
    pids = [record.pid for record in h.environment.records.all() if record.kind == "worker_started"]
    before = [_resident_mb(pid) for pid in pids]
    with ThreadPoolExecutor(_SENDERS) as pool:
        for handle in [pool.submit(h.tasks.default.schedule, _HOUR_S, [RETURN.plain()]) for _ in range(_MANY)]:
            handle.result()
    h.send(Plan(steps=(RETURN,)))
    h.resting(delayed=_MANY)
    if h.target.in_process:
        return  # broker and worker share this process's memory; that all of it is parked is what can be seen
    growth = [after - first for first, after in zip(before, [_resident_mb(pid) for pid in pids], strict=True)]
    h.check(max(growth) < _GROWTH_MB, f"workers should not grow by {_MANY} delayed messages, but grew by {growth} MB")


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@scenario("D4", on=(ALONE,))
def delays_outlive_workers(h: Harness) -> None:
    """What is delayed outlives every worker."""
    first = h.start_worker()
    sent = [h.send(Plan(steps=(RETURN,), delay_s=_LONG_S)), h.send(Plan(steps=(ask(_LONG_S), RETURN)))]
    h.until(lambda: h.records(sent[1].id, "retrying"), "the retry to be parked")
    h.resting(delayed=2)
    h.environment.kill(first)
    h.pause(1.5)
    h.start_worker()
    h.compare(sent)


@scenario("D5", on=(ALONE,))
def delays_have_a_bound(h: Harness) -> None:
    """Eight years are accepted, and no more."""
    h.start_worker()
    task, steps = h.tasks.default, [RETURN.plain()]
    longest = [task.schedule(8 * _YEAR - timedelta(hours=1), steps)]
    longest.append(task.schedule(datetime.now(timezone.utc) + 8 * _YEAR - timedelta(hours=1), steps))
    for too_much in (8 * _YEAR + timedelta(hours=1), -1, timedelta(seconds=-1), float("inf"), float("nan")):
        h.refused(ValueError, task.schedule, too_much, steps)
    h.resting(delayed=2)
    h.equal("runs of what is due in eight years", [len(h.starts(handle.id)) for handle in longest], [0, 0])


@scenario("D6", on=(LEASED,))
def long_delays_run_once(h: Harness) -> None:
    """A delay longer than the lease runs once, with three workers."""
    plans = (Plan(steps=(RETURN,), delay_s=20), Plan(steps=(ask(12), RETURN)), Plan(steps=(Step(),), delay_s=7))
    h.run(plans)
