"""Rows about what waits: delays and expiry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from benchmarks.guarantees.applications.work import EXPIRED, Step
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, add_row, row
from benchmarks.guarantees.trial import Trial

_LATE_S: Final = 5.0
_SOON_S: Final = 10.0
_PAUSE_S: Final = 0.5
_BACKLOG: Final = 1500


def _lateness(t: Trial, keys: Sequence[str], due: float) -> float | None:
    starts = [t.starts(key) for key in keys]
    return max(each[0].at for each in starts) - due if all(starts) else None


def _many_times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@row(
    "A delay of 20 s, with a visibility timeout (lease) of 5 s",
    kept="it runs once, and starts at most 5 s late",
    lease_s=5.0,
    issues=(
        Issue(
            engine="celery",
            place="celery/kombu#337",
            says="on Redis, a task whose delay exceeds the visibility timeout is run several times",
        ),
        Issue(engine="celery", place="celery/celery#4766", says="the same, asked to be said in the documentation"),
    ),
)
def delay_over_visibility_timeout(t: Trial) -> Outcome:
    """Two workers. The seconds are how late it started."""
    t.start_worker()
    t.start_worker()
    delay_s = 20.0
    key = t.send(delay_s=delay_s)
    due = time.time() + delay_s
    done = t.wait_done([key], delay_s + 20)
    time.sleep(8)
    late_s = _lateness(t, [key], due)
    runs = len(t.starts(key))
    return Outcome(
        kept=done and runs == 1 and late_s is not None and late_s <= _LATE_S,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key]),
        seconds=late_s,
        remark=f"{runs} runs" if runs > 1 else "",
    )


def _consumer_timeout(t: Trial) -> Outcome:
    """RabbitMQ with a `consumer_timeout` of 5 s, which it looks at each second; a delay of 20 s.

    Redis has no such timeout; there it is a delay of 20 s alone. The seconds are how late it started.
    """
    t.start_worker()
    delay_s = 20.0
    key = t.send(delay_s=delay_s)
    due = time.time() + delay_s
    done = t.wait_done([key], delay_s + 20)
    time.sleep(3)
    late_s = _lateness(t, [key], due)
    runs = len(t.starts(key))
    remarks = [f"{runs} runs"] if runs > 1 else []
    remarks += [f"the worker ended {_many_times(t.ends)}"] if t.ends else []
    return Outcome(
        kept=done and runs == 1 and not t.ends and late_s is not None and late_s <= _LATE_S,
        sent=1,
        lost=t.lost([key]),
        twice=t.twice([key]),
        seconds=late_s,
        remark=", ".join(remarks),
    )


_TIMED_OUT: Final = Issue(
    engine="celery",
    place="celery/celery#6760",
    says="a delay longer than RabbitMQ's consumer_timeout, 30 minutes by default, ends the worker",
)

add_row(
    "delay-over-consumer-timeout",
    "A delay longer than RabbitMQ's consumer timeout",
    _consumer_timeout,
    kept="it runs once, at most 5 s late, and the worker stays",
    server="impatient",
    issues=(_TIMED_OUT,),
)

add_row(
    "delay-over-consumer-timeout-defaults",
    "A delay longer than RabbitMQ's consumer timeout; default settings",
    _consumer_timeout,
    kept="it runs once, at most 5 s late, and the worker stays",
    server="impatient",
    defaults=True,
    issues=(_TIMED_OUT,),
)


@row(
    "The worker's connection drops while delayed tasks wait",
    kept="all are run, at most 10 s late",
    issues=(
        Issue(
            engine="celery",
            place="celery/celery#1307",
            says="on Redis, a worker that reconnects does not give back the delayed tasks that it held",
        ),
        Issue(
            engine="dramatiq",
            place="Bogdanp/dramatiq#527",
            says="on Redis, delayed messages don't run after the connection was lost, or hours later",
        ),
    ),
)
def connection_lost_with_delays(t: Trial) -> Outcome:
    """Five tasks with a delay of 8 s; 3 s after they were sent, the worker's connection is cut, for 2 s.

    Watched until 40 s after they are due. The seconds are how late the last one started.
    """
    t.start_worker()
    delay_s = 8.0
    keys = [t.send(delay_s=delay_s) for _ in range(5)]
    due = time.time() + delay_s
    time.sleep(3)
    t.proxy.cut()
    time.sleep(2)
    t.proxy.restore()
    done = t.wait_done(keys, delay_s + 35)
    late_s = _lateness(t, keys, due)
    return Outcome(
        kept=done and late_s is not None and late_s <= _SOON_S,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=late_s,
        remark="" if done else "watched until 40 s after they were due",
    )


@row(
    "The broker is full for a while (Redis answers `OOM`, RabbitMQ has its memory alarm) while delayed tasks wait",
    kept="these, and a delayed task that is sent afterwards, are run; the worker stays",
    server="own",
)
def full_broker_with_delays(t: Trial) -> Outcome:
    """Five tasks with a delay of 5 s; the broker is full from 2 s to 10 s after they were sent.

    Watched for 30 s more; then a sixth is sent, with a delay of 2 s, and watched for 20 s.
    """
    t.start_worker()
    keys = [t.send(delay_s=5.0) for _ in range(5)]
    time.sleep(2)
    t.fill()
    time.sleep(8)
    t.empty()
    t.wait_done(keys, 30)
    keys.append(t.send(delay_s=2.0))
    done = t.wait_done(keys, 20)
    return Outcome(
        kept=done and not t.ends,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        remark=f"the worker ended {_many_times(t.ends)}" if t.ends else "",
    )


@row(
    f"{_BACKLOG:,} tasks are delayed for ten minutes; then come one with a delay of 2 s and one without",
    kept="both start at most 3 s late",
    issues=(
        Issue(
            engine="celery",
            place="celery/kombu#271",
            says="with many delayed tasks on RabbitMQ, hardly any other comes through",
        ),
    ),
)
def short_delay_behind_long_ones(t: Trial) -> Outcome:
    """One worker, started when the long ones have been sent. Watched for 30 s.

    The seconds are how late the later of the two started.
    """
    plain = [Step().plain()]
    answer = t.office.call("send_many", within_s=90, key="long", count=_BACKLOG, steps=plain, delay_s=600.0)
    t.start_worker()
    time.sleep(3)
    short = t.send(delay_s=2.0)
    due = time.time() + 2
    at_once = t.send()
    sent_at = time.time()
    keys = [short, at_once]
    done = t.wait_done(keys, 30)
    lates = [late_s for late_s in (_lateness(t, [short], due), _lateness(t, [at_once], sent_at)) if late_s is not None]
    late_s = max(lates) if len(lates) == len(keys) else None
    return Outcome(
        kept=answer.ok and done and late_s is not None and late_s <= 3,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        seconds=late_s,
        remark="" if done else "watched for 30 s",
    )


@row(
    "Tasks expire before a worker takes them",
    kept="none is run, and each is told of, so that it does not vanish",
)
def expired_tasks(t: Trial) -> Outcome:
    """Three tasks that expire after 1 s; the worker is started 3 s after they were sent.

    Lost is what neither ran nor was told of: by Celery's signal `task_revoked`, Dramatiq's middleware
    `after_skip_message`, taskbridge's hook `discarded`.
    """
    keys = [t.send(expires_s=1.0) for _ in range(3)]
    time.sleep(3)
    t.start_worker()
    t.until(lambda: t.count(EXPIRED) >= len(keys), 10)
    time.sleep(_PAUSE_S)
    told = t.count(EXPIRED)
    ran = sum(bool(t.starts(key)) for key in keys)
    return Outcome(
        kept=ran == 0 and told == len(keys),
        sent=len(keys),
        lost=len(keys) - told - ran,
        remark=f"told of {told}" + (f", ran {ran}" if ran else ""),
    )
