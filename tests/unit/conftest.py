"""What holds for every test of a unit."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from taskbridge.contract.pace import VARIABLE


@pytest.fixture(autouse=True)
def no_setting_is_left() -> Generator[None]:
    """Fail if a test leaves a setting in the environment, which the next ones of this process would see."""
    before = _settings()
    yield
    left = _settings()
    assert left == before, "the test has left settings in the environment"


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("TASKBRIDGE_") and name != VARIABLE}
