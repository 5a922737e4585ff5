"""What it costs to keep results, and how soon who waits for one has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import CELERY_RESULTS, DRAMATIQ_RESULTS, IN_POSTGRESQL, RECORDED, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Row
from benchmarks.rows.idling import ready
from benchmarks.rows.working import worked

_PAYLOAD: Final = 10
_GAP_S: Final = 0.02
_WITH_RESULTS: Final = (*RECORDED, CELERY_RESULTS, DRAMATIQ_RESULTS)


def _sent(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    place.empty("redis")
    return place.run(contender, "redis", "sending", "each", _PAYLOAD, plan.sends)


def _worked(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    return worked(place, contender, "redis", plan.tasks // 2)


def _waited(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    place.empty("redis")
    with place.worker(contender, "redis") as worker:
        ready(place, contender, "redis", worker)
        return place.run(contender, "redis", "waiting", plan.marks, _GAP_S)


ROWS: Final = (
    Row(
        key="results-send",
        title="send, Redis, results kept",
        contenders=_WITH_RESULTS,
        measure=_sent,
        metrics=("us", "cpu_us"),
    ),
    Row(
        key="results-worker",
        title="worker, Redis, results kept, tasks/s",
        contenders=_WITH_RESULTS,
        measure=_worked,
        metrics=("tasks/s", "cpu_us", "server_us"),
        more_is_better=True,
        is_long=True,
    ),
    Row(
        key="results-wait",
        title="from a task's end to who waits for its result",
        contenders=(*RECORDED, *IN_POSTGRESQL, CELERY_RESULTS, DRAMATIQ_RESULTS),
        measure=_waited,
        metrics=("p50 ms", "p99 ms"),
        is_long=True,
    ),
)
