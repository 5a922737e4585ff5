"""`taskbridge health`: whether workers consume the queues."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from taskbridge import Bridge, BrokerUnavailable, Health
from taskbridge.cli.arguments import Commands, add_app, add_command, add_json, bridge_of, check_has_server, words
from taskbridge.cli.show import print_json, say

_DESCRIPTION = """\
Tell whether workers consume the queues: put a probe in each, and wait until a worker has taken it and answered. That a
worker is connected is not enough.

  taskbridge health shop.tasks
  taskbridge health --queues email,vip --timeout 10

It prints a line a queue:

  consumed   a worker answered
  busy       none answered, but a worker that consumes it says that all its slots are taken by running tasks
  silent     neither: there is no worker for it, or it hangs

MODULE is needed only for the names of its queues: with --queues, and TASKBRIDGE_URL in the environment, leave it out,
and nothing of the application is imported.

Exit codes: 0 no queue is silent; 1 one is, or the broker does not answer; 2 it can't be asked, and one line says why.
"""

_MEANINGS = {
    "consumed": "consumed",
    "busy": "busy: all slots of its workers are taken",
    "silent": "silent: no worker consumes it",
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "health", run, help="whether workers consume the queues", description=_DESCRIPTION)
    add_app(parser, required=False)
    parser.add_argument("--queues", type=words, metavar="A,B", default=[], help="these only; default: all known ones")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="S", default=5.0, help="seconds to wait for answers; default: 5"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print what came of it."""
    bridge = _bridge(arguments)
    check_has_server(bridge, "this command")
    try:
        health = bridge.health(*arguments.queues, timeout=arguments.timeout)
    except BrokerUnavailable as exc:
        return _unavailable(bridge, arguments.queues, exc, as_json=arguments.json)
    finally:
        bridge.close()
    _show(health, as_json=arguments.json)
    return 0 if health.is_well else 1


def _bridge(arguments: argparse.Namespace) -> Bridge:
    """Return the application's bridge; without one, a bridge that knows the queues that are asked about."""
    bridge = bridge_of(arguments)
    if arguments.app is not None or not arguments.queues:
        return bridge
    return Bridge(arguments.url, queues=(*bridge.settings.queues, *arguments.queues))


def _show(health: Health, *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": health.is_well, "queues": dict(health.queues), "seconds": round(health.seconds, 3)})
        return
    for queue, state in health.queues.items():
        print(f"{queue}: {_MEANINGS[state]}")


def _unavailable(bridge: Bridge, queues: Sequence[str], error: BrokerUnavailable, *, as_json: bool) -> int:
    """Say that nobody can know, for the broker doesn't answer."""
    names = queues or bridge.queues()
    if as_json:
        print_json({"ok": False, "queues": dict.fromkeys(names, "unknown"), "problem": error.problem})
    else:
        say(error.problem)
        for queue in names:
            print(f"{queue}: unknown: the broker does not answer")
    return 1


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds above 0, not {text!r}")
    return number
