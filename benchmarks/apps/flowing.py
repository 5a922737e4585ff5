"""taskbridge's flows: a group, and chains, of a task that does nothing; the same task without a flow is `bridged`'s."""

from __future__ import annotations

from itertools import repeat
from time import perf_counter

from benchmarks.apps import work
from benchmarks.apps.bridged import bridge, tick, tick_batches, tick_each
from taskbridge import Results, group

__all__ = ["bridge", "tick_batches", "tick_each"]


@bridge.task(name="tick.last")
def last_tick(payload: str) -> None:
    """Do nothing, and be the last one that is looked at: what follows tells how much later it is."""
    work.tick_last()


@bridge.task(name="tick.next")
def next_tick(given: None, payload: str) -> None:
    work.tick()


@bridge.task(name="followed")
def followed(results: Results[None]) -> None:
    work.followed()


def tick_group(payload: str, count: int) -> str:
    """Send a group with what follows it, and return its id."""
    return group(last_tick.call(each) for each in repeat(payload, count)).then(followed).send().id


def tick_chains(payload: str, length: int, count: int) -> None:
    """Send so many chains of so many steps."""
    for _ in range(count):
        chain = tick.call(payload).then(next_tick, payload)
        for _ in range(length - 2):
            chain = chain.then(next_tick, payload)
        chain.send()


def status_us(flow: str, times: int) -> float:
    """Return how many microseconds a look at a flow's status takes, the median of several."""
    took = list[float]()
    for _ in range(times):
        before = perf_counter()
        bridge.flow(flow).status()
        took.append(perf_counter() - before)
    return sorted(took)[times // 2] * 1e6
