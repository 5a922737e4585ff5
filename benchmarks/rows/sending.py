"""What a message costs its sender: one at a time and many at once, on Redis and on RabbitMQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import (
    AMQP_SOCKET,
    BRIDGES,
    CELERY,
    CELERYS_SOCKET,
    DRAMATIQ,
    ENGINES,
    NO_CONFIRMS,
    PEERS,
    PIKA,
    REDIS_PY,
    SOCKET,
    Contender,
)
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row

_METRICS: Final = ("us", "cpu_us")
_BATCH: Final = 100
_SMALL: Final = 10


def _each(broker: str, payload: int = _SMALL) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        count = plan.sends if payload < 10_000 else plan.sends // 5
        return place.run(contender, broker, "sending", "each", payload, count)

    return measure


def _batches(broker: str) -> Measure:
    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        return place.run(contender, broker, "sending", "batches", _SMALL, _BATCH, plan.batches)

    return measure


_CELERY_BATCHES: Final = (
    CELERY.like("Celery, loop", option="loop", settings="`delay` in a loop"),
    CELERY.like("Celery, one producer", option="producer", settings="`apply_async(producer=)` in a loop"),
    CELERY.like("Celery, group", option="group", settings="`group(...).apply_async()`"),
)
_PAYLOADS: Final = {"1k": 1024, "100k": 100 * 1024}

ROWS: Final = (
    Row(
        key="send-redis",
        title="send, Redis",
        contenders=(*BRIDGES, *ENGINES, *PEERS, REDIS_PY, SOCKET),
        measure=_each("redis"),
        metrics=_METRICS,
        in_guard=True,
    ),
    Row(
        key="many-redis",
        title="send 100 at once, Redis; a message",
        contenders=(*BRIDGES, *_CELERY_BATCHES, DRAMATIQ, *PEERS, REDIS_PY, SOCKET),
        measure=_batches("redis"),
        metrics=_METRICS,
        in_guard=True,
    ),
    Row(
        key="send-amqp",
        title="send, RabbitMQ, confirmed",
        contenders=(*BRIDGES, *ENGINES, *NO_CONFIRMS, PIKA, AMQP_SOCKET, CELERYS_SOCKET),
        measure=_each("amqp"),
        metrics=_METRICS,
    ),
    Row(
        key="many-amqp",
        title="send 100 at once, RabbitMQ, confirmed; a message",
        contenders=(*BRIDGES, *ENGINES, *NO_CONFIRMS, PIKA, AMQP_SOCKET, CELERYS_SOCKET),
        measure=_batches("amqp"),
        metrics=_METRICS,
    ),
    *(
        Row(
            key=f"payload-{name}",
            title=f"send, Redis, an argument of {size // 1024} KiB",
            contenders=(*BRIDGES, *ENGINES),
            measure=_each("redis", size),
            metrics=_METRICS,
            family="the size of an argument: send, Redis",
            size=f"{size // 1024} KiB",
        )
        for name, size in _PAYLOADS.items()
    ),
)
