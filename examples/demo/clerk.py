"""The process that takes the orders, and on a memory broker runs the tasks too: `python -m examples.demo.clerk`.

It ends when its standard input is closed.
"""

import sys
import time
from contextlib import nullcontext

from examples.demo.events import Note, write
from examples.demo.staff import shop
from taskbridge import default_bridge


def main() -> None:
    """Take the orders, and then wait until the shop closes."""
    bridge = default_bridge()
    _ = bridge.native if bridge.settings.url.broker == "memory" else bridge.broker  # imported before the clock runs
    write(Note(at=time.time(), what="opened"))
    shop.take_orders()
    write(Note(at=time.time(), what="all_sent"))
    is_worker = bridge.settings.url.broker == "memory"
    with bridge.embedded_worker(threads=1) if is_worker else nullcontext():
        sys.stdin.read()
        counts = bridge.counts()
    left = (sum(counts.waiting.values()), counts.delayed, counts.dead)
    write(Note(at=time.time(), what="closed", left=left))
    bridge.close()


if __name__ == "__main__":
    main()
