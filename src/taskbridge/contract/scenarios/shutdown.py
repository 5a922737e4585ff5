"""A4 and R8 under load: workers are restarted one after another, as a deploy does it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step, fail
from taskbridge.contract.registry import STORED, scenario, with_processes
from taskbridge.contract.workers import Worker

_RESTARTS: Final = 6
_AFTER_GRACE_S: Final = 5.0
_EVERY_S: Final = 0.02
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

    Returns:
        How many messages came.
    """
    workers = [h.start_worker(threads=2), h.start_worker(processes=2)]
    with _load(h) as sent:
        for number in range(restarts):
            old = workers.pop(0)
            old.terminate()
            threads, processes = (2, 1) if number % 2 == 0 else (1, 2)
            workers.append(h.start_worker(threads=threads, processes=processes, answers=False))
            _has_ended(h, old)
    h.final(*sent, within_s=h.stage.patience_s + 30)
    h.idle(within_s=h.stage.patience_s + 10)
    runs = Counter((each, start.attempt) for each in sent for start in h.starts(each))
    h.equal("the attempts that were started again", [run for run, count in runs.items() if count > 1], [])
    return len(sent)


def _has_ended(h: Harness, worker: Worker) -> None:
    code = worker.wait(h.stage.spec.grace_s + _AFTER_GRACE_S)
    h.check(code == 0, f"a worker should end with code 0 in its grace, but has {code}\n{worker.log()}")


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
