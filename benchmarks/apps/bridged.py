"""taskbridge, with its default settings; whether tasks are recorded depends on whether the others keep results."""

from __future__ import annotations

from time import monotonic
from typing import Final

from benchmarks.apps import work
from taskbridge import Bridge

bridge: Final = Bridge(
    f"{work.OPTION}+{work.URL}",
    namespace="bench",
    queues=[f"other{n}" for n in range(work.MORE_QUEUES)],
    store=work.STORE,
    fast=work.FAST,
)
if work.TRACED:
    work.trace()
if work.SPANS:
    from taskbridge.integrations.opentelemetry import instrument  # here, for only who is traced pays for it

    work.export()
    instrument(bridge)


@bridge.task(name="tick", results=work.RESULTS)
def tick(payload: str) -> None:
    work.tick()


@bridge.task(name="mark", results=work.RESULTS)
def mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


@bridge.task(name="stamp")
def stamp() -> float:
    return monotonic()


def _nothing(payload: str) -> None:
    pass


def _declare(count: int) -> float:
    """Declare so many more tasks, and return the seconds that it took."""
    started = monotonic()
    for number in range(count):
        bridge.task(name=f"more.task{number}", results=work.RESULTS)(_nothing)
    return monotonic() - started


declared_s: Final = _declare(work.MORE_TASKS)


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        tick.send(payload)


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        tick.send_many([tick.call(payload) for _ in range(size)])


def mark(label: str, delay_s: float) -> None:
    if delay_s:
        mark_task.schedule(delay_s, label, monotonic() + delay_s)
    else:
        mark_task.send(label, monotonic())


def tick_later(payload: str, count: int, delay_s: float) -> None:
    for _ in range(count):
        tick.schedule(delay_s, payload)


def wait_for_stamp() -> float:
    done_at = stamp.send().result(timeout=work.WAIT_S)
    return monotonic() - done_at


async def tick_async(payload: str) -> None:
    await tick.asend(payload)
