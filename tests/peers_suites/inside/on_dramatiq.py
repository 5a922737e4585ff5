"""A plugin of pytest: the fixtures of Dramatiq's own tests, which its source distribution leaves out.

With `PEERS_ON_TASKBRIDGE` they make taskbridge's brokers, else Dramatiq's. A broker that a test makes by itself is
Dramatiq's in both runs.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.rate_limits.backends import RedisBackend as RedisLimits
from dramatiq.rate_limits.backends import StubBackend as StubLimits
from dramatiq.results.backends import RedisBackend as RedisResults
from dramatiq.results.backends import StubBackend as StubResults

from taskbridge import Bridge

_OURS = "PEERS_ON_TASKBRIDGE" in os.environ
_REDIS = "redis://127.0.0.1:6379/0"
_THREADS = 32

_redis_broker: Any = RedisBroker
_limits: Any = {"redis": RedisLimits, "stub": StubLimits}
_results: Any = {"redis": RedisResults, "stub": StubResults}


def _native(url: str, **settings: Any) -> Any:
    return Bridge(url, namespace="dramatiq", **settings).native


def _used(broker: Any) -> Generator[Any]:
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.flush_all()
    broker.close()


def _worker(broker: Any, **options: Any) -> Generator[Any]:
    worker = dramatiq.Worker(broker, worker_threads=_THREADS, **options)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def stub_broker() -> Generator[Any]:
    yield from _used(_native("dramatiq+memory://") if _OURS else StubBroker())


@pytest.fixture
def redis_broker() -> Generator[Any]:
    broker: Any = _native(f"dramatiq+{_REDIS}") if _OURS else _redis_broker()
    broker.client.flushall()
    yield from _used(broker)


@pytest.fixture
def rabbitmq_broker() -> Generator[Any]:
    ours = "dramatiq+amqp://guest:guest@127.0.0.1:5672/%2F"
    yield from _used(_native(ours, store=_REDIS) if _OURS else RabbitmqBroker(host="127.0.0.1", max_priority=10))


@pytest.fixture
def stub_worker(stub_broker: Any) -> Generator[Any]:
    yield from _worker(stub_broker, worker_timeout=100)


@pytest.fixture
def redis_worker(redis_broker: Any) -> Generator[Any]:
    yield from _worker(redis_broker)


@pytest.fixture
def rabbitmq_worker(rabbitmq_broker: Any) -> Generator[Any]:
    yield from _worker(rabbitmq_broker)


def _emptied(backend: Any) -> Any:
    if hasattr(backend, "client"):
        backend.client.flushall()
    return backend


@pytest.fixture
def redis_result_backend() -> Any:
    return _emptied(RedisResults())


@pytest.fixture(params=list(_results))
def result_backend(request: pytest.FixtureRequest) -> Any:
    return _emptied(_results[request.param]())


@pytest.fixture(params=list(_limits))
def rate_limiter_backend(request: pytest.FixtureRequest) -> Any:
    return _emptied(_limits[request.param]())
