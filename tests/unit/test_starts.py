"""The starts of runs, which are recorded only of those that last."""

from __future__ import annotations

import time
from collections.abc import Sequence

from taskbridge import Message
from taskbridge.stores.starts import _SHORT_S, Started, Starts
from taskbridge.stores.transitions import Run


def test_only_starts_of_runs_that_last_are_written() -> None:
    begun, ages = dict[str, float](), dict[str, float]()

    def write(starts: Sequence[Started]) -> None:
        ages.update({start.message.id: time.monotonic() - begun[start.message.id] for start in starts})

    starts = Starts(write)
    for number in range(100):
        message = Message(id=f"{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
        begun[message.id] = time.monotonic()
        starts.write_soon(starts.add(message, Run("w:1", 1.0)))
        time.sleep(0.002)
        if number % 10:
            starts.remove(message)
    deadline = time.monotonic() + 30
    while not {f"{number}" for number in range(0, 100, 10)} <= set(ages) and time.monotonic() < deadline:
        time.sleep(0.01)
    starts.close()
    assert set(ages) >= {f"{number}" for number in range(0, 100, 10)}
    assert min(ages.values()) >= _SHORT_S * 0.99, ages
