"""Sends messages, says so in a line, and then does nothing until its input ends.

python -m benchmarks.programs.holding APP COUNT
"""

from __future__ import annotations

import sys

from benchmarks.apps.client import load

if __name__ == "__main__":
    name, count = sys.argv[1:]
    load(name).tick_each("x", int(count))
    print("sent", flush=True)
    sys.stdin.read()
