"""Rows about sending."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.guarantees.clerks import Answer, Clerk
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, add_row, row
from benchmarks.guarantees.trial import Trial

_LIMIT_S: Final = 5.5
"""The five seconds that all are told, and a tenth."""

_WATCHED_S: Final = 30.0


def _tells(answer: Answer) -> str:
    if answer.hangs:
        return f"no answer for {answer.seconds:g} s"
    return answer.error.partition(":")[0] or "it returned as if all were well"


def _in_time(answer: Answer) -> bool:
    return bool(answer.error) and answer.seconds <= _LIMIT_S


@row(
    "The broker stops answering (a black hole in the network) as a message is sent",
    kept="the send fails within 5.5 s, for all are told 5 s as their limit",
)
def send_into_a_black_hole(t: Trial) -> Outcome:
    """A process that has sent before sends again, over a connection that takes bytes and gives none.

    Watched for 30 s; the seconds are those until the send failed.
    """
    clerk = t.clerk(proxied=True)
    t.send(by=clerk)
    t.proxy.stall()
    _, answer = t.try_send(by=clerk, within_s=_WATCHED_S)
    return Outcome(kept=_in_time(answer), sent=1, seconds=answer.seconds, remark=_tells(answer))


@row(
    "The broker is down as a message is sent; then it is back, and the same process sends again",
    kept="the first send fails within 5.5 s, the second one's message is run",
)
def send_while_refused(t: Trial) -> Outcome:
    """A process that has sent before sends while connections are refused, and once more after. Watched for 30 s."""
    t.start_worker(proxied=False)
    clerk = t.clerk(proxied=True)
    t.send(by=clerk)
    t.proxy.cut()
    _, answer = t.try_send(by=clerk, within_s=_WATCHED_S)
    t.proxy.restore()
    key, second = _second(t, clerk, answer)
    done = second.ok and t.wait_done([key], 20)
    return Outcome(
        kept=_in_time(answer) and done,
        sent=1,
        lost=0 if done else 1,
        seconds=answer.seconds,
        remark=_tells(answer) + ("" if second.ok else f"; and then {_tells(second)}"),
    )


def _second(t: Trial, clerk: Clerk, first: Answer) -> tuple[str, Answer]:
    if first.hangs:  # the clerk still has the first one in hand
        return "", first
    return t.try_send(by=clerk, within_s=_WATCHED_S)


@row(
    "The broker is full as a message is sent (Redis answers `OOM`, RabbitMQ has its memory alarm)",
    kept="the send fails within 5.5 s",
    server="own",
    issues=(
        Issue(
            engine="celery",
            place="celery/celery#2689",
            says="apply_async hangs without end while RabbitMQ has its memory alarm",
        ),
        Issue(engine="celery", place="celery/celery#10386", says="there is no timeout for a blocked connection"),
    ),
)
def send_to_a_full_broker(t: Trial) -> Outcome:
    """A process that has sent before. Watched for 30 s."""
    clerk = t.clerk(proxied=True)
    t.send(by=clerk)
    t.fill()
    time.sleep(1)
    try:
        _, answer = t.try_send(by=clerk, within_s=_WATCHED_S)
    finally:
        t.empty()
    return Outcome(kept=_in_time(answer), sent=1, seconds=answer.seconds, remark=_tells(answer))


def _dropped(t: Trial) -> Outcome:
    """One process sends four messages; between them its connection is dropped, as a firewall drops idle ones.

    Lost is what was not run, though its sending returned.
    """
    t.start_worker(proxied=False)
    clerk = t.clerk(proxied=True)
    returned: list[str] = []
    errors = 0
    for _ in range(4):
        key, answer = t.try_send(by=clerk)
        if answer.ok:
            returned.append(key)
        else:
            errors += 1
        t.proxy.drop()
        time.sleep(0.3)
    done = t.wait_done(returned, 15)
    return Outcome(
        kept=done and not errors,
        sent=4,
        lost=t.lost(returned),
        twice=t.twice(returned),
        remark=f"{errors} sends failed" if errors else "",
    )


add_row(
    "send-after-a-dropped-connection",
    "The first send after the connection was dropped unnoticed",
    _dropped,
    kept="all messages are run",
)

add_row(
    "send-after-a-dropped-connection-defaults",
    "The first send after the connection was dropped unnoticed; default settings",
    _dropped,
    kept="all messages are run",
    defaults=True,
)
