"""Leaves out the targets on which there is nothing to break: those whose workers are threads of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    pointless = [item for item in items if _HERE in item.path.parents and _is_pointless(item)]
    if pointless:
        items[:] = [item for item in items if item not in pointless]
        config.hook.pytest_deselected(items=pointless)


def _is_pointless(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    return not str(item.callspec.params.get("target", "redis")).endswith(("redis", "amqp"))
