"""When a worker's process ends for another one to take its place (rule RC)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from taskbridge import Bridge
from taskbridge.engines import worker_life
from taskbridge.engines.base import MOST_MEMORY
from taskbridge.engines.worker_life import WorkerLife
from taskbridge.runner import Runs

_LONGEST_S = 60.0


class Life(WorkerLife):
    """A life whose engine has lost count of what it holds."""

    def __init__(self) -> None:
        super().__init__(Bridge("inline://?threads=0", grace=0.1, lease=1), Runs())
        self.has_ended = threading.Event()

    def stop_taking(self) -> None:
        """Do nothing."""

    def holds_nothing(self) -> bool:
        return False

    def ask_to_end(self) -> None:
        self.has_ended.set()


def test_a_process_ends_where_nothing_runs_though_its_engine_counts_something_in_hand() -> None:
    life = Life()
    retiring = threading.Thread(target=life._retire, args=("it is old",), daemon=True)
    retiring.start()
    assert life.has_ended.wait(_LONGEST_S)


def test_a_process_does_not_end_while_something_runs() -> None:
    life = Life()
    life.runs.all = lambda: [None]  # type: ignore[method-assign, list-item]
    retiring = threading.Thread(target=life._retire, args=("it is old",), daemon=True)
    retiring.start()
    assert not life.has_ended.wait(5 * worker_life._RETIRING_S)
    life.draining = True
    retiring.join(_LONGEST_S)
    assert not retiring.is_alive()


def test_the_memory_of_a_process_is_its_own_and_not_its_parents() -> None:
    code = "from taskbridge.engines.worker_life import _most_mb; print(_most_mb())"
    held = bytearray(200 << 20)
    held[::4096] = bytes(range(256)) * (len(held) // 4096 // 256)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=True,
        preexec_fn=time.time,
    )
    assert 5 < int(done.stdout) < 150
    assert worker_life._most_mb() > 200


def test_a_process_says_so_if_it_has_too_much_memory_from_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(MOST_MEMORY, "1")
    assert worker_life._when_worn_out(print) is not None
    assert "--max-memory-per-child is 1" in caplog.text
