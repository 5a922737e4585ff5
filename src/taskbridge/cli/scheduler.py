"""`taskbridge scheduler`: sends what schedules say, and runs nothing."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from types import FrameType

from taskbridge import locks
from taskbridge.cli.arguments import (
    Commands,
    UsageError,
    add_app,
    add_command,
    bridge_of,
    check_has_server,
)
from taskbridge.cli.show import say
from taskbridge.schedules.sender import Scheduler

_DESCRIPTION = """\
Send what the schedules of MODULE say, and run nothing.

Workers do this by themselves, so that most applications need no such process. It is for those whose workers are told
not to (`--no-scheduler`, or the setting `scheduler`). Any number may run at once, beside workers too: each tick is sent
once.

  taskbridge scheduler shop.tasks

SIGTERM and Ctrl-C stop it, with exit code 0. Then: `taskbridge schedules MODULE` shows what is due next.
"""

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LOOK_S = 0.5


def add(commands: Commands) -> None:
    """Add the command."""
    title = "send what schedules say, and run nothing"
    parser = add_command(commands, "scheduler", run, help=title, description=_DESCRIPTION)
    add_app(parser, required=True)
    parser.add_argument(
        "--log-level", type=str.upper, choices=_LOG_LEVELS, metavar="LEVEL", default="INFO", help="default: INFO"
    )


def run(arguments: argparse.Namespace) -> int:
    """Send by schedules until a signal stops it."""
    bridge = bridge_of(arguments)
    check_has_server(bridge, "a worker")
    schedules = bridge.all_schedules()
    if not schedules:
        raise UsageError(f"{arguments.app!r} has no schedules; give a task cron or every")
    bridge.check_schedules()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = locks.Event()

    def obey(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, obey) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        names = ", ".join(schedule.name for schedule in schedules)
        say(f"sending by {len(schedules)} schedules of {arguments.app} to {bridge.settings.url.safe_url}: {names}")
        thread = threading.Thread(target=Scheduler(bridge).run, args=(stop,), name="taskbridge-scheduler", daemon=True)
        thread.start()
        say("ready")
        while not stop.wait(_LOOK_S):
            pass
        thread.join(bridge.settings.grace_s)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    bridge.close()
    return 0
