"""Leaves out the pairs of a scenario and a target that make no sense, such as killing a worker that is a thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.target import Target
from tests.pacing import pytest_configure, pytest_report_header

__all__ = ["pytest_configure", "pytest_report_header"]

_STORE = "redis://localhost" if importlib.util.find_spec("redis") else None
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    pointless = [item for item in items if _HERE in item.path.parents and _is_pointless(item)]
    if pointless:
        items[:] = [item for item in items if item not in pointless]
        config.hook.pytest_deselected(items=pointless)


def _is_pointless(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    params = item.callspec.params
    if "scenario" not in params:
        return False
    target = str(params["target"])
    place = "localhost" if target.endswith(("redis", "amqp")) else ""
    return bool(SCENARIOS[str(params["scenario"])].refusal(Target.of(f"{target}://{place}", store=_STORE)))


@pytest.fixture(scope="session")
def target_store(request: pytest.FixtureRequest, target: str, store_of: Callable[[str], str | None]) -> str | None:
    """Where the store is, for a target whose broker is none: in a private Redis, and once in a private PostgreSQL."""
    if target == "dramatiq+amqp" and importlib.util.find_spec("psycopg") is not None:
        return str(request.getfixturevalue("postgresql_store"))
    return store_of(target)
