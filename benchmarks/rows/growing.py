"""How cost grows with the queues and tasks that are known, with threads; and what an event loop feels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, ENGINES, PEERS, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row
from benchmarks.rows.idling import ready
from benchmarks.rows.working import worked

_SMALL: Final = 10
_SENDERS_QUEUES: Final = (1, 10, 100, 1000)
_WORKERS_QUEUES: Final = (1, 10, 100)
_TASKS: Final = (1, 100, 1000, 10_000)
_THREADS: Final = (1, 8, 32)
_AMQP_THREADS: Final = (8, 32)


def _with_queues(number: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty("redis")
        variables = {"BENCH_MORE_QUEUES": str(number - 1)}
        return place.run(contender, "redis", "sending", "each", _SMALL, plan.sends, more=variables)

    return measure


def _worker_with_queues(number: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        return worked(place, contender, "redis", plan.tasks // 2, {"BENCH_MORE_QUEUES": str(number - 1)})

    return measure


def _with_tasks(number: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty("redis")
        variables = {"BENCH_MORE_TASKS": str(number - 1)}
        sent = place.run(contender, "redis", "sending", "each", _SMALL, plan.sends, more=variables)
        declared = place.run_snippet(contender, "redis", _DECLARED, more=variables)
        started = time.monotonic()
        with place.worker(contender, "redis", more=variables) as worker:
            ready(place, contender, "redis", worker)
            start_s, memory_mb = time.monotonic() - started, worker.memory_mb()
        return {"us": sent["us"], **declared, "worker start s": start_s, "worker MB": memory_mb}

    return measure


_DECLARED: Final = """
from benchmarks.apps.bridged import declared_s
held = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')][0]
print('{"declare ms": %f, "sender MB": %f}' % (declared_s * 1e3, int(held) * 1.024e-3))
"""


def _threads(broker: str, number: int) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        return place.run(contender, broker, "sending", "threads", _SMALL, plan.sends, number)

    return measure


def _stall(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    place.empty("redis")
    return place.run(contender, "redis", "sending", "stall", _SMALL, plan.sends // 3)


def grown(
    key: str,
    family: str,
    size: str,
    measure: Measure,
    *metrics: str,
    contenders: tuple[Contender, ...] = BRIDGES,
) -> Row:
    """Return a row about how cost grows: measured once, for what it shows is read along a table, not across one."""
    return Row(
        key=key,
        title=f"{family}: {size}" if size else family,
        contenders=contenders,
        measure=measure,
        metrics=metrics,
        family=family,
        size=size,
        is_once=True,
        more_is_better=metrics[0] == "tasks/s",
    )


_ASYNC: Final = tuple(peer for peer in PEERS if peer.name in ("arq", "taskiq", "SAQ"))
_WORKER: Final = ("tasks/s", "cpu_us", "server_us")

ROWS: Final = (
    *(grown(f"queues-{n}", "queues known: send, Redis", f"{n:,}", _with_queues(n), "us") for n in _SENDERS_QUEUES),
    *(
        grown(f"worker-queues-{n}", "queues consumed: worker, Redis", f"{n:,}", _worker_with_queues(n), *_WORKER)
        for n in _WORKERS_QUEUES
    ),
    *(
        grown(
            f"tasks-{n}",
            "tasks declared, Redis",
            f"{n:,}",
            _with_tasks(n),
            *("us", "declare ms", "sender MB", "worker start s", "worker MB"),
        )
        for n in _TASKS
    ),
    *(
        grown(
            f"threads-{n}",
            "threads that send, Redis",
            f"{n}",
            _threads("redis", n),
            *("us", "cpu_us"),
            contenders=(*BRIDGES, *ENGINES),
        )
        for n in _THREADS
    ),
    *(
        grown(
            f"threads-amqp-{n}",
            "threads that send, RabbitMQ, confirmed",
            f"{n}",
            _threads("amqp", n),
            *("us", "cpu_us"),
            contenders=(*BRIDGES, *ENGINES),
        )
        for n in _AMQP_THREADS
    ),
    grown(
        "stall",
        "send from an event loop, Redis: its longest stall",
        "",
        _stall,
        *("stall_ms", "us"),
        contenders=(*BRIDGES, *ENGINES, *_ASYNC),
    ),
)
