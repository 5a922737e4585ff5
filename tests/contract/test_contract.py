"""The contract on every target: a test for each scenario. Those of a target run together, before the first test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import taskbridge.contract.scenarios  # fills the table
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.suite import Result, run_suite
from taskbridge.contract.target import Target
from tests.conftest import STALLED

assert taskbridge.contract.scenarios.NAMES


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, target: str, target_url: str, target_store: str | None, target_braces: bool
) -> dict[str, Result]:
    """What came of the chosen scenarios on the target."""
    chosen = [name for name in SCENARIOS if name in _names(request.session, target)]
    scenarios = [SCENARIOS[name] for name in chosen]
    place = Target.of(target_url, store=target_store, braces=target_braces)
    pace = Pace.of_this_run()
    found = run_suite(place, scenarios, done=lambda _: None, pace=pace, clean=False)  # the server ends with the tests
    return {result.scenario: result for result in found}


def _names(session: pytest.Session, target: str) -> set[str]:
    calls = [item.callspec.params for item in session.items if isinstance(item, pytest.Function) and _is_ours(item)]
    return {str(params["scenario"]) for params in calls if params["target"] == target}


def _is_ours(item: pytest.Function) -> bool:
    return item.path.samefile(__file__) and item.originalname == test_the_promise_is_kept.__name__


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_promise_is_kept(
    scenario: str, target: str, results: dict[str, Result], record_property: Callable[[str, object], None]
) -> None:
    result = results[scenario]
    if result.stalled_s:
        record_property(STALLED, f"{result.stalled_s:.1f} s\n{result.why_again}")
    assert result.outcome == "passed", f"{SCENARIOS[scenario].title}\n{result.why}"
