"""Whether many delayed tasks hold others up: many for later, then one for now and one for soon."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, CELERY, DRAMATIQ, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row
from benchmarks.rows.idling import ready

_SOON_S: Final = 3.0
_AFTER_S: Final = 40.0
_LOOK_S: Final = 0.25


def _on(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        with place.worker(contender, broker) as worker:
            ready(place, contender, broker, worker)
            before_mb = most_mb = worker.memory_mb()
            place.run(contender, broker, "marking", "delayed", plan.delayed, plan.delay_s, _SOON_S)
            deadline = time.monotonic() + plan.delay_s + _AFTER_S
            while time.monotonic() < deadline and len(worker.lines("mark")) < 3:
                most_mb = max(most_mb, worker.memory_mb())
                time.sleep(_LOOK_S)
            late = {words[0]: float(words[1]) for words in worker.wait_for("mark", count=3, timeout_s=0.1)}
        return {"now s": late["now"], "soon s": late["soon"], "MB more": most_mb - before_mb}

    return measure


ROWS: Final = tuple(
    Row(
        key=f"delayed-{broker}",
        title=f"lateness behind delayed tasks, {name}",
        contenders=(*BRIDGES, CELERY, DRAMATIQ),
        measure=_on(broker),
        metrics=("now s", "soon s", "MB more"),
        is_once=True,
    )
    for broker, name in (("redis", "Redis"), ("amqp", "RabbitMQ"))
)
