"""Leaves out the pairs of a scenario and a target that make no sense, such as killing a worker that is a thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from taskbridge.contract.registry import SCENARIOS, Scenario
from taskbridge.contract.rules import RULES
from taskbridge.contract.target import Target
from tests import deployments, forking, scenarios
from tests.conftest import leave_out, params_of
from tests.pacing import pytest_configure, pytest_report_header

__all__ = ["pytest_configure", "pytest_report_header", "scenarios"]

forking.install()

_STORE = "redis://localhost" if importlib.util.find_spec("redis") else None
_HERE = Path(__file__).parent


FAST_RULES: Final = frozenset(("A1", "A3", "A4", "A6", "A7", "C", "I1", "P2", "R2", "R8", "T1", "Z3", "Z5"))
"""What is about taking, running, acknowledging and stopping, on which the engines' fast rooms bear."""

BROKER_RULES: Final = frozenset(
    (
        *("S1", "S2", "S5", "S7", "Q4", "Q5", "Q6", "Q7", "Q8", "R4", "R5", "D1", "D2", "D3", "D4", "D5", "D6"),
        *("P2", "A1", "A2", "A4", "A5", "A6", "A7", "A8", "HA1", "HA2", "L1", "L2", "L3", "O1"),
    )
)
"""What another release of a broker, or another way to deploy it, could break."""

QUEUE_SCENARIOS: Final = frozenset(
    (
        *("quorum_queues_do_what_classic_ones_do", "a_killed_worker_loses_nothing_of_quorum_queues"),
        *("a_quorum_queue_counts_what_came_back", "four_quorum_queues_keep_priorities_or_refuse_them"),
        "nothing_waits_behind_a_long_task_on_another_quorum_queue",
        "nothing_waits_behind_a_long_task_on_another_queue",
        "higher_messages_overtake_on_each_of_four_queues",
    )
)
"""What is about types of queues, and about workers of several, to which each RabbitMQ sends in another way.

It is run on another release in place of other scenarios of the rules that it proves.
"""

KILLS: Final = frozenset(("A2", "A5", "A7", "A8", "R9", "CR2"))
"""The rules about processes that are killed."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out(config, items, lambda item: _HERE in item.path.parents and _is_pointless(item, config))


def _is_pointless(item: pytest.Item, config: pytest.Config) -> bool:
    params, selection = params_of(item), config.getoption("--select")
    if "scenario" not in params:
        return selection is not None
    chosen = selected(str(params["target"]), selection, config.getoption("--deployment"))
    return str(params["scenario"]) not in chosen


@cache
def selected(target: str, selection: str | None, deployment: str) -> frozenset[str]:
    """Return the names of the scenarios that are run on a target."""
    place = "localhost" if target.endswith(("redis", "amqp")) else ""
    scheme = f"{target}s" if place and deployments.is_encrypted(deployment) else target
    there = Target.of(f"{scheme}://{place}", store=_STORE, braces=not deployments.has_one_place(deployment))
    possible = [each for each in SCENARIOS.values() if not each.refusal(there)]
    if selection == "broker":
        always = [each for each in possible if target.endswith("amqp") and each.name in QUEUE_SCENARIOS]
        missing = BROKER_RULES.difference(*(each.rules for each in always))
        return frozenset((*(each.name for each in always), *_covering(possible, missing)))
    if selection == "core":
        killing = {each.name for each in possible if KILLS & set(each.rules)}
        return frozenset(killing.union(_covering(possible, RULES.keys())))
    return frozenset(each.name for each in possible if selection is None or FAST_RULES & set(each.rules))


def _covering(scenarios: Sequence[Scenario], rules: Collection[str]) -> Iterator[str]:
    """Yield the names of scenarios that have all of these rules among them, each of which brings a new one."""
    missing = set(rules)
    for each in scenarios:
        if missing & set(each.rules):
            missing -= set(each.rules)
            yield each.name


@pytest.fixture(scope="session")
def target_store(request: pytest.FixtureRequest, target: str, store_of: Callable[[str], str | None]) -> str | None:
    """Where the store is, for a target whose broker is none: in a private Redis, and once in a private PostgreSQL."""
    if target == "dramatiq+amqp" and importlib.util.find_spec("psycopg") is not None:
        return str(request.getfixturevalue("postgresql_store"))
    return store_of(target)


@pytest.fixture(scope="session")
def target_braces(request: pytest.FixtureRequest, target: str) -> bool:
    """Whether namespaces on the target are in braces."""
    return deployments.needs_braces(str(request.config.getoption("--deployment")), target.rpartition("+")[2])
