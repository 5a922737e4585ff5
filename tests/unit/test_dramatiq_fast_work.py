"""A worker's threads get each message once, as many of them as there are messages, and no more are woken."""

from __future__ import annotations

import threading
from collections import Counter
from queue import Empty
from typing import Any

import pytest

from taskbridge.engines.dramatiq.fast.work import WorkQueue

MANY_S = 60


class Parcel:
    """Something to run, or nothing."""

    def __init__(self, number: int, *, holds: bool = True) -> None:
        self.number = number
        self.holds = holds

    def opened(self) -> Any:
        return self if self.holds else None


def test_what_was_put_in_first_comes_out_first() -> None:
    work = WorkQueue()
    for number in range(3):
        work.put(Parcel(number))

    assert [work.get_nowait().message.number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Empty):
        work.get(timeout=0.01)


def test_a_parcel_with_nothing_to_run_is_passed_over() -> None:
    work = WorkQueue()
    work.put(Parcel(0, holds=False))
    work.put(Parcel(1))

    assert work.get().message.number == 1
    assert work.unfinished_tasks == 1
    work.task_done()
    work.join()


def test_as_many_threads_run_as_there_are_messages() -> None:
    """One thread is woken, and it wakes the next: none of them waits for the end of another's task."""
    work, together = WorkQueue(), threading.Barrier(5)

    def run() -> None:
        work.get(timeout=MANY_S)
        together.wait(MANY_S)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(4):
        work.put(Parcel(number))

    together.wait(MANY_S)
    for thread in threads:
        thread.join(MANY_S)


def test_what_is_left_for_later_is_done_before_the_last_message_is_begun() -> None:
    work, acts = WorkQueue(), list[str]()

    def ask(calls: int) -> list[Parcel]:
        acts.append(f"asked for {calls}")
        return [Parcel(len(acts) + 10)]

    work.later(ask)
    assert acts == ["asked for 1"], "at once: nothing waits"
    work.put(Parcel(0))
    work.later(ask)
    work.later(ask)

    assert work.get().message.number == 11
    assert acts == ["asked for 1"]
    assert work.get().message.number == 0
    assert acts == ["asked for 1", "asked for 2"]
    assert work.get().message.number == 12
    assert work.unfinished_tasks == 3


def test_each_message_is_run_once_though_threads_come_and_go() -> None:
    work, found, stop = WorkQueue(), list[int](), threading.Event()

    def run(timeout_s: float) -> None:
        while not stop.is_set():
            try:
                found.append(work.get(timeout=timeout_s).message.number)
            except Empty:
                continue
            work.task_done()

    def send(first: int) -> None:
        for number in range(first, first + 500):
            work.put(Parcel(number))

    threads = [threading.Thread(target=run, args=(timeout_s,)) for timeout_s in (0.0001, 0.0003, 0.2, 0.2, 0.2)]
    senders = [threading.Thread(target=send, args=(first,)) for first in (0, 500, 1000)]
    for thread in (*threads, *senders):
        thread.start()
    for sender in senders:
        sender.join(MANY_S)
    work.join()
    stop.set()
    for thread in threads:
        thread.join(MANY_S)

    assert Counter(found) == Counter(range(1500))


def test_items_are_what_dramatiq_2_0_expects_too() -> None:
    queue, message = WorkQueue(), object()
    queue.put((0, message))
    _, found = queue.get_nowait()

    assert found is message
