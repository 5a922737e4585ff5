"""Waits for results, and prints how long after its task's end each one was there, in milliseconds.

python -m benchmarks.programs.waiting APP COUNT GAP_S
"""

from __future__ import annotations

import json
import sys
import time
from statistics import quantiles

from benchmarks.apps.client import load

_FIRST = 5
"""How many results are waited for before the measured ones: connections are there then."""

if __name__ == "__main__":
    name, count, gap_s = sys.argv[1:]
    app = load(name)
    ages: list[float] = []
    for _ in range(_FIRST + int(count)):
        ages.append(app.wait_for_stamp() * 1e3)
        time.sleep(float(gap_s))
    hundredths = quantiles(ages[_FIRST:], n=100)
    print(json.dumps({"p50 ms": hundredths[49], "p99 ms": hundredths[98]}), flush=True)
