"""What the contract makes on a server of someone else's is removed."""

from __future__ import annotations

import secrets
from contextlib import closing

import pytest

from taskbridge import Bridge
from taskbridge.contract import cleaning, environment, scenarios
from taskbridge.contract.cleaning import PREFIX
from taskbridge.contract.ports import free_port
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.suite import run_suite
from taskbridge.contract.target import Target
from tests.servers import PrivateRabbitMQ

assert scenarios.NAMES

# It leaves messages in a queue, and a delayed one.
SCENARIO = "the_broker_has_what_was_sent"


def left_over(request: pytest.FixtureRequest, target: str, prefix: str) -> set[str]:
    """Return the names on the target's server of what was made in namespaces with a prefix."""
    if target.endswith("redis"):
        import redis

        with redis.Redis.from_url(request.getfixturevalue("redis_server").url, decode_responses=True) as client:
            return {str(key) for key in client.keys(f"*{prefix}*")}
    ctl = request.getfixturevalue("rabbitmq_server").ctl
    names = [*ctl("list_queues", "name").split(), *ctl("list_exchanges", "name").split()]
    return {name for name in names if name.startswith(prefix)}


def test_nothing_is_left_on_the_server(
    target: str, target_url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not target.endswith(("redis", "amqp")):
        return  # there is no server
    prefix = f"{PREFIX}{secrets.token_hex(3)}-"  # for others are tested on the same server
    monkeypatch.setattr(environment, "PREFIX", prefix)
    results = run_suite(Target.of(target_url), [SCENARIOS[SCENARIO]], done=lambda _: None)
    assert [result.outcome for result in results] == ["passed"], results
    assert left_over(request, target, prefix) == set()


def test_few_channels_on_the_host_that_answers_are_enough(rabbitmq_server: PrivateRabbitMQ) -> None:
    namespace = f"{PREFIX}{secrets.token_hex(5)}"
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{rabbitmq_server.port}"
    target = Target.of(f"celery+amqp://guest:guest@{hosts}/%2F?channel_max=3")
    with closing(Bridge(f"celery+{rabbitmq_server.url}", namespace=namespace, send_timeout=30)) as bridge:
        bridge.task(name="contract.absent")(print).schedule(60, 1)  # makes dozens of queues

    assert cleaning.is_deserted(target, namespace)
    assert cleaning.copies(target, namespace, "") == 0
    cleaning.remove(target, [namespace])

    assert namespace not in rabbitmq_server.ctl("list_queues", "name")
