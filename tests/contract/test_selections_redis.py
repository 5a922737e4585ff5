"""What `--select` takes of the contract."""

from __future__ import annotations

import pytest

from taskbridge.contract.registry import SCENARIOS
from tests.contract.conftest import BROKER_RULES, QUEUE_SCENARIOS, selected


@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp"])
def test_newer_servers_are_asked_for_each_rule_that_touches_the_broker(pair: str) -> None:
    chosen = selected(pair, "broker", "single")

    rules = {rule for name in chosen for rule in SCENARIOS[name].rules}
    assert BROKER_RULES - rules == ({"Q8"} if pair.endswith("redis") else set())


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_newer_servers_are_asked_about_quorum_queues_and_several_queues(engine: str) -> None:
    chosen = selected(f"{engine}+amqp", "broker", "single")

    assert chosen >= QUEUE_SCENARIOS
    assert {rule for name in chosen for rule in SCENARIOS[name].rules} >= {"RQ1", "RQ2"}


def test_what_clients_declare_is_left_out_where_it_is_encrypted() -> None:
    left_out = selected("dramatiq+amqp", "core", "single") - selected("dramatiq+amqp", "core", "small")

    assert left_out == {"queues_are_declared_with_their_type", "quorum_queues_do_what_classic_ones_do"}
