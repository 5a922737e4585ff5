"""`python -m tests.flows.sender ACT KIND FIRST COUNT MEMBERS`: acts on flows, each in a child that may be killed.

The child of flow n is killed at its call n of store or broker that is about that flow. Prints `n killed` or `n done`
for each. `send-safely` kills nobody.
"""

from __future__ import annotations

import os
import signal
import sys

from tests.flows.app import FOLDER, bridge, flow
from tests.flows.faults import Fault, Killer, flow_id


def act(what: str, kind: str, number: int, members: int) -> None:
    """Send a flow, cancel it or retry it; one that was sent before is not sent again, for it has the same id."""
    if what.startswith("send"):
        flow(kind, number, members).using(id=flow_id(number)).send()
    elif what == "cancel":
        bridge.flow(flow_id(number)).cancel()
    else:
        bridge.flow(flow_id(number)).retry()


def main(what: str, kind: str, first: int, count: int, members: int) -> None:
    for number in range(first, first + count):
        if what == "send-safely":
            act(what, kind, number, members)
            continue
        if not (child := os.fork()):
            os.setpgid(0, 0)
            Killer(bridge, Fault("*"), [number], FOLDER)
            act(what, kind, number, members)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"the child of flow {number} ended with {status}"
        print(number, "killed" if status else "done", flush=True)


if __name__ == "__main__":
    _, what, kind, *numbers = sys.argv
    main(what, kind, *map(int, numbers))
