"""Parks messages for in an hour, many at a time: python -m benchmarks.programs.parking bridged COUNT."""

from __future__ import annotations

import sys
import time
from itertools import islice

from benchmarks.apps.bridged import bridge
from taskbridge.message import Message, new_id

_TOGETHER = 5000
_LATER_S = 3600.0

if __name__ == "__main__":
    now = time.time()
    messages = (
        Message(id=new_id(), task="tick", queue="default", args_json='["x"]', kwargs_json="{}", enqueued_at=now)
        for _ in range(int(sys.argv[2]))
    )
    while part := list(islice(messages, _TOGETHER)):
        bridge.broker.park([(message, _LATER_S) for message in part], timeout_s=60)
