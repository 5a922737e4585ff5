"""The demo runs, and both engines do the same in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import ROOT, RUN_TIMEOUT_S, STOP_TIMEOUT_S, wait_until


@pytest.fixture(params=["memory", "redis"])
def demo(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", request.param],
        cwd=ROOT,
        env={**env, "TASKBRIDGE_URL": "nonsense", "NO_COLOR": "1"},  # the user's own settings don't matter
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )


def test_the_demo_is_identical_on_both_engines(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    rows = [re.split(r"  +", text) for text in demo.stdout.partition("Side by side")[2].splitlines()]
    ends = {row[0]: (row[2], row[4], row[-1]) for row in rows if len(row) == 9}
    assert ends == {
        "charge_card 1001": ("3", "done", "identical"),
        "charge_card 1002": ("1", "dead letter", "identical"),
        "send_receipt 1001": ("1", "done", "identical"),
        "send_receipt 1002": ("1", "done", "identical"),
        "send_newsletter Ada": ("1", "discarded", "identical"),
        "ask_for_review 1001": ("1", "done", "identical"),
        "print_label 1001": ("3", "dead letter", "identical"),
        "pack 1001 low": ("1", "done", "identical"),
        "pack 1002": ("1", "done", "identical"),
        "pack 1003 high": ("1", "done", "identical"),
        "pack 1004 critical": ("1", "done", "identical"),
    }
    assert ["packed in order", "critical, high, normal, low", "critical, high, normal, low", "identical"] in rows
    assert "Identical: 11 messages, 15 runs each" in demo.stdout


@pytest.mark.parametrize(("library", "broker"), [("celery", "memory"), ("dramatiq", "redis")])
def test_the_demo_says_what_it_needs(tmp_path: Path, library: str, broker: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{library!r}] = None\n")

    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", broker],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )

    says = f"{library}, which the demo needs, is not installed: pip install 'taskbridge-queue[{library}]'"
    assert (done.stderr, done.returncode) == (f"demo: {says}\n", 2)


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_ctrl_c_ends_the_demo_and_all_that_it_started(broker: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, broker],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "attempt 1" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=RUN_TIMEOUT_S)

    assert process.returncode == 130
    assert errors == ""
    assert list(tmp_path.glob("taskbridge*")) == []
    wait_until(
        lambda: not any(str(tmp_path) in environment(pid) for pid in running()),
        what="the end of all that it started",
        timeout_s=STOP_TIMEOUT_S,
    )


HEEDING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("examples.demo", run_name="__main__", alter_sys=True)
"""
"""Runs the demo in a process that heeds Ctrl-C, even if the tests themselves run in the background of a shell."""


def running() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdecimal()]


def environment(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
