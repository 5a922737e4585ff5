"""The threads of a Celery worker: none waits for another, and few are woken for tasks that end at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from time import monotonic, sleep

import pytest

from taskbridge.engines.celery.carrier import Slots

WAIT_S = 60.0


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(3)
    yield made
    made.shutdown()


def test_tasks_that_take_long_run_in_all_threads_at_once(slots: Slots) -> None:
    together = threading.Barrier(4)
    for _ in range(3):
        slots.put(lambda: together.wait(WAIT_S))
    together.wait(WAIT_S)  # breaks if one of them waits for a thread


def test_a_task_that_comes_while_others_run_long_gets_the_thread_that_is_free(slots: Slots) -> None:
    free, begun, done = threading.Event(), threading.Barrier(3), threading.Event()
    for _ in range(2):
        slots.put(lambda: (begun.wait(WAIT_S), free.wait(WAIT_S)))
    begun.wait(WAIT_S)
    slots.put(done.set)
    assert done.wait(WAIT_S)
    free.set()


def test_all_of_many_short_tasks_run_once(slots: Slots) -> None:
    ran: list[int] = []
    finished = threading.Event()
    for number in range(5000):
        slots.put(partial(ran.append, number))
    slots.put(finished.set)
    assert finished.wait(WAIT_S)
    slots.shutdown()
    assert sorted(ran) == list(range(5000))


def test_the_main_loop_is_told_of_each_task_that_ends_before_its_thread_sleeps(slots: Slots) -> None:
    told = SimpleQueue[None]()
    slots.tell = partial(told.put, None)
    for _ in range(20):
        slots.put(lambda: None)
        told.get(timeout=WAIT_S)


def test_the_main_loop_is_told_though_the_threads_next_task_takes_long() -> None:
    slots = Slots(1)
    told, first, second = threading.Event(), threading.Event(), threading.Event()
    slots.tell = told.set
    slots.put(lambda: first.wait(WAIT_S))
    slots.put(lambda: second.wait(WAIT_S))  # which nobody comes for: all threads are busy
    first.set()
    try:
        assert told.wait(WAIT_S / 4), "while the second task runs"
    finally:
        second.set()
        slots.shutdown()


def test_the_main_loop_is_told_while_another_thread_is_busy_with_what_came_last() -> None:
    """The thread that is on its way has to tell, if the one that ended a task goes on with the next."""
    slots = Slots(2)
    told, done = threading.Event(), threading.Event()
    slots.tell = told.set
    slots.put(lambda: None)
    for _ in range(2):
        slots.put(lambda: done.wait(WAIT_S))
    try:
        assert told.wait(WAIT_S / 4)
    finally:
        done.set()
        slots.shutdown()


def test_an_error_is_logged_and_the_thread_goes_on(slots: Slots, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise SystemExit(3)

    with caplog.at_level(logging.ERROR, "taskbridge.celery"):
        for _ in range(4):
            slots.put(fail)
        slots.put(done.set)
        assert done.wait(WAIT_S)
        slots.shutdown()
    assert len([record for record in caplog.records if record.thread in {each.ident for each in slots._threads}]) == 4


def test_a_submitted_call_says_what_it_returned(slots: Slots) -> None:
    assert slots.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)


def test_the_end_waits_for_what_runs_and_drops_what_has_not_begun() -> None:
    slots = Slots(1)
    begun, free, ran = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        begun.set()
        free.wait(WAIT_S)
        ran.append("first")

    slots.put(first)
    slots.put(partial(ran.append, "second"))
    assert begun.wait(WAIT_S)
    ending = threading.Thread(target=lambda: slots.shutdown(cancel_futures=True))
    ending.start()
    deadline = monotonic() + WAIT_S
    while slots._work:  # else the thread may come to it first
        assert monotonic() < deadline
        sleep(0.01)
    free.set()
    ending.join(WAIT_S)
    assert not ending.is_alive()
    assert ran == ["first"]


def test_one_that_never_ran_anything_ends_too() -> None:
    Slots(2).shutdown()


def test_a_main_loop_that_can_not_be_told_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    def tell() -> None:
        raise OSError("no connection")

    slots, done = Slots(1), threading.Event()
    slots.tell, slots.most_untold = tell, 1
    ran: list[int] = []
    for number in range(3):
        slots.put(partial(ran.append, number))
    slots.put(done.set)
    assert done.wait(WAIT_S)
    slots.shutdown()
    assert ran == [0, 1, 2]
    assert "no connection" in caplog.text
