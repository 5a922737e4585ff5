from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import ROOT, run

METADATA = "Metadata-Version: 2.1\nName: own-engine\nVersion: 1.0\n"
ENTRY_POINTS = "[taskbridge.engines]\nthreads = examples.own_engine\n"


@pytest.fixture
def path_with_entry_point(tmp_path: Path) -> str:
    """What an installed package leaves behind, in a folder of the test's own."""
    info = tmp_path / "own_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA, encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return f"{tmp_path}:{ROOT}"


def test_the_example_engine_is_found_by_entry_point_and_runs_the_quickstart(path_with_entry_point: str) -> None:
    output = run(
        sys.executable,
        *("-m", "examples.quickstart"),
        env={"PYTHONPATH": path_with_entry_point, "TASKBRIDGE_URL": "threads+memory://"},
    )

    assert "sent 5 messages to threads+memory" in output
    assert "attempt 3: succeeded (welcome, user 42)" in output


@pytest.mark.slow
def test_the_example_engine_keeps_the_contract(path_with_entry_point: str) -> None:
    output = run(
        sys.executable, "-m", "tests.run_scenarios", "threads+memory://", env={"PYTHONPATH": path_with_entry_point}
    )

    outcomes = [json.loads(line)["outcome"] for line in output.splitlines()]
    assert outcomes.count("passed") >= 40
    assert set(outcomes) == {"passed", "not applicable"}
