"""What the contract makes on a server of someone else's is removed."""

from __future__ import annotations

import pytest

from taskbridge.contract import scenarios
from taskbridge.contract.cleaning import PREFIX
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.suite import run_suite
from taskbridge.contract.target import Target

assert scenarios.NAMES

# It leaves messages in a queue, and a delayed one.
SCENARIO = "the_broker_has_what_was_sent"


def left_over(request: pytest.FixtureRequest, target: str) -> set[str]:
    """Return the names of what the contract has left on the target's server."""
    if target.endswith("redis"):
        import redis

        with redis.Redis.from_url(request.getfixturevalue("redis_server").url, decode_responses=True) as client:
            return {str(key) for key in client.keys(f"*{PREFIX}*")}
    ctl = request.getfixturevalue("rabbitmq_server").ctl
    names = [*ctl("list_queues", "name").split(), *ctl("list_exchanges", "name").split()]
    return {name for name in names if name.startswith(PREFIX)}


def test_nothing_is_left_on_the_server(target: str, target_url: str, request: pytest.FixtureRequest) -> None:
    if not target.endswith(("redis", "amqp")):
        return  # there is no server
    before = left_over(request, target)
    results = run_suite(Target.of(target_url), [SCENARIOS[SCENARIO]], done=lambda _: None)
    assert [result.outcome for result in results] == ["passed"], results
    assert left_over(request, target) - before == set()
