"""The clock of the contract's promises of time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from taskbridge.contract import stopwatch
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


def test_a_core_that_stands_still_is_noted_though_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was at work there took longer, and this process has seen nothing of it."""
    on_core: dict[int, set[int]] = {}
    looks: list[float] = []

    def monotonic() -> float:
        """Return the time, which jumps for the thread on the second core when it has looked at it twice."""
        now = time.monotonic()
        if on_core.get(threading.get_native_id()) != {1}:
            return now
        looks.append(now)
        return now if len(looks) < 3 else now + 5.0

    monkeypatch.setattr(stopwatch, "_cores", lambda: [0, 1])
    monkeypatch.setattr(os, "sched_setaffinity", on_core.__setitem__, raising=False)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=monotonic))
    deadline = time.monotonic() + 60
    with Stopwatch() as watch:
        while len(looks) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert watch.stalled_s() >= 5.0
    assert sum(late_s for _, late_s in watch._late) < 5.0, "what this process was kept from"


def test_a_thread_of_its_is_on_each_core() -> None:
    deadline = time.monotonic() + 60
    with Stopwatch() as watch:
        threads = watch._threads[1:]
        assert len(threads) == len(stopwatch._cores())
        for thread, core in zip(threads, stopwatch._cores(), strict=True):
            while os.sched_getaffinity(thread.native_id or 0) != {core}:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_what_stands_still_at_the_same_time_counts_once() -> None:
    watch = Stopwatch()
    watch._late += [(10.0, 4.0), (20.0, 0.1)]
    watch._late_on_cores += [(9.0, 2.0), (12.0, 4.0), (30.0, 1.0)]

    assert watch.stalled_s() == pytest.approx(7.0)
    assert watch.stalled_s(since=15.0) == pytest.approx(1.0)
