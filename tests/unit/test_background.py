"""Acts that a thread does for another, which does not wait for longer than it may."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from taskbridge.background import in_time


def _endless() -> float:
    return 60.0


def test_what_an_act_returns_or_raises_is_passed_on_and_nothing_is_discarded() -> None:
    discarded: list[str] = []

    assert in_time("test", lambda: "made", discarded.append, left_s=_endless) == "made"
    with pytest.raises(ZeroDivisionError):
        in_time("test", lambda: str(1 // 0), discarded.append, left_s=_endless)

    assert discarded == []


def test_what_comes_too_late_is_discarded() -> None:
    may_end, has_ended = threading.Event(), threading.Event()
    deadline = monotonic() + 0.15

    with pytest.raises(TimeoutError):
        in_time("test", lambda: may_end.wait(60), lambda _: has_ended.set(), left_s=lambda: deadline - monotonic())

    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(60)


def test_who_waits_may_give_up_at_any_time() -> None:
    may_end, has_ended, stop = threading.Event(), threading.Event(), threading.Event()

    def left_s() -> float:
        if stop.is_set():
            raise ConnectionError("the worker stops")
        stop.set()
        return 60.0

    with pytest.raises(ConnectionError, match="the worker stops"):
        in_time("test", lambda: may_end.wait(60), lambda _: has_ended.set(), left_s=left_s)
    may_end.set()
    assert has_ended.wait(60)
