"""How the contract takes the machine's pace into account."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from taskbridge.contract import pace
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace, starting
from taskbridge.contract.registry import ALONE, Scenario, everywhere
from taskbridge.contract.stopwatch import STALL_S
from taskbridge.contract.suite import run_suite
from taskbridge.contract.target import Target

SLOW = Pace(late_s=0.3, start_s=0.5)


def test_limits_and_waits_grow_with_what_was_measured() -> None:
    assert (Pace().factor, Pace().slack_s) == (1, 0)
    assert Pace(start_s=0.05).factor == 1
    assert SLOW.factor == pytest.approx(2.5)
    assert SLOW.slack_s == pytest.approx(0.6)
    assert Pace(start_s=100).factor == Pace(start_s=50).factor <= 4


def test_a_process_takes_over_what_another_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pace.VARIABLE, SLOW.dumps())
    assert Pace.of_this_run() == SLOW


def test_measuring_finds_how_long_a_start_takes() -> None:
    measured = Pace.measured()
    assert measured.start_s > 0.01
    assert measured.late_s > 0


def test_a_machine_that_stands_still_is_not_taken_for_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, naps_s = [0.0], iter([0.01, 3.0])

    def sleep(seconds: float) -> None:
        clock[0] += max(seconds, next(naps_s, 0.0))

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(pace, "_start_s", lambda _: 0.2)
    assert Pace.measured() == Pace(late_s=STALL_S, start_s=0.2)


def test_a_scenario_has_its_rules_limit_and_what_was_measured() -> None:
    def at_limit(h: Harness) -> None:
        h.in_time("it", 1.59, 1)
        h.in_time("it", 1.61, 1)

    scenario = Scenario(name="x", title="x", rules=("R1",), environment=ALONE, run=at_limit, refusal=everywhere)
    [result] = run_suite(Target.of("inline://"), [scenario], done=lambda _: None, pace=SLOW)
    assert (result.outcome, result.why.strip()) == ("failed", "it should come within 1 s (+ 0.60 s), but took 1.610 s")


def test_as_many_workers_start_at_a_time_as_there_are_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pace, "cores", lambda: 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    both_are_in, over = threading.Barrier(3), threading.Event()
    third_is_in = threading.Event()

    def start() -> None:
        with starting():
            both_are_in.wait(60)
            over.wait(60)

    def third() -> None:
        with starting():
            third_is_in.set()

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    both_are_in.wait(60)
    threads.append(threading.Thread(target=third))
    threads[-1].start()
    assert not third_is_in.wait(0.2)
    over.set()
    assert third_is_in.wait(60)
    for thread in threads:
        thread.join(60)
