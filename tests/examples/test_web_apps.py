from __future__ import annotations

import sys

import pytest

from tests.examples.conftest import run


@pytest.mark.parametrize(("app", "tests"), [("fastapi_app", 7), ("flask_app", 4)])
def test_the_apps_own_tests_pass(app: str, tests: int) -> None:
    output = run(
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"examples/{app}",
        env={"TASKBRIDGE_URL": "inline://?threads=0"},
    )

    assert f"{tests} passed" in output
