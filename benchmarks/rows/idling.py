"""How soon an idle worker starts a task, and what it costs while it has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import quantiles
from typing import Final

from benchmarks.contenders import BRIDGES, BRPOP, CELERY, DRAMATIQ, PEERS, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import WorkerProcess
from benchmarks.rows.base import Measure, Row

_READY_S: Final = 60.0
_GAP_S: Final = 0.04
_IDLE_S: Final = 2.0


def ready(place: Place, contender: Contender, broker: str, worker: WorkerProcess) -> None:
    """Return when a worker has run a task."""
    place.run(contender, broker, "marking", "knock")
    worker.wait_for("mark", first="ready", timeout_s=_READY_S)


def _on(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        with place.worker(contender, broker) as worker:
            ready(place, contender, broker, worker)
            time.sleep(1.0)
            used_s = worker.cpu_s()
            time.sleep(_IDLE_S)
            idle_cpu = (worker.cpu_s() - used_s) / _IDLE_S
            place.run(contender, broker, "marking", "marks", plan.marks, _GAP_S)
            found = worker.wait_for("mark", first="idle", count=plan.marks, timeout_s=_READY_S)
        hundredths = quantiles([float(words[1]) * 1e3 for words in found], n=100)
        return {"p50 ms": hundredths[49], "p99 ms": hundredths[98], "idle CPU %": idle_cpu * 100}

    return measure


ROWS: Final = tuple(
    Row(
        key=f"idle-{broker}",
        title=f"start of a task on an idle worker, {name}",
        contenders=(*BRIDGES, CELERY, DRAMATIQ, *((*PEERS, BRPOP) if broker == "redis" else ())),
        measure=_on(broker),
        metrics=("p50 ms", "p99 ms", "idle CPU %"),
    )
    for broker, name in (("redis", "Redis"), ("amqp", "RabbitMQ"))
)
