"""How many tasks that do nothing a worker runs in a second, with eight slots in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import (
    BRIDGES,
    CELERY,
    CELERY_EARLY,
    CELERY_SOLO,
    DRAMATIQ,
    DRAMATIQ_FULL,
    PEERS,
    PLAIN_BRIDGES,
    SEEN,
    TRACED,
    WITH_DJANGO,
    Contender,
)
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row

_TIMEOUT_S: Final = 120.0
_METRICS: Final = ("tasks/s", "cpu_us", "server_us")


def worked(
    place: Place, contender: Contender, broker: str, tasks: int, more: Mapping[str, str] | None = None
) -> Mapping[str, float]:
    """Return what a worker does with a queue that is full before it starts: tasks a second, and CPU time a task."""
    first, last = tasks * 2 // 5, tasks  # the first ones run while threads are still being started, and queues declared
    place.empty(broker)
    place.run(contender, broker, "marking", "fill", tasks)
    with place.worker(contender, broker, marked=(first, last), more=more) as worker:
        ticks = worker.wait_for("tick", count=2, timeout_s=_TIMEOUT_S)
    (_, *start), (_, *end) = ticks
    took_s, cpu_s, server_s = (float(after) - float(before) for before, after in zip(start, end, strict=True))
    count = last - first
    return {"tasks/s": count / took_s, "cpu_us": cpu_s / count * 1e6, "server_us": server_s / count * 1e6}


def _on(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        return worked(place, contender, broker, plan.tasks)

    return measure


_CONTENDERS: Final = (*BRIDGES, *PLAIN_BRIDGES, CELERY, CELERY_SOLO, CELERY_EARLY, DRAMATIQ, DRAMATIQ_FULL)

ROWS: Final = (
    Row(
        key="worker-redis",
        title="worker, Redis, tasks/s",
        contenders=(*_CONTENDERS, *PEERS),
        measure=_on("redis"),
        metrics=_METRICS,
        more_is_better=True,
        is_long=True,
    ),
    Row(
        key="worker-amqp",
        title="worker, RabbitMQ, tasks/s",
        contenders=tuple(each for each in _CONTENDERS if each is not CELERY_SOLO),
        measure=_on("amqp"),
        metrics=_METRICS,
        more_is_better=True,
        is_long=True,
    ),
    *(
        Row(
            key=f"worker-{key}",
            title=f"worker, {title}, tasks/s",
            contenders=contenders,
            measure=_on(broker),
            metrics=_METRICS,
            more_is_better=True,
            is_long=True,
        )
        for key, broker, title, contenders in (
            ("traced", "redis", "Redis, traced by OpenTelemetry", TRACED),
            ("django", "redis", "Redis, in an application with Django", WITH_DJANGO),
            ("seen-redis", "redis", "Redis, with metrics and with our spans", SEEN),
            ("seen-amqp", "amqp", "RabbitMQ, with metrics and with our spans", SEEN),
        )
    ),
)
