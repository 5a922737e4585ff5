"""What a unique message costs its sender, beside one that is only recorded: nobody else has its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.contenders import RECORDED, UNIQUE, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row

_SMALL: Final = 10
_BATCH: Final = 100
_METRICS: Final = ("us", "cpu_us", "server_us")


def _sent(way: str, numbers: Callable[[Plan], tuple[int, ...]], count: Callable[[Plan], int]) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty("redis")
        before_s = place.read("redis").cpu_s
        found = place.run(contender, "redis", "sending", way, _SMALL, *numbers(plan))
        server_s = place.read("redis").cpu_s - before_s  # with what is sent before the measured ones, and connecting
        return {**found, "server_us": server_s / count(plan) * 1e6}

    return measure


ROWS: Final = (
    Row(
        key="unique-send",
        title="send, Redis, unique",
        contenders=(*RECORDED, *UNIQUE),
        measure=_sent("each", lambda plan: (plan.sends,), lambda plan: plan.sends),
        metrics=_METRICS,
    ),
    Row(
        key="unique-many",
        title="send 100 at once, Redis, unique; a message",
        contenders=(*RECORDED, *UNIQUE),
        measure=_sent("batches", lambda plan: (_BATCH, plan.batches), lambda plan: _BATCH * plan.batches),
        metrics=_METRICS,
    ),
)
