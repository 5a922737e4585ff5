"""Sends what a worker is measured by.

python -m benchmarks.programs.marking APP fill COUNT         messages that do nothing, in batches
                                      APP knock              one mark, called `ready`
                                      APP marks COUNT GAP_S  marks, with pauses between them
                                      APP delayed COUNT DELAY_S SOON_S
                                                             messages for later, then the marks `now` and `soon`
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.apps.client import App, load

_BATCH = 100


def fill(app: App, count: str) -> None:
    """Send messages that do nothing."""
    app.tick_batches("x", _BATCH, int(count) // _BATCH)


def knock(app: App) -> None:
    """Send one mark."""
    app.mark("ready", 0)


def marks(app: App, count: str, gap_s: str) -> None:
    """Send marks, so far apart that the worker is idle in between; the first ones, which also connect, are `first`."""
    drawn = random.Random(1)
    for number in range(-5, int(count)):
        app.mark("idle" if number >= 0 else "first", 0)
        time.sleep(float(gap_s) * (0.5 + drawn.random()))


def delayed(app: App, count: str, delay_s: str, soon_s: str) -> None:
    """Send many messages for later, and then a mark for now and one for soon."""
    app.tick_later("x", int(count), float(delay_s))
    time.sleep(1.0)
    app.mark("now", 0)
    app.mark("soon", float(soon_s))


_WAYS: Mapping[str, Callable[..., None]] = {"fill": fill, "knock": knock, "marks": marks, "delayed": delayed}

if __name__ == "__main__":
    name, way, *words = sys.argv[1:]
    _WAYS[way](load(name), *words)
