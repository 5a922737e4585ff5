"""Whether a worker's memory stays flat: many tasks, one after another, while many messages wait for their time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import MeasuringFailed, WorkerProcess
from benchmarks.rows.base import Measure, Row

_WARM_SHARE: Final = 0.1
_PARKED_SHARE: Final[Mapping[str, float]] = {"redis": 1.0, "amqp": 0.1}
"""How much of `Plan.most_parked` is parked; on RabbitMQ, where that takes longer, a tenth."""

_TIMEOUT_S: Final = 900.0
_LOOK_S: Final = 0.5


def _on(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        warm = int(plan.lasting * _WARM_SHARE)
        last = warm + plan.lasting
        place.empty(broker)
        place.run(contender, broker, "parking", int(plan.most_parked * _PARKED_SHARE[broker]))
        place.run(contender, broker, "marking", "fill", last)
        with place.worker(contender, broker, marked=(warm, last)) as worker:
            worker.wait_for("tick", timeout_s=_TIMEOUT_S)
            before_mb = worker.memory_mb()
            most_mb = _most_mb(worker, before_mb)
            (_, start, *_), (_, end, *_) = worker.wait_for("tick", count=2, timeout_s=0.1)
        return {
            "MB more": most_mb - before_mb,
            "MB": before_mb,
            "tasks/s": plan.lasting / (float(end) - float(start)),
        }

    return measure


def _most_mb(worker: WorkerProcess, most_mb: float) -> float:
    """Return the most that a worker holds until it has run the last of its tasks."""
    deadline = time.monotonic() + _TIMEOUT_S
    while len(worker.lines("tick")) < 2:
        if time.monotonic() > deadline:
            raise MeasuringFailed(f"not done after {_TIMEOUT_S:.0f} s")
        time.sleep(_LOOK_S)
        most_mb = max(most_mb, worker.memory_mb())
    return most_mb


ROWS: Final = tuple(
    Row(
        key=f"lasting-{broker}",
        title=f"memory of a worker over 200,000 tasks, with {parked} messages parked, {name}",
        contenders=BRIDGES,
        measure=_on(broker),
        metrics=("MB more", "MB", "tasks/s"),
        is_once=True,
    )
    for broker, name, parked in (("redis", "Redis", "1,000,000"), ("amqp", "RabbitMQ", "100,000"))
)
