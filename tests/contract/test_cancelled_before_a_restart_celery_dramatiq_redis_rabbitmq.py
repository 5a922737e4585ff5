"""What was cancelled stays so when the broker, and the store, are restarted before a worker comes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, ask
from taskbridge.contract.scenarios.results import until_it_is
from taskbridge.contract.suite import PATIENCE_S
from tests.contract.stored import open_stored
from tests.servers import PrivateRabbitMQ, PrivateRedis

ENGINES = ("celery", "dramatiq")
RETRY_S = 10.0
"""Long enough for a worker to be stopped meanwhile, so that the message is parked as it is cancelled."""


def send_and_cancel(h: Harness) -> tuple[list[Sent], Sent]:
    """Cancel messages that wait, are delayed, and are between two attempts, the last; send one that is kept."""
    worker = h.start_worker()
    retrying = h.send(Plan(steps=(ask(RETRY_S), RETURN)))
    until_it_is(h, retrying, "retrying")
    h.stop(worker)
    sent = [h.send(Plan(steps=(RETURN,), delay_s=delay_s)) for delay_s in (0.0, 1.0, 6.0)]
    kept = h.send(Plan(steps=(RETURN,)))
    cancelled = [*sent, retrying]
    assert h.bridge.handle(retrying.id).status().state == "retrying"
    assert [h.bridge.handle(item.id).cancel().state for item in cancelled] == ["cancelled"] * 4
    return cancelled, kept


def nothing_cancelled_starts(h: Harness, cancelled: list[Sent], kept: Sent) -> None:
    h.start_worker(threads=2, answers=False)
    h.final(*(item.id for item in cancelled), kept.id)
    h.idle()
    assert [len(h.starts(item.id)) for item in cancelled] == [0, 0, 0, 1], h.story()
    assert {record.data["reason"] for item in cancelled for record in h.records(item.id, "discarded")} == {"cancelled"}
    assert h.bridge.handle(kept.id).result(PATIENCE_S) == f"result of {kept.id}"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_nothing_that_was_cancelled_starts_after_a_restart(
    broker: str, make_redis: Callable[..., PrivateRedis], make_rabbitmq: Callable[..., PrivateRabbitMQ]
) -> None:
    redis = make_redis()
    servers = [redis] if broker == "redis" else [redis, make_rabbitmq()]
    store = None if broker == "redis" else redis.url
    with ExitStack() as stack, ThreadPoolExecutor(len(ENGINES)) as pool:
        harnesses = [open_stored(stack, f"{engine}+{servers[-1].url}", store=store) for engine in ENGINES]
        sent = list(pool.map(send_and_cancel, harnesses))

        for server in servers:
            server.restart()

        checks = [pool.submit(nothing_cancelled_starts, h, *items) for h, items in zip(harnesses, sent, strict=True)]
        for check in checks:
            check.result()
