"""`taskbridge metrics`: what broker and store tell of all workers, for Prometheus."""

from __future__ import annotations

from argparse import Namespace

from taskbridge import Bridge
from taskbridge.cli import command as cli


@cli.command("metrics", "what waits, in Prometheus' format", cli.MODULE_OR_NONE, cli.URL, opens=cli.server_bridge)
def metrics(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Print once, in Prometheus' text format, what broker and store tell: what waits, is delayed and is dead.

      taskbridge metrics shop.tasks
      taskbridge metrics shop.tasks > /var/lib/node_exporter/taskbridge.prom

    What workers count (runs, waits, failures) is on the port of `taskbridge worker --metrics-port`, with these numbers.
    """
    from taskbridge.metrics.gauges import text_of  # here, for other commands need none of it

    return cli.Output(text=text_of(bridge))
