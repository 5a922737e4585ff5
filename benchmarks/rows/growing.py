"""How cost grows: with the queues that are known, with what is parked, with threads; and what an event loop feels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, ENGINES, PEERS, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import MeasuringFailed
from benchmarks.rows.base import Measure, Row
from benchmarks.rows.idling import ready
from benchmarks.rows.working import worked

_SMALL: Final = 10
_QUEUES: Final = (0, 10, 100)
_SENDERS_QUEUES: Final = (10, 1000)
_PARKED: Final = (0, 100_000, 1_000_000)
_THREADS: Final = (1, 8, 32)
_AMQP_THREADS: Final = (8, 32)
_WATCHED_S: Final = 5.0


def _with_queues(more: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty("redis")
        variables = {"BENCH_MORE_QUEUES": str(more)}
        return place.run(contender, "redis", "sending", "each", _SMALL, plan.sends, more=variables)

    return measure


def _worker_with_queues(more: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        return worked(place, contender, "redis", plan.tasks // 2, queues=more)

    return measure


def _parked(size: int) -> Measure:
    """Park so many messages, and measure beside them."""

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        if size > plan.most_parked:
            raise MeasuringFailed("only without --quick")
        place.empty("redis")
        place.run(contender, "redis", "parking", size)
        scheduled = place.run(contender, "redis", "sending", "later", _SMALL, plan.sends)
        sent = place.run(contender, "redis", "sending", "each", _SMALL, plan.sends)
        with place.worker(contender, "redis") as worker:
            ready(place, contender, "redis", worker)
            time.sleep(_WATCHED_S)
            memory_mb = worker.memory_mb()
        return {"schedule us": scheduled["us"], "send us": sent["us"], "worker MB": memory_mb}

    return measure


def _threads(broker: str, number: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        return place.run(contender, broker, "sending", "threads", _SMALL, plan.sends, number)

    return measure


def _stall(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    place.empty("redis")
    return place.run(contender, "redis", "sending", "stall", _SMALL, plan.sends // 3)


def _row(
    key: str,
    title: str,
    measure: Measure,
    *metrics: str,
    contenders: tuple[Contender, ...] = BRIDGES,
) -> Row:
    return Row(
        key=key,
        title=title,
        contenders=contenders,
        measure=measure,
        metrics=metrics,
        is_extra=True,
        is_once=True,
        more_is_better=metrics[0] == "tasks/s",
    )


_ASYNC: Final = tuple(peer for peer in PEERS if peer.name in ("arq", "taskiq", "SAQ"))

ROWS: Final = (
    *(_row(f"queues-{n}", f"send, Redis, {n} more queues known", _with_queues(n), "us") for n in _SENDERS_QUEUES),
    *(
        _row(f"worker-queues-{n}", f"worker, Redis, {n} more queues, tasks/s", _worker_with_queues(n), "tasks/s")
        for n in _QUEUES
    ),
    *(
        _row(
            f"parked-{size // 1000}k",
            f"{size:,} messages parked, Redis",
            _parked(size),
            *("schedule us", "send us", "worker MB"),
        )
        for size in _PARKED
    ),
    *(
        _row(
            f"threads-{n}",
            f"send from {n} threads, Redis",
            _threads("redis", n),
            "us",
            "cpu_us",
            contenders=(*BRIDGES, *ENGINES),
        )
        for n in _THREADS
    ),
    *(
        _row(
            f"threads-amqp-{n}",
            f"send from {n} threads, RabbitMQ, confirmed",
            _threads("amqp", n),
            "us",
            "cpu_us",
            contenders=(*BRIDGES, *ENGINES),
        )
        for n in _AMQP_THREADS
    ),
    _row(
        "stall",
        "send from an event loop, Redis: its longest stall",
        _stall,
        *("stall_ms", "us"),
        contenders=(*BRIDGES, *ENGINES, *_ASYNC),
    ),
)
