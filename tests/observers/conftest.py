"""The environment in which the tools are installed; `./scripts/test observers` makes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PYTHON = Path(__file__).parents[2] / ".venv-observers/bin/python"


@pytest.fixture(scope="session")
def observed_python() -> str:
    """The interpreter that has the tools; the tests are skipped without one, but with `CI=true` they fail."""
    found = Path(os.environ.get("TASKBRIDGE_TEST_OBSERVERS", str(_PYTHON)))
    if not found.exists():
        problem = f"{found} is not there: ./scripts/test observers makes it"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return str(found)
