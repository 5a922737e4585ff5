"""What workers load in the tests of what they tell of themselves."""

from __future__ import annotations

import os
import time

from taskbridge import Bridge, RetryPolicy

bridge = Bridge(retry=RetryPolicy.never())


@bridge.task
def quick(number: int) -> int:
    return number


@bridge.task
def fails() -> None:
    raise ValueError("no\x1b[31m\n such <b>card</b>")


@bridge.task
def lasts() -> None:
    """Take two minutes, or until the test has seen enough."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not os.path.exists(os.environ["SHOP_ENOUGH"]):
        time.sleep(0.02)
