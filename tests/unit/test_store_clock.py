"""The time by the store's clock, on machines whose clocks differ from it, are set, or stand still."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from taskbridge import BrokerUnavailable
from taskbridge.exceptions import StoreUnavailable
from taskbridge.stores import clock
from taskbridge.stores.clock import StoreClock
from taskbridge.stores.memory import MemoryBackend


class World:
    """A store and a machine, each with a clock; an answer of the store takes `took_s`."""

    def __init__(self) -> None:
        self.real = 1000.0
        self.machine_ahead_s = 0.0
        self.asleep_s = 0.0
        self.took_s = 0.01
        self.is_away = False
        self.asked = 0

    def monotonic(self) -> float:
        return self.real - self.asleep_s

    def time(self) -> float:
        return self.real + self.machine_ahead_s


class Backend(MemoryBackend):
    """A store that has a clock of its own."""

    def __init__(self, world: World) -> None:
        super().__init__(time.time)
        self._world = world

    def time(self, *, timeout_s: float) -> float:
        self._world.asked += 1
        self._world.real += self._world.took_s
        if self._world.is_away:
            raise StoreUnavailable("it is away")
        return self._world.real


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(clock, "monotonic", world.monotonic)
        patch.setattr(time, "time", world.time)
        yield world


def clock_of(world: World) -> StoreClock:
    return StoreClock(Backend(world), send_timeout_s=5.0)


@pytest.mark.parametrize("ahead_s", [7200.0, 3.0, -3.0, -7200.0])
def test_a_clock_that_differs_is_put_right_and_never_early(world: World, ahead_s: float) -> None:
    world.machine_ahead_s = ahead_s
    now = clock_of(world)

    assert world.real - world.took_s - 1e-6 <= now() <= world.real + 1e-6  # of rounding
    world.real += 20.0
    assert world.real - world.took_s - 1e-6 <= now() <= world.real + 1e-6  # of rounding
    assert world.asked == 1


@pytest.mark.parametrize("ahead_s", [0.4, 0.0, -0.4])
def test_a_clock_that_agrees_is_left_alone(world: World, ahead_s: float) -> None:
    world.machine_ahead_s = ahead_s
    assert clock_of(world)() == world.time()


def test_the_store_is_asked_now_and_then_and_not_again_at_once_while_it_is_away(world: World) -> None:
    now = clock_of(world)
    for _ in range(10):
        now()
    assert world.asked == 1
    world.real += 31.0
    world.is_away = True
    for _ in range(10):
        assert now() == world.real
    assert world.asked == 2
    world.real += 6.0
    now()
    assert world.asked == 3


def test_a_clock_that_is_set_is_noticed_at_once_also_while_the_store_is_away(world: World) -> None:
    now = clock_of(world)
    now()
    world.is_away = True
    world.machine_ahead_s = 3600.0
    assert now() == pytest.approx(world.real, abs=0.1)
    world.is_away = False
    world.real += 6.0
    assert now() == pytest.approx(world.real, abs=0.1)
    world.machine_ahead_s = 0.0
    assert now() == pytest.approx(world.real, abs=0.1)


def test_a_machine_that_stood_still_asks_at_once(world: World) -> None:
    now = clock_of(world)
    now()
    world.real += 3600.0
    world.asleep_s = 3600.0
    assert now() == world.real
    assert world.asked == 2


def test_until_the_store_has_answered_this_machines_time_is_told_but_to_whom_that_is_not_enough(world: World) -> None:
    world.machine_ahead_s, world.is_away = 60.0, True
    now = clock_of(world)

    assert now() == world.time()
    with pytest.raises(BrokerUnavailable):
        now.ensure(timeout_s=1.0)
    world.is_away = False
    now.ensure(timeout_s=1.0)
    assert now() == pytest.approx(world.real, abs=0.1)


def test_a_difference_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.machine_ahead_s = -90.0
    now = clock_of(world)
    for _ in range(3):
        now()
        world.real += 31.0

    [told] = [text for text in caplog.messages if "this machine's clock" in text]
    assert told.startswith("this machine's clock is 90 s behind the store's")
