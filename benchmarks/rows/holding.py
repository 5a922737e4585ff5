"""How cost grows with what a broker holds: messages that wait for a worker, and messages that wait for their time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import MeasuringFailed
from benchmarks.rows.base import Measure
from benchmarks.rows.growing import grown

_SMALL: Final = 10
_SIZES: Final[Mapping[str, tuple[int, ...]]] = {"redis": (0, 100_000, 1_000_000), "amqp": (0, 100_000)}
_NAMES: Final[Mapping[str, str]] = {"redis": "Redis", "amqp": "RabbitMQ"}
_TIMEOUT_S: Final = 180.0


def _waiting(broker: str, size: int) -> Measure:
    """Let so many messages wait; send some, and let a worker run some, with the rest behind them."""

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        _refuse(size, plan)
        place.empty(broker)
        held = place.read(broker, closely=True).held
        place.run(contender, broker, "marking", "fill", size)
        held = place.read(broker, closely=True).held - held
        place.run(contender, broker, "marking", "fill", plan.tasks)
        sent = place.run(contender, broker, "sending", "each", _SMALL, plan.sends)
        first, last = plan.tasks * 2 // 5, plan.tasks
        with place.worker(contender, broker, marked=(first, last)) as worker:
            (_, *start), (_, *end) = worker.wait_for("tick", count=2, timeout_s=_TIMEOUT_S)
            memory_mb = worker.memory_mb()
        took_s, cpu_s, server_s = (float(after) - float(before) for before, after in zip(start, end, strict=True))
        count = last - first
        return {
            "tasks/s": count / took_s,
            "cpu_us": cpu_s / count * 1e6,
            "server_us": server_s / count * 1e6,
            "send us": sent["us"],
            "worker MB": memory_mb,
            **_a_message(held, size),
        }

    return measure


def _parked(broker: str, size: int) -> Measure:
    """Park so many messages for later; schedule, send and promote others beside them, and look at a worker."""

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        _refuse(size, plan)
        place.empty(broker)
        held = place.read(broker, closely=True).held
        place.run(contender, broker, "parking", size)
        held = place.read(broker, closely=True).held - held
        scheduled = place.run(contender, broker, "sending", "later", _SMALL, plan.sends)
        sent = place.run(contender, broker, "sending", "each", _SMALL, plan.sends)
        promoted = place.run(contender, broker, "promoting", plan.tasks)
        with place.worker(contender, broker) as worker:
            worker.wait_until_idle(timeout_s=_TIMEOUT_S)
            memory_mb = worker.memory_mb()
        return {
            "schedule us": scheduled["us"],
            "send us": sent["us"],
            "promote: pump's µs": promoted["cpu_us"],
            "park and promote: server's µs": promoted["server_us"],
            "worker MB": memory_mb,
            **_a_message(held, size),
        }

    return measure


def _refuse(size: int, plan: Plan) -> None:
    if size > plan.most_parked:
        raise MeasuringFailed("only without --quick")


def _a_message(held: int, size: int) -> Mapping[str, float]:
    return {"server's bytes each": held / size if size else 0.0}


def _key(kind: str, broker: str, size: int) -> str:
    return f"{kind}-{size // 1000}k" if broker == "redis" else f"{kind}-{broker}-{size // 1000}k"


_WAITING: Final = ("tasks/s", "cpu_us", "server_us", "send us", "worker MB", "server's bytes each")
_PARKED: Final = (
    *("schedule us", "send us", "promote: pump's µs", "park and promote: server's µs"),
    *("worker MB", "server's bytes each"),
)

ROWS: Final = tuple(
    grown(_key(kind, broker, size), f"{title}, {_NAMES[broker]}", f"{size:,}", measure(broker, size), *metrics)
    for kind, title, measure, metrics in (
        ("backlog", "messages that wait for a worker", _waiting, _WAITING),
        ("parked", "messages that wait for their time", _parked, _PARKED),
    )
    for broker in _SIZES
    for size in _SIZES[broker]
)
