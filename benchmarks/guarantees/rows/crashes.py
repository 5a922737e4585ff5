"""Rows about workers that are killed or stopped."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.guarantees.applications.work import Step
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, add_row, row
from benchmarks.guarantees.trial import Trial

_LEASE_S: Final = 5.0
_WATCHED_S: Final = 40.0
_WATCHED_LONG_S: Final = 80.0
_DEADLY_S: Final = 60.0
_ATTEMPTS: Final = 3
_ENOUGH: Final = 6
_NEXT_S: Final = 20.0
_KILLED_AFTER_S: Final = 10.0
_MOVED_S: Final = 15.0

_NO_COUNT: Final = Issue(
    engine="celery",
    place="celery/celery#9082",
    says="a task that loses its worker is requeued without end and without regard to its limit of retries",
)

_NO_RETRIES: Final = Issue(
    engine="dramatiq",
    place="Bogdanp/dramatiq#213",
    says="a task whose process is killed is run again at once, without regard to max_retries",
)


def _killed_worker(t: Trial) -> Outcome:
    """Two workers; the one that runs the task is killed, all its processes at once. The other is watched for 40 s.

    The seconds are those until the task starts again.
    """
    return _kill(t, _WATCHED_S)


def _killed_worker_of_defaults(t: Trial) -> Outcome:
    """Two workers; the one that runs the task is killed. The other is watched for 80 s: taskbridge's own lease is 60 s.

    The seconds are those until the task starts again.
    """
    return _kill(t, _WATCHED_LONG_S)


def _kill(t: Trial, watched_s: float) -> Outcome:
    first = t.start_worker()
    key = t.send(Step(sleep_s=300), Step())
    t.wait_start(key)
    t.start_worker()
    killed_at = time.time()
    first.kill()
    done = t.wait_done([key], watched_s)
    starts = t.starts(key)
    return Outcome(
        kept=done,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key], runs=2),
        seconds=starts[1].at - killed_at if len(starts) > 1 else None,
        remark="" if done else f"not started again in {watched_s:g} s",
    )


add_row(
    "killed-worker",
    "A worker is killed (`kill -9`) in the middle of a task",
    _killed_worker,
    kept="the task starts again within 40 s, and is done",
    lease_s=_LEASE_S,
)

add_row(
    "killed-worker-defaults",
    "A worker is killed in the middle of a task; default settings",
    _killed_worker_of_defaults,
    kept="the task starts again within 80 s, and is done",
    defaults=True,
    issues=(
        Issue(
            engine="dramatiq",
            place="Bogdanp/dramatiq#64",
            says="on Redis, what a crashed worker held is not dispatched again for long",
        ),
    ),
)


def _watch(t: Trial, key: str) -> Outcome:
    began = time.time()
    t.until(lambda: len(t.starts(key)) >= _ENOUGH, _DEADLY_S)
    watched_s = time.time() - began
    runs = len(t.starts(key))
    after = t.send()
    usable = t.wait_done([after], _NEXT_S)
    runs_word = "run" if runs == 1 else "runs"
    remark = f"{runs} {runs_word} in {watched_s:.0f} s"
    if not usable:
        remark += ", and the next message did not run"
    return Outcome(
        kept=0 < runs <= _ATTEMPTS and usable,
        sent=2,
        lost=0 if usable else 1,
        twice=1 if runs > _ATTEMPTS else 0,
        remark=remark,
    )


@row(
    "A message kills the process that runs it, each time (a crash, out of memory); three attempts are allowed",
    kept="it is run three times at most, and the next message is run",
    lease_s=_LEASE_S,
    attempts=_ATTEMPTS,
    issues=(_NO_COUNT, _NO_RETRIES),
)
def deadly_message(t: Trial) -> Outcome:
    """The task kills its own process. The worker is started again whenever it ends.

    Watched for 60 s, or until six runs; then another message is sent. Counted are the runs; it is never done, for it
    can't be.
    """
    t.start_worker()
    key = t.send(Step(ending="kills process"))
    t.wait_start(key)
    return _watch(t, key)


@row(
    "A message takes its whole worker down, each time (its container is out of memory); three attempts are allowed",
    kept="it is run three times at most, and the next message is run",
    lease_s=_LEASE_S,
    attempts=_ATTEMPTS,
    issues=(_NO_COUNT, _NO_RETRIES),
)
def deadly_message_for_the_worker(t: Trial) -> Outcome:
    """The task kills all processes of its worker, which is started again whenever it ends.

    Watched for 60 s, or until six runs; then another message is sent. Counted are the runs; it is never done, for it
    can't be.
    """
    t.start_worker()
    key = t.send(Step(ending="kills worker"))
    t.wait_start(key)
    return _watch(t, key)


@row(
    "A deploy stops a worker (SIGTERM, SIGKILL after 10 s) in the middle of a long task",
    kept="another worker starts the task within 15 s, and the stopped one ended by itself",
    lease_s=_LEASE_S,
)
def stopped_worker(t: Trial) -> Outcome:
    """Two workers, with 4 s to stop; the one that runs a task of a minute gets SIGTERM, and SIGKILL 10 s later.

    The seconds are those from SIGTERM until the task starts on the other one.
    """
    first = t.start_worker()
    key = t.send(Step(sleep_s=60), Step())
    t.wait_start(key)
    t.start_worker()
    told_at = time.time()
    first.terminate()
    code = first.wait(_KILLED_AFTER_S)
    first.kill()
    done = t.wait_done([key], _WATCHED_S)
    starts = t.starts(key)
    seconds = starts[1].at - told_at if len(starts) > 1 else None
    return Outcome(
        kept=done and seconds is not None and seconds <= _MOVED_S and code is not None,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key], runs=2),
        seconds=seconds,
        remark="it had to be killed" if code is None else f"exit code {code}",
    )
