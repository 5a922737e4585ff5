"""What was cancelled stays so when the broker, and the store, are restarted before a worker comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import STORED
from taskbridge.contract.servers import PrivateRabbitMQ, PrivateRedis
from taskbridge.contract.stage import Stage
from taskbridge.contract.suite import PATIENCE_S
from taskbridge.contract.target import Target

ENGINES = ("celery", "dramatiq")


def send_and_cancel(h: Harness) -> tuple[list[Sent], Sent]:
    cancelled = [h.send(Plan(steps=(RETURN,), delay_s=delay_s)) for delay_s in (0.0, 1.0, 6.0)]
    kept = h.send(Plan(steps=(RETURN,)))
    assert [h.bridge.handle(item.id).cancel().state for item in cancelled] == ["cancelled"] * 3
    return cancelled, kept


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_nothing_that_was_cancelled_starts_after_a_restart(
    broker: str, make_redis: Callable[..., PrivateRedis], make_rabbitmq: Callable[..., PrivateRabbitMQ]
) -> None:
    redis = make_redis()
    servers = [redis] if broker == "redis" else [redis, make_rabbitmq()]
    with ExitStack() as stack:
        harnesses: list[Harness] = []
        for engine in ENGINES:
            target = Target.of(f"{engine}+{servers[-1].url}", store=None if broker == "redis" else redis.url)
            harnesses.append(Harness(stack.enter_context(Stage(target, STORED, patience_s=2 * PATIENCE_S))))
        sent = [send_and_cancel(h) for h in harnesses]

        for server in servers:
            server.restart()

        for h, (cancelled, kept) in zip(harnesses, sent, strict=True):
            h.start_worker(threads=2, answers=False)
            h.final(*(item.id for item in cancelled), kept.id)
            h.idle()
            assert [len(h.starts(item.id)) for item in cancelled] == [0, 0, 0], h.story()
            assert {record.data["reason"] for item in cancelled for record in h.records(item.id, "discarded")} == {
                "cancelled"
            }
            assert h.bridge.handle(kept.id).result(PATIENCE_S) == f"result of {kept.id}"
