"""A4 and R8 under load: workers are restarted one after another, as a deploy does it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import inf
from typing import Final

from taskbridge.contract.harness import STOP_S, Harness
from taskbridge.contract.probe import Record
from taskbridge.contract.program import RETURN, Plan, Step, fail
from taskbridge.contract.registry import STORED, scenario, with_processes
from taskbridge.contract.workers import Worker

_RESTARTS: Final = 6
_EVERY_S: Final = 0.02
_INTERRUPTED: Final = "Interrupted"
"""How a run ends that the end of its worker interrupts."""

_PLANS: Final = (
    Plan(steps=(RETURN,)),
    Plan(steps=(Step(sleep_s=0.2),)),
    Plan(steps=(fail(), RETURN)),
    Plan(steps=(RETURN,), delay_s=1),
    Plan(steps=(fail(),), policy="once"),
)


@scenario("A4", "R8", "A1", on=(STORED,), where=with_processes)
def workers_are_restarted_under_load(h: Harness) -> None:
    """Workers that are restarted one after another under load lose nothing, and run nothing again that had ended."""
    restart_under_load(h, _RESTARTS)


def restart_under_load(h: Harness, restarts: int) -> int:
    """Restart a worker so many times while messages keep coming, of threads and of processes in turn.

    On a machine so busy that a short run outlasts the grace, such a run is rightly started again (rule R8).

    Returns:
        How many messages came.
    """
    told: dict[int, float] = {}
    workers = [h.start_worker(threads=2), h.start_worker(processes=2)]
    with _load(h) as sent:
        for number in range(restarts):
            old = workers.pop(0)
            told_at = h.bridge.now()
            told |= dict.fromkeys(_pids(h, old), told_at)
            old.terminate()
            threads, processes = (2, 1) if number % 2 == 0 else (1, 2)
            workers.append(h.start_worker(threads=threads, processes=processes, answers=False))
            told |= dict.fromkeys(_pids(h, old), told_at)  # of those too that first ran something just then
            h.ends_in_time(old, h.spec.grace_s + STOP_S)
    h.final(*sent, within_s=h.patience_s + 30)
    h.idle(within_s=h.patience_s + 10)
    grace_s = h.spec.grace_s
    again = [run for each in sent for run in run_again(h.starts(each), h.ends(each), told=told, grace_s=grace_s)]
    h.equal("what was started again without need", [(run.id, run.attempt) for run in again], [])
    return len(sent)


def _pids(h: Harness, worker: Worker) -> set[int]:
    return {pid for pid in {record.pid for record in h.environment.records.all()} if worker.owns(pid)}


def run_again(
    starts: Sequence[Record], ends: Sequence[Record], *, told: Mapping[int, float], grace_s: float
) -> list[Record]:
    """Return the runs of a message after which the same attempt was started again without need.

    There is need only if a run did not end by itself, and the grace of its worker was over.

    Args:
        starts: The message's.
        ends: Those of its runs.
        told: When each process was told to stop that was, by its number.
        grace_s: How long a process has after that.
    """
    pairs = [(run, again) for run, again in combinations(starts, 2) if run.attempt == again.attempt]
    return [run for run, again in pairs if not _was_cut_off(run, again, ends, over_at=told.get(run.pid, inf) + grace_s)]


def _was_cut_off(run: Record, again: Record, ends: Sequence[Record], *, over_at: float) -> bool:
    """Tell whether a run was ended from outside, and not before its grace was over."""
    own = [end for end in ends if (end.attempt, end.pid) == (run.attempt, run.pid) and end.at >= run.at]
    if not own:  # it went down with its process
        return again.at >= over_at
    return own[0].data["ending"] == _INTERRUPTED and own[0].at >= over_at


@contextmanager
def _load(h: Harness) -> Generator[list[str]]:
    """Send messages all the while; yields their ids."""
    sent: list[str] = []
    over = threading.Event()

    def send() -> None:
        while not over.wait(_EVERY_S):
            sent.append(h.send(_PLANS[len(sent) % len(_PLANS)]).id)

    thread = threading.Thread(target=send, name="contract-load", daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()
