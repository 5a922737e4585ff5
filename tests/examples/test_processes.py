"""What a test of an example starts is gone after it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.examples import conftest
from tests.examples.conftest import Start, wait_until

DEAF = "trap '' TERM; sleep 600 & echo $!; while :; do wait; done"


def test_what_does_not_end_is_killed_with_all_that_it_started(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "STOP_TIMEOUT_S", 0.2)
    process = start("sh", "-c", DEAF, env={})
    wait_until(lambda: process.output.endswith("\n"), what="its child's id", timeout_s=20, processes=[process])

    with pytest.raises(pytest.fail.Exception, match=r"did not end within 0\.2 s of SIGTERM"):
        process.stop()

    assert not process.is_running
    deadline = time.monotonic() + 20
    while is_alive(process.output.strip()):
        assert time.monotonic() < deadline, "its child still runs"
        time.sleep(0.02)


def is_alive(pid: str) -> bool:
    """Tell whether a process runs; one that has ended may stay until its parent has looked at it."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
