"""`taskbridge queues`: how much waits, is delayed, is dead."""

from __future__ import annotations

import argparse

from taskbridge.cli.arguments import Commands, add_app, add_command, add_json, bridge_of, check_has_server
from taskbridge.cli.show import print_json, table

_DESCRIPTION = """\
Show how many messages wait in each known queue, and how many are delayed (scheduled, or waiting for their next attempt)
and dead.

  taskbridge queues shop.tasks
  watch -n 2 taskbridge queues shop.tasks

The known queues are those of the settings, the routes and the tasks of MODULE. What a worker has taken is not counted.
Then: `taskbridge dead list` shows what failed for good, and why.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "queues", run, help="how much waits, is delayed, is dead", description=_DESCRIPTION)
    add_app(parser, required=False)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the counts of all queues."""
    bridge = bridge_of(arguments)
    check_has_server(bridge, "this command")
    counts = bridge.counts()
    bridge.close()
    if arguments.json:
        print_json({"waiting": dict(counts.waiting), "delayed": counts.delayed, "dead": counts.dead})
        return 0
    rows = [(queue, str(number)) for queue, number in counts.waiting.items()]
    print(table(("queue", "waiting"), rows, right=("waiting",)))
    print(f"\ndelayed {counts.delayed}, dead {counts.dead}")
    return 0
