"""What the contract makes of a machine that stands still."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.harness import Harness
from taskbridge.contract.registry import ALONE, Scenario, everywhere
from taskbridge.contract.stopwatch import STALL_S, Stopwatch
from taskbridge.contract.suite import Result, run_suite
from taskbridge.contract.target import Target


def run(act: Callable[[], object]) -> tuple[list[Result], int]:
    """Return what came of a scenario that does this, and how often it ran."""
    runs = 0

    def body(h: Harness) -> None:
        nonlocal runs
        runs += 1
        act()

    scenario = Scenario(name="x", title="It holds", rules=("R1",), environment=ALONE, run=body, refusal=everywhere)
    told: list[Result] = []
    results = run_suite(Target.of("inline://"), [scenario], done=told.append)
    assert told == results
    return results, runs


def stall() -> None:
    """Keep all other threads of this process from running, as a machine does that stands still."""
    ctypes.PyDLL(None).usleep(int(2 * STALL_S * 1_000_000))  # by PyDLL it keeps the interpreter's lock


def fail() -> None:
    raise ContractFailure("too late")


def stall_and_fail() -> None:
    stall()
    fail()


def test_a_failure_while_the_machine_stands_still_is_judged_again() -> None:
    calls = [stall_and_fail, time.monotonic]

    def act() -> None:
        calls.pop(0)()

    results, runs = run(act)

    assert runs == 2
    assert [result.outcome for result in results] == ["passed"]
    assert results[0].stalled_s >= STALL_S
    assert results[0].why_again.startswith("too late")


def test_one_that_fails_again_has_failed() -> None:
    results, runs = run(stall_and_fail)

    assert runs == 2
    assert [(result.outcome, result.why.partition("\n")[0]) for result in results] == [("failed", "too late")]


def test_a_failure_on_a_machine_that_goes_on_is_one() -> None:
    results, runs = run(fail)

    assert runs == 1
    assert [(result.outcome, result.stalled_s) for result in results] == [("failed", 0.0)]


def test_a_watch_notes_no_stall_where_there_is_none() -> None:
    with Stopwatch() as watch:
        began = time.monotonic()
        time.sleep(0.2)
        assert watch.stalled_s(since=began) == 0
        stall()
        time.sleep(0.05)
        assert watch.stalled_s(since=began) >= STALL_S
        assert watch.stalled_s(since=time.monotonic()) == 0
