"""A handle outlives a switch of engine and broker, if the store stays: from Celery on Redis to Dramatiq on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from taskbridge import TaskFailed
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step, fail
from taskbridge.contract.suite import PATIENCE_S
from tests.contract.stored import open_stored
from tests.servers import PrivateRabbitMQ, PrivateRedis

VALUE = {"kept": (1, 2.5), "since": {3}}


@pytest.fixture
def before(stack: ExitStack, redis_server: PrivateRedis) -> Harness:
    """Celery on Redis, which is the store too."""
    return open_stored(stack, f"celery+{redis_server.url}")


@pytest.fixture
def after(stack: ExitStack, before: Harness, redis_server: PrivateRedis, rabbitmq_server: PrivateRabbitMQ) -> Harness:
    """Dramatiq on RabbitMQ, in the same namespace, with that Redis as its store."""
    url, namespace = f"dramatiq+{rabbitmq_server.url}", before.environment.namespace
    return open_stored(stack, url, store=redis_server.url, namespace=namespace)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What closes the environments."""
    with ExitStack() as stack:
        yield stack


def test_what_celery_has_run_on_redis_is_read_under_dramatiq_on_rabbitmq(before: Harness, after: Harness) -> None:
    done = before.own(before.tasks.returning.send(VALUE))
    dead = before.send(Plan(steps=(fail(),), policy="once"))
    cancelled = before.send(Plan(steps=(RETURN,)))
    slow = before.send(Plan(steps=(Step(sleep_s=1),)))
    handles = {item.id: after.bridge.handle(item.id) for item in (done, dead, cancelled, slow)}
    assert {handle.status().state for handle in handles.values()} == {"queued"}
    assert handles[cancelled.id].cancel().state == "cancelled"
    after.start_worker()  # the new worker, which has nothing to do with what was sent before

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handles[slow.id].result, 2 * PATIENCE_S)  # who waits is woken across engines
        before.start_worker(threads=2, answers=False)
        assert waiting.result() == f"result of {slow.id}"
    assert handles[done.id].result(PATIENCE_S) == VALUE
    with pytest.raises(TaskFailed) as failed:
        handles[dead.id].result(PATIENCE_S)
    assert (failed.value.type, failed.value.message) == ("ValueError", "as the program says")
    before.final(cancelled.id)
    before.idle()
    assert {start.data["engine"] for item in (done, dead, slow) for start in before.starts(item.id)} == {"celery"}
    assert {item.id: len(before.starts(item.id)) for item in (done, dead, slow, cancelled)} == {
        done.id: 1,
        dead.id: 1,
        slow.id: 1,
        cancelled.id: 0,
    }
    assert {each: handle.status().state for each, handle in handles.items()} == {
        done.id: "done",
        dead.id: "dead",
        slow.id: "done",
        cancelled.id: "cancelled",
    }
