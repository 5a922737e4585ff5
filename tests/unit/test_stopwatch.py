"""The clock of the contract's promises of time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from taskbridge.contract.stopwatch import Stopwatch

SLEEPS = """
import os, time
from taskbridge.contract.stopwatch import Stopwatch
with Stopwatch() as watch:
    print(os.getpid(), flush=True)
    time.sleep(0.4)
    time.sleep(0.4)
print(watch.took_s)
"""


def test_it_tells_what_a_block_takes() -> None:
    took_s: list[float] = []
    while len(took_s) < 50 and took_s[-1:] != [pytest.approx(0.3, abs=0.1)]:  # a busy machine wakes its thread late
        with Stopwatch() as watch:
            time.sleep(0.3)
        took_s.append(watch.took_s)
    assert took_s[-1] == pytest.approx(0.3, abs=0.1), took_s


def test_it_leaves_out_what_the_machine_kept_from_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(process.pid, signal.SIGCONT)
        took_s = float(process.stdout.read())
    assert took_s < 1
