"""Sends many tasks, and prints the microseconds that one took and the memory that this process came to hold for it.

python -m benchmarks.programs.flowing APP many COUNT            by `send_many`, a hundred at a time
                                      APP single COUNT          one by one
                                      APP group COUNT [LOOKS]   as a group; how long a look at its status takes, too
                                      APP chains LENGTH COUNT   as so many chains
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module
from typing import Any

_PAYLOAD = "x" * 10
_BATCH = 100


def main(name: str, way: str, first: int, second: int = 0) -> None:
    """Send, and print."""
    app: Any = import_module(f"benchmarks.apps.{name}")
    if hasattr(app, "tick_batches"):
        app.tick_batches(_PAYLOAD, _BATCH, 1)  # connections and caches are there then
    count = first * second if way == "chains" else first
    memory, cpu_before, before = _peak_mb(), time.process_time(), time.perf_counter()
    flow = ""
    if way == "many":
        app.tick_batches(_PAYLOAD, _BATCH, count // _BATCH)
    elif way == "single":
        app.tick_each(_PAYLOAD, count)
    elif way == "group":
        flow = app.tick_group(_PAYLOAD, count)
    else:
        app.tick_chains(_PAYLOAD, first, second)
    took_s, cpu_s = time.perf_counter() - before, time.process_time() - cpu_before
    figures = {"us": took_s / count * 1e6, "cpu_us": cpu_s / count * 1e6, "MB": _peak_mb() - memory, "s": took_s}
    if flow and second:
        figures["status us"] = app.status_us(flow, second)
    print(json.dumps(figures), flush=True)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3


if __name__ == "__main__":
    _, app_name, how, *sizes = sys.argv
    main(app_name, how, *map(int, sizes))
