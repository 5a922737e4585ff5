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


def _outcomes(path: str, *scenarios: str) -> dict[str, dict[str, str]]:
    output = run(
        sys.executable,
        *("-m", "tests.run_scenarios", "threads+memory://", *scenarios),
        env={"PYTHONPATH": path},
        codes=(0, 1),
        timeout_s=1800,
    )
    return {found["scenario"]: found for found in map(json.loads, output.splitlines())}


@pytest.mark.slow
def test_the_example_engine_keeps_the_contract(path_with_entry_point: str) -> None:
    """All scenarios share one process, in which they hold each other up: what fails in company runs again alone."""
    found = _outcomes(path_with_entry_point)
    failed = [name for name, each in found.items() if each["outcome"] not in ("passed", "not applicable")]
    assert len(failed) <= len(found) // 5, failed
    for name in failed:
        found |= _outcomes(path_with_entry_point, name)

    outcomes = [each["outcome"] for each in found.values()]
    assert outcomes.count("passed") >= 100
    assert set(outcomes) == {"passed", "not applicable"}, [found[name] for name in failed]
