"""Time limits: the exception arrives in time or not at all, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from taskbridge import timelimit
from taskbridge.exceptions import TimeLimitExceeded
from taskbridge.timelimit import limited, raise_in_thread


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run_limited(limit_s: float, takes_s: float) -> bool:
    """Return whether a run was interrupted that takes so long."""
    try:
        with limited(limit_s):
            spin(takes_s)
    except TimeLimitExceeded:
        return True
    return False


def test_a_run_over_its_limit_is_interrupted_and_one_below_is_not() -> None:
    assert run_limited(0.05, 5)
    assert not run_limited(5, 0.05)


def test_no_run_is_interrupted_by_the_limit_of_another() -> None:
    with pytest.raises(TimeLimitExceeded, match=r"longer than 0\.05 s"), limited(30), limited(0.05):
        spin(5)
    assert not run_limited(30, 0.2)


def test_a_run_that_ends_just_as_it_is_interrupted_leaves_the_watch_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception arrives wherever the thread is, in the library too; others must still be able to start and end."""

    def raise_slowly(thread_id: int, error: type[BaseException] | None) -> None:
        if error is not None:
            time.sleep(0.05)  # meanwhile the run ends, and waits for who is about to interrupt it
        raise_in_thread(thread_id, error)

    monkeypatch.setattr(timelimit, "raise_in_thread", raise_slowly)
    with suppress(TimeLimitExceeded):
        run_limited(0.02, 0.03)
    monkeypatch.undo()

    others: list[bool] = []
    thread = threading.Thread(target=lambda: others.append(run_limited(0.05, 5)), daemon=True)
    thread.start()
    thread.join(20)

    assert others == [True]
