"""Rows about tasks that fail, and are to be retried."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.guarantees.applications.work import Step
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, row
from benchmarks.guarantees.trial import Trial

_FAILS: Final = Step(ending="fails")


@row(
    "The broker is away for 12 s just when a task fails and is to be retried",
    kept="the retry is run",
    issues=(
        Issue(
            engine="dramatiq",
            place="Bogdanp/dramatiq#545",
            says="a message whose retry could not be enqueued is acknowledged, and lost",
        ),
    ),
)
def retry_in_an_outage(t: Trial) -> Outcome:
    """The task fails 4 s after its start; its worker's connection is cut after 1 s, and refused until after 13 s.

    Watched for 50 s after the broker is back; the seconds are those until the retry starts.
    """
    t.start_worker()
    key = t.send(Step(sleep_s=4, ending="fails"), Step())
    t.wait_start(key)
    time.sleep(1)
    t.proxy.cut()
    time.sleep(12)
    t.proxy.restore()
    back_at = time.time()
    done = t.wait_done([key], 50)
    starts = t.starts(key)
    return Outcome(
        kept=done,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key], runs=2),
        seconds=starts[-1].at - back_at if done else None,
        remark="" if done else "watched for 50 s",
    )


@row(
    "A task fails once, with default options",
    kept="it is run again within 45 s",
    defaults=True,
)
def failure_with_default_options(t: Trial) -> Outcome:
    """No option is set, on the task or elsewhere. The seconds are those until the second run."""
    t.start_worker()
    key = t.send(_FAILS, Step())
    failed_at = t.wait_start(key)
    done = t.wait_done([key], 45)
    return Outcome(
        kept=done,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key], runs=2),
        seconds=t.starts(key)[-1].at - failed_at if done else None,
        remark="" if done else f"{len(t.starts(key))} run",
    )


@row(
    "A task fails for good, after three attempts",
    kept="it was run three times, and is kept, so that it can be looked at and sent again",
    attempts=3,
)
def failed_for_good(t: Trial) -> Outcome:
    """Lost is what is not kept as a dead letter 10 s after the third run."""
    t.start_worker()
    key = t.send(_FAILS)
    t.until(lambda: len(t.starts(key)) >= 3, 30)
    t.until(lambda: t.dead_letters() > 0, 10)
    runs, letters = len(t.starts(key)), t.dead_letters()
    return Outcome(
        kept=runs == 3 and letters == 1,
        sent=1,
        lost=1 - min(letters, 1),
        twice=1 if runs > 3 else 0,
        remark=f"{runs} runs, dead letters {letters}",
    )
