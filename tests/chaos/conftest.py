"""Leaves out the targets on which there is nothing to break: those whose workers are threads of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import leave_out, params_of
from tests.pacing import pytest_configure, pytest_report_header

__all__ = ["pytest_configure", "pytest_report_header"]

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out(config, items, lambda item: _HERE in item.path.parents and _is_pointless(item))


def _is_pointless(item: pytest.Item) -> bool:
    return not str(params_of(item).get("target", "redis")).endswith(("redis", "amqp"))
