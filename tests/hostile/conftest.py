"""Leaves out the targets without a broker, and chooses a seed; workers are forked, as in the contract."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import forking, pacing
from tests.conftest import is_ci, leave_out, params_of
from tests.hostile.names import SEED_VARIABLE, new_seed

forking.install()

_HERE = Path(__file__).parent
_SEED_OF_CI = 7


def pytest_configure(config: pytest.Config) -> None:
    """Choose a seed, unless one is given, before xdist starts the processes that run the tests.

    On CI it is always the same: what a new one finds is no fault of the change that is tested there.
    """
    pacing.pytest_configure(config)
    os.environ.setdefault(SEED_VARIABLE, str(_SEED_OF_CI if is_ci() else new_seed()))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [pacing.pytest_report_header(config), f"hostile: {SEED_VARIABLE}={os.environ[SEED_VARIABLE]}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out(config, items, lambda item: _HERE in item.path.parents and _is_pointless(item))


def _is_pointless(item: pytest.Item) -> bool:
    return not str(params_of(item).get("target", "redis")).endswith(("redis", "amqp"))
