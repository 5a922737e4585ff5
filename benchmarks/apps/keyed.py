"""taskbridge with a unique task; each message has a key that no other one had before."""

from __future__ import annotations

from itertools import count
from typing import Final

from benchmarks.apps.bridged import bridge

_numbers: Final = count()


@bridge.task(name="tick.unique", unique="payload")
def tick(payload: str) -> None:
    pass


def _payload(payload: str) -> str:
    """Return another payload of the same size."""
    return str(next(_numbers)).zfill(len(payload))


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        tick.send(_payload(payload))


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        tick.send_many([tick.call(_payload(payload)) for _ in range(size)])
