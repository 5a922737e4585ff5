"""`taskbridge queues` and `taskbridge health`: how much waits in the queues, and whether workers consume them."""

from __future__ import annotations

import argparse
import math
from argparse import Namespace

from taskbridge import Bridge, BrokerUnavailable
from taskbridge.cli.command import (
    JSON,
    MODULE_OR_NONE,
    URL,
    Output,
    argument,
    command,
    server_bridge,
    words,
)
from taskbridge.cli.output import say, table


@command("queues", "how much waits, is delayed, is dead", MODULE_OR_NONE, URL, JSON, opens=server_bridge)
def queues(bridge: Bridge, arguments: Namespace) -> Output:
    """Show how many messages wait in each known queue, and how many are delayed and dead.

      taskbridge queues shop.tasks
      watch -n 2 taskbridge queues shop.tasks

    The known queues are those of the settings, the routes and the tasks of MODULE. Delayed messages are scheduled, or
    wait for their next attempt. What a worker has taken is not counted.
    Then: `taskbridge dead list` shows what failed for good, and why.
    """
    counts = bridge.counts()
    none = "\nno MODULE is named: only the queues of the settings and their routes are known"
    more = none if arguments.app is None else ""
    rows = [(queue, str(number)) for queue, number in counts.waiting.items()]
    waiting = table(("queue", "waiting"), rows, right="waiting")
    return Output(
        text=f"{waiting}\n\ndelayed {counts.delayed}, dead {counts.dead}{more}",
        data={"waiting": dict(counts.waiting), "delayed": counts.delayed, "dead": counts.dead},
    )


_MEANINGS = {
    "consumed": "consumed",
    "busy": "busy: all slots of its workers are taken",
    "silent": "silent: no worker consumes it",
    "unknown": "unknown: the broker does not answer",
}


def _bridge(arguments: Namespace) -> Bridge:
    """Return the application's bridge; without one, a bridge that knows the queues that are asked about."""
    bridge = server_bridge(arguments)
    if arguments.app is not None or not arguments.queues:
        return bridge
    return Bridge(arguments.url, queues=(*bridge.settings.queues, *arguments.queues))


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds above 0, not {text!r}")
    return number


@command(
    "health",
    "whether workers consume the queues",
    MODULE_OR_NONE,
    URL,
    argument("--queues", type=words, metavar="A,B", default=[], help="these only; default: all known ones"),
    argument("--timeout", type=_seconds, metavar="S", default=5.0, help="seconds to wait for answers; default: 5"),
    JSON,
    opens=_bridge,
)
def health(bridge: Bridge, arguments: Namespace) -> Output:
    """Tell whether workers consume the queues: put a probe in each, and wait until a worker has answered it.

    That a worker is connected is not enough.

      taskbridge health shop.tasks
      taskbridge health --queues email,vip --timeout 10

    It prints a line a queue:

      consumed   a worker answered
      busy       none answered, but a worker that consumes it says that all its slots are taken by running tasks
      silent     neither: there is no worker for it, or it hangs

    MODULE is needed only for the names of its queues: with --queues, and TASKBRIDGE_URL in the environment, leave it
    out, and nothing of the application is imported.

    Exit codes: 0 no queue is silent; 1 one is, or the broker does not answer; 2 it can't be asked, and one line says
    why.
    """
    try:
        found = bridge.health(*arguments.queues, timeout=arguments.timeout)
    except BrokerUnavailable as exc:
        if not arguments.json:
            say(exc.problem)
        states = dict.fromkeys(arguments.queues or bridge.queues(), "unknown")
        data = {"ok": False, "queues": states, "problem": exc.problem}
    else:
        states = dict[str, str](found.queues)
        data = {"ok": found.is_well, "queues": states, "seconds": round(found.seconds, 3)}
    text = "\n".join(f"{queue}: {_MEANINGS[state]}" for queue, state in states.items())
    return Output(text=text, data=data, code=0 if data["ok"] else 1)
