"""Sends messages, and prints the microseconds that one took: on the clock, and of this process's CPU time.

python -m benchmarks.programs.sending APP each PAYLOAD_BYTES COUNT
                                      APP batches PAYLOAD_BYTES SIZE TIMES
                                      APP threads PAYLOAD_BYTES COUNT THREADS
                                      APP later PAYLOAD_BYTES COUNT
                                      APP stall PAYLOAD_BYTES COUNT
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.apps.client import App, load

_FIRST = 50
"""How many messages are sent before the measured ones: connections and caches are there then."""

_LATER_S = 3600.0


def each(app: App, payload: str, count: int) -> Mapping[str, float]:
    """Send one after another."""
    app.tick_each(payload, min(_FIRST, count))
    return _timed(lambda: app.tick_each(payload, count), count)


def batches(app: App, payload: str, size: int, times: int) -> Mapping[str, float]:
    """Send in batches."""
    app.tick_batches(payload, size, 1)
    return _timed(lambda: app.tick_batches(payload, size, times), size * times)


def threads(app: App, payload: str, count: int, number: int) -> Mapping[str, float]:
    """Send from several threads at a time, so many in all."""
    share = count // number
    app.tick_each(payload, _FIRST)

    def all_at_once() -> None:
        started = [threading.Thread(target=app.tick_each, args=(payload, share)) for _ in range(number)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    return _timed(all_at_once, share * number)


def later(app: App, payload: str, count: int) -> Mapping[str, float]:
    """Send what is to run in an hour."""
    app.tick_later(payload, _FIRST, _LATER_S)
    return _timed(lambda: app.tick_later(payload, count, _LATER_S), count)


def stall(app: App, payload: str, count: int) -> Mapping[str, float]:
    """Send from an event loop, and print in `stall_ms` the longest time for which nothing else ran in it."""
    return asyncio.run(_stalled(app, payload, count))


async def _stalled(app: App, payload: str, count: int) -> Mapping[str, float]:
    await app.tick_async(payload)
    worst_s = 0.0
    done = False

    async def watch() -> None:
        nonlocal worst_s
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0)
            worst_s = max(worst_s, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    started = time.perf_counter()
    for _ in range(count):
        await app.tick_async(payload)
    took_s = time.perf_counter() - started
    done = True
    await watching
    return {"stall_ms": worst_s * 1e3, "us": took_s / count * 1e6}


def _timed(act: Callable[[], object], count: int) -> Mapping[str, float]:
    cpu_before, before = time.process_time(), time.perf_counter()
    act()
    took_s, cpu_s = time.perf_counter() - before, time.process_time() - cpu_before
    return {"us": took_s / count * 1e6, "cpu_us": cpu_s / count * 1e6}


_WAYS: Mapping[str, Callable[..., Mapping[str, float]]] = {
    "each": each,
    "batches": batches,
    "threads": threads,
    "later": later,
    "stall": stall,
}

if __name__ == "__main__":
    name, way, size, *numbers = sys.argv[1:]
    print(json.dumps(_WAYS[way](load(name), "x" * int(size), *map(int, numbers))), flush=True)
