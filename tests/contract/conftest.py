"""Leaves out the pairs of a scenario and a target that make no sense, such as killing a worker that is a thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.target import Target
from tests import forking, scenarios
from tests.conftest import leave_out, params_of
from tests.pacing import pytest_configure, pytest_report_header

__all__ = ["pytest_configure", "pytest_report_header", "scenarios"]

forking.install()

_STORE = "redis://localhost" if importlib.util.find_spec("redis") else None
_HERE = Path(__file__).parent


CORE_RULES = frozenset(("A1", "A3", "A4", "A6", "A7", "C", "I1", "P2", "R2", "R8", "T1"))
"""What is about taking, running, acknowledging and stopping, on which the engines' fast rooms bear."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    core = bool(config.getoption("--core"))
    leave_out(config, items, lambda item: _HERE in item.path.parents and _is_pointless(item, core=core))


def _is_pointless(item: pytest.Item, *, core: bool) -> bool:
    params = params_of(item)
    if "scenario" not in params:
        return core
    scenario, target = SCENARIOS[str(params["scenario"])], str(params["target"])
    if core and not CORE_RULES & set(scenario.rules):
        return True
    place = "localhost" if target.endswith(("redis", "amqp")) else ""
    return bool(scenario.refusal(Target.of(f"{target}://{place}", store=_STORE)))


@pytest.fixture(scope="session")
def target_store(request: pytest.FixtureRequest, target: str, store_of: Callable[[str], str | None]) -> str | None:
    """Where the store is, for a target whose broker is none: in a private Redis, and once in a private PostgreSQL."""
    if target == "dramatiq+amqp" and importlib.util.find_spec("psycopg") is not None:
        return str(request.getfixturevalue("postgresql_store"))
    return store_of(target)
