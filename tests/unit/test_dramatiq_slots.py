"""Slots go to who waits longest, and none is lost."""

from __future__ import annotations

import threading

import pytest

from taskbridge.engines.dramatiq.broker import Slots


def in_line(slots: Slots) -> threading.Event:
    """Stand in line for a slot."""
    granted = threading.Event()
    slots.stand_in_line(granted)
    return granted


def test_there_are_as_many_as_threads() -> None:
    slots = Slots(3)

    assert in_line(slots).is_set()
    assert slots.take(5) == 2
    assert slots.take(1) == 0
    assert not in_line(slots).is_set()


def test_who_waits_longest_gets_what_is_freed() -> None:
    slots = Slots(1)
    slots.take(1)
    first, second = in_line(slots), in_line(slots)

    slots.release()

    assert (first.is_set(), second.is_set()) == (True, False)
    assert slots.take(1) == 0, "it was handed over, and never free"


def test_of_several_freed_at_once_each_in_the_line_gets_one_and_the_rest_is_free() -> None:
    slots = Slots(5)
    slots.take(5)
    line = [in_line(slots) for _ in range(2)]

    slots.release(5)

    assert [granted.is_set() for granted in line] == [True, True]
    assert slots.take(5) == 3


def test_who_gives_up_is_passed_over() -> None:
    slots = Slots(1)
    slots.take(1)
    first, second = in_line(slots), in_line(slots)

    slots.give_up(first)
    slots.release()

    assert (first.is_set(), second.is_set()) == (False, True)


def test_who_gives_up_what_it_has_frees_it() -> None:
    slots = Slots(1)

    slots.give_up(in_line(slots))

    assert slots.take(1) == 1


def test_it_is_known_for_how_long_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("taskbridge.engines.dramatiq.broker.monotonic", lambda: now)
    slots = Slots(2)
    slots.take(1)
    now += 1
    assert slots.full_for_s() == 0

    slots.take(1)
    now += 2
    assert slots.full_for_s() == 2
    in_line(slots)
    assert slots.full_for_s() == 2
    slots.release()

    assert slots.full_for_s() == 0, "another message has it now"
    now += 3
    assert slots.full_for_s() == 3


def test_threads_that_take_and_give_back_lose_none() -> None:
    slots, held, most = Slots(3), list[int](), list[int]()
    lock = threading.Lock()

    def work(number: int) -> None:
        for _ in range(200):
            granted = in_line(slots)
            if number % 2 and not granted.wait(0.0001):
                slots.give_up(granted)
                continue
            assert granted.wait(60)
            with lock:
                held.append(number)
                most.append(len(held))
            with lock:
                held.remove(number)
            slots.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)

    assert slots.take(10) == 3
    assert max(most) <= 3
