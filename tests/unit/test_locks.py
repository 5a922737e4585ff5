"""Locks, conditions and thread-locals survive a fork."""

from __future__ import annotations

import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from taskbridge import locks


def _in_child(act: Callable[[], bool]) -> bool:
    """Return whether an act returned true in a forked child, within a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if act() else 1)
    return os.waitpid(child, 0)[1] == 0


def _held_elsewhere(hold: Any) -> Callable[[], None]:
    """Hold something in another thread; return what ends that."""
    held, over = threading.Event(), threading.Event()

    def work() -> None:
        with hold:
            held.set()
            over.wait(120)

    thread = threading.Thread(target=work)
    thread.start()
    assert held.wait(60)

    def end() -> None:
        over.set()
        thread.join()

    return end


@pytest.mark.parametrize("make", [locks.Lock, locks.RLock, locks.Condition])
def test_what_another_thread_holds_at_a_fork_is_free_in_the_child(make: Callable[[], Any]) -> None:
    lock = make()
    end = _held_elsewhere(lock)
    try:
        assert _in_child(lambda: bool(lock.acquire(timeout=30)))
        assert not lock.acquire(blocking=False)  # in the parent it is still held
    finally:
        end()


def test_a_condition_wakes_in_a_child_whoever_waits_there() -> None:
    condition = locks.Condition()

    def waits() -> bool:
        def wake() -> None:
            with condition:
                condition.notify_all()

        with condition:
            threading.Timer(0.1, wake).start()
            return condition.wait(30)

    end = _held_elsewhere(condition)
    try:
        assert _in_child(waits)
    finally:
        end()


def test_an_event_stays_as_it_was() -> None:
    event, other = locks.Event(), locks.Event()
    event.set()

    def works() -> bool:
        other.set()
        return event.is_set() and other.wait(30)

    end = _held_elsewhere(other._cond)  # type: ignore[attr-defined]  # in the midst of `set`
    try:
        assert _in_child(works)
    finally:
        end()
    assert not other.is_set()


def test_a_thread_local_is_empty_in_a_child_and_stays_in_its_parent() -> None:
    local = locks.Local()
    local.connection = "mine"

    assert _in_child(lambda: not hasattr(local, "connection"))
    assert local.connection == "mine"


def test_a_lock_that_is_collected_is_not_kept() -> None:
    made = [weakref.ref(locks.Lock()) for _ in range(100)]
    assert [lock for lock in made if lock() is not None] == []


def test_a_fork_waits_for_blocks_that_allow_none() -> None:
    end = _held_elsewhere(locks.no_fork())
    began = monotonic()
    threading.Timer(0.5, end).start()
    try:
        assert _in_child(lambda: True)
    finally:
        end()
    assert monotonic() - began >= 0.5


def test_a_block_that_never_ends_does_not_stop_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_FORK_WAITS_S", 0.2)

    def enters() -> bool:
        with locks.no_fork():
            return True

    end = _held_elsewhere(locks.no_fork())
    try:
        assert _in_child(enters)
    finally:
        end()


def _enter() -> None:
    with locks.no_fork():
        pass


def test_whoever_allows_no_fork_may_fork_itself() -> None:
    with locks.no_fork():
        assert _in_child(lambda: True)
    thread = threading.Thread(target=_enter)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
