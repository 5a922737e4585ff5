"""Rows about what runs, and in which order."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.guarantees.applications.work import Step
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, row
from benchmarks.guarantees.trial import Trial

_LOW: Final = 20
_SLOTS_AND_PREFETCHED: Final = 2


@row(
    "A task of 16 s, with a visibility timeout (lease) of 5 s",
    kept="it is started once",
    lease_s=5.0,
    issues=(
        Issue(
            engine="celery",
            place="celery/celery#5935",
            says="on Redis, a task that runs for longer than the visibility timeout is delivered again",
        ),
    ),
)
def task_over_visibility_timeout(t: Trial) -> Outcome:
    """Two workers. Watched until 8 s after its end."""
    t.start_worker()
    t.start_worker()
    key = t.send(Step(sleep_s=16))
    done = t.wait_done([key], 40)
    time.sleep(8)
    runs = len(t.starts(key))
    return Outcome(
        kept=done and runs == 1,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key]),
        remark=f"{runs} runs" if runs > 1 else "",
    )


@row(
    "The worker's connection drops while a task runs",
    kept="it is done, and not run again",
)
def connection_lost_in_a_task(t: Trial) -> Outcome:
    """The connection is cut 2 s after the start of a task of 8 s, for 2 s. Watched until 12 s after its end."""
    t.start_worker()
    key = t.send(Step(sleep_s=8))
    t.wait_start(key)
    time.sleep(2)
    t.proxy.cut()
    time.sleep(2)
    t.proxy.restore()
    done = t.wait_done([key], 30)
    time.sleep(12)
    runs = len(t.starts(key))
    return Outcome(
        kept=done and runs == 1,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key]),
        remark=f"{runs} runs" if runs > 1 else "",
    )


@row(
    "The worker's connection drops again and again as messages arrive",
    kept="all are run",
    lease_s=5.0,
    issues=(
        Issue(
            engine="celery",
            place="celery/celery#4354",
            says="on Redis, what was handed out and is not read yet when a worker stops is lost",
        ),
    ),
)
def connection_lost_as_messages_arrive(t: Trial) -> Outcome:
    """Twenty messages, one each 0.3 s; the worker's connections are dropped just after each. Watched for 40 s more.

    The seconds are those until the last one started.
    """
    t.start_worker()
    keys: list[str] = []
    for _ in range(20):
        keys.append(t.send())
        t.proxy.drop()
        time.sleep(0.3)
    sent_at = time.time()
    done = t.wait_done(keys, 40)
    return Outcome(
        kept=done,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=max(0.0, max(t.starts(key)[0].at for key in keys) - sent_at) if done else None,
        remark="" if done else "watched for 40 s",
    )


@row(
    "The broker is away for 6 s while the worker has nothing to do",
    kept="messages that are sent afterwards start within 15 s",
)
def idle_worker_in_an_outage(t: Trial) -> Outcome:
    """Three messages are sent as soon as the broker is back. Watched for 40 s.

    The seconds are those until all have started.
    """
    t.start_worker()
    first = t.send()
    t.wait_done([first], 20)
    t.proxy.cut()
    time.sleep(6)
    t.proxy.restore()
    back_at = time.time()
    keys = [t.send() for _ in range(3)]
    done = t.wait_done(keys, 40)
    seconds = max(t.starts(key)[0].at for key in keys) - back_at if done else None
    return Outcome(
        kept=done and seconds is not None and seconds <= 15,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=seconds,
    )


@row(
    "Short tasks come while one of two workers is busy with a long one",
    kept="all of them start within 3 s, on the idle worker",
)
def short_tasks_behind_a_long_one(t: Trial) -> Outcome:
    """Two workers, a task of 12 s, then eight that take no time. The seconds are until the last of these starts."""
    t.start_worker()
    t.start_worker()
    long = t.send(Step(sleep_s=12))
    t.wait_start(long)
    sent_at = time.time()
    keys = [t.send() for _ in range(8)]
    done = t.wait_done(keys, 30)
    seconds = max(t.starts(key)[0].at for key in keys) - sent_at if done else None
    return Outcome(
        kept=done and seconds is not None and seconds <= 3,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=seconds,
    )


@row(
    "An urgent message comes behind twenty that are not",
    kept="at most three of those start before it: one may run, one may be prefetched, one may start meanwhile",
    issues=(
        Issue(
            engine="dramatiq",
            place="Bogdanp/dramatiq#232",
            says="on Redis, a priority orders only what a worker has already fetched",
        ),
    ),
)
def urgent_message(t: Trial) -> Outcome:
    """Twenty messages of low priority, half a second each, for one worker; when two have started, one of high priority.

    Counted are those of low priority that start between its sending and its start.
    """
    low = [t.send(Step(sleep_s=0.5), priority="low") for _ in range(_LOW)]
    t.start_worker()
    t.until(lambda: sum(bool(t.starts(key)) for key in low) >= 2, 30)
    urgent = t.send(priority="high")
    sent_at = time.time()
    done = t.wait_done([urgent], 30)
    started_at = t.starts(urgent)[0].at if done else float("inf")
    before = sum(sent_at < start.at < started_at for key in low for start in t.starts(key))
    t.wait_done(low, 30)
    keys = [*low, urgent]
    return Outcome(
        kept=done and before <= _SLOTS_AND_PREFETCHED + 1,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=started_at - sent_at if done else None,
        remark=f"{before} started before it",
    )
