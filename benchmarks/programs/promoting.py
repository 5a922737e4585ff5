"""Parks and promotes messages, and prints what one costs: this process's CPU time as it promotes, the server's in all.

python -m benchmarks.programs.promoting bridged COUNT
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Final

from benchmarks.apps import work
from benchmarks.apps.bridged import bridge
from taskbridge.message import Message, new_id

_DUE_AFTER_S: Final = 0.5
_LOOK_S: Final = 0.05
_QUEUES: Final = ("default",)
_TIMEOUT_S: Final = 120.0


def _park(count: int) -> None:
    now = time.time()
    messages = [
        Message(id=new_id(), task="tick", queue="default", args_json='["x"]', kwargs_json="{}", enqueued_at=now)
        for _ in range(count)
    ]
    bridge.broker.park([(message, _DUE_AFTER_S) for message in messages], timeout_s=60)


def _waiting() -> int:
    return sum(bridge.broker.counts(_QUEUES).waiting.values())


def main(count: int) -> None:
    """Park so many, wait until they are due, and promote them."""
    before, server_before = _waiting(), work.server_cpu_s()
    _park(count)
    time.sleep(2 * _DUE_AFTER_S)
    stop = threading.Event()
    pump = threading.Thread(target=lambda: bridge.broker.pump(knows=lambda task: True, stop=stop))
    cpu_before, started = time.process_time(), time.perf_counter()
    pump.start()
    while _waiting() - before < count:
        if time.perf_counter() - started > _TIMEOUT_S:
            sys.exit(f"{_waiting() - before} of {count} promoted after {_TIMEOUT_S:.0f} s")
        time.sleep(_LOOK_S)
    cpu_s, server_s = time.process_time() - cpu_before, work.server_cpu_s() - server_before
    stop.set()
    pump.join()
    print(json.dumps({"cpu_us": cpu_s / count * 1e6, "server_us": server_s / count * 1e6}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[2]))
