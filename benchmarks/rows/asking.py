"""What a message asks of the server from its sending to its end: CPU time, traffic, commands and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, CELERY, CELERY_RESULTS, DRAMATIQ, DRAMATIQ_RESULTS, RECORDED, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.readings import Reading
from benchmarks.rows.base import Measure, Row

_TIMEOUT_S: Final = 120.0
_SENT: Final = "sent: server µs"
_RUN: Final = "run: server µs"


def _of(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        empty = place.read(broker)
        place.run(contender, broker, "marking", "fill", plan.tasks)
        filled = place.read(broker)
        with place.senders(contender, broker, 1, sent=plan.sends):
            sent = place.read(broker)
            sent_to = place.read(broker, closely=True)
        count = plan.tasks + plan.sends
        before = place.read(broker)
        with place.worker(contender, broker, marked=(count,)) as worker:
            worker.wait_for("tick", timeout_s=_TIMEOUT_S)
            done = place.read(broker)
            done_with = place.read(broker, closely=True)
        left = place.read(broker)
        one_by_one = _each(filled, sent, plan.sends)
        run = _each(before, done, count)
        if broker == "amqp":  # its connections are counted from their beginning
            sent_bytes, run_bytes = sent_to.moved / plan.sends, done_with.moved / count
        else:
            sent_bytes, run_bytes = one_by_one["bytes"], run["bytes"]
        return {
            _SENT: one_by_one["us"],
            "sent 100 at once: server µs": _each(empty, filled, plan.tasks)["us"],
            _RUN: run["us"],
            "sent: commands": one_by_one["commands"],
            "run: commands": run["commands"],
            "sent: bytes": sent_bytes,
            "run: bytes": run_bytes,
            "waiting: bytes": (filled.held - empty.held) / plan.tasks,
            "done: bytes": (left.held - empty.held) / count,
        }

    return measure


def _each(before: Reading, after: Reading, count: int) -> Mapping[str, float]:
    return {
        "us": (after.cpu_s - before.cpu_s) / count * 1e6,
        "commands": (after.commands - before.commands) / count,
        "bytes": (after.moved - before.moved) / count,
    }


_TIMES: Final = (_SENT, "sent 100 at once: server µs", _RUN)

ROWS: Final = (
    Row(
        key="server-redis",
        title="what a message asks of Redis",
        contenders=(*BRIDGES, *RECORDED, CELERY, DRAMATIQ, CELERY_RESULTS, DRAMATIQ_RESULTS),
        measure=_of("redis"),
        metrics=(
            *(*_TIMES, "sent: commands", "run: commands", "sent: bytes", "run: bytes"),
            *("waiting: bytes", "done: bytes"),
        ),
        family="what a message asks of Redis",
        is_once=True,
    ),
    Row(
        key="server-amqp",
        title="what a message asks of RabbitMQ",
        contenders=(*BRIDGES, CELERY, DRAMATIQ),
        measure=_of("amqp"),
        metrics=(*_TIMES, "sent: bytes", "run: bytes"),
        family="what a message asks of RabbitMQ",
        is_once=True,
    ),
)
