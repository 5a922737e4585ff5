"""`taskbridge schedules` and `taskbridge scheduler`: what is due next, pausing it, and sending it."""

from __future__ import annotations

import logging
import signal
import threading
from argparse import Namespace
from datetime import datetime, timezone
from types import FrameType
from typing import Any, Final

from taskbridge import Bridge, Cron, Every, ScheduleEntry, locks
from taskbridge.cli.command import (
    JSON,
    LOG_LEVEL,
    MODULE,
    URL,
    Output,
    UsageError,
    app_bridge,
    argument,
    checked_server,
    command,
    count,
)
from taskbridge.cli.output import say, table
from taskbridge.engines.base import APP_VARIABLE
from taskbridge.schedules.sender import Scheduler

_LOOK_S: Final = 0.5


def _bridge(arguments: Namespace) -> Bridge:
    """Return the bridge that the words of `taskbridge schedules` name, and leave in them what is to be done."""
    match arguments.words:
        case ["pause" | "resume", _] | []:
            pass
        case [app] if app not in ("pause", "resume") and arguments.app is None:
            arguments.app, arguments.words = app, []
        case _:
            raise UsageError(
                "schedules: write `schedules MODULE`, `schedules pause NAME --app MODULE` or "
                "`schedules resume NAME --app MODULE`"
            )
    return checked_server(app_bridge(arguments), "this command")


@command(
    "schedules",
    "what is due next, and pausing it",
    argument(
        "words",
        nargs="*",
        metavar="MODULE[:BRIDGE] | pause NAME | resume NAME",
        help=f"the module that declares the tasks; if left out: the variable {APP_VARIABLE}",
    ),
    argument("--app", metavar="MODULE[:BRIDGE]", help="the module, for pause and resume"),
    argument("--runs", type=count, metavar="N", default=1, help="how many next runs to show; default: 1"),
    URL,
    JSON,
    opens=_bridge,
)
def schedules(bridge: Bridge, arguments: Namespace) -> Output:
    """Show the schedules of MODULE: when each is due next, whether it is paused, and how many ticks were missed.

    The next run is shown in the schedule's own zone and in UTC. A tick is missed if it was due while no worker was
    there, or while the message before had not ended (`overlap="skip"`).

      taskbridge schedules shop.tasks
      taskbridge schedules shop.tasks --runs 5 --json
      taskbridge schedules pause shop.report --app shop.tasks
      taskbridge schedules resume shop.report --app shop.tasks

    A schedule that is paused stays so until it is resumed, whatever is started anew; what is due meanwhile is left out.
    """
    if arguments.words:
        verb, name = arguments.words
        (bridge.schedules.pause if verb == "pause" else bridge.schedules.resume)(name)
        [entry] = [each for each in bridge.schedules.list() if each.name == name]
        return Output(text=f"{name} is {_state(entry)}", data=_data(entry))
    entries = bridge.schedules.list(runs=arguments.runs)
    head = ("schedule", "task", "when", "next run", "in UTC", "state", "missed")
    rows = [row for entry in entries for row in _rows(entry)]
    text = table(head, rows, right="missed") if entries else "no schedules"
    return Output(text=text, data=[_data(entry) for entry in entries])


def _state(entry: ScheduleEntry) -> str:
    return "paused" if entry.paused else "active"


def _rows(entry: ScheduleEntry) -> list[tuple[str, ...]]:
    zone = f" ({entry.timing.timezone})" if isinstance(entry.timing, Cron) else ""
    times = [
        (run.strftime("%a %Y-%m-%d %H:%M:%S %z"), run.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ"))
        for run in entry.next_runs
    ] or [("never", "")]
    first = (entry.name, entry.task, f"{entry.timing.spec}{zone}", *times[0], _state(entry), str(entry.missed))
    return [first, *(("", "", "", *each, "", "") for each in times[1:])]


def _data(entry: ScheduleEntry) -> dict[str, Any]:
    timing, last = entry.timing, entry.last_planned_at
    cron = timing if isinstance(timing, Cron) else None
    return {
        "name": entry.name,
        "task": entry.task,
        "cron": cron.expression if cron else None,
        "every_s": timing.interval_s if isinstance(timing, Every) else None,
        "timezone": cron.timezone if cron else "UTC",
        "catch_up": timing.catch_up,
        "overlap": timing.overlap,
        "next_runs": [{"local": run.isoformat(), "utc": _utc(run)} for run in entry.next_runs],
        "paused": entry.paused,
        "missed": entry.missed,
        "last_id": entry.last_id,
        "last_planned_at": None if last is None else _utc(last),
    }


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


@command("scheduler", "send what schedules say, and run nothing", MODULE, URL, LOG_LEVEL, opens=app_bridge)
def scheduler(bridge: Bridge, arguments: Namespace) -> Output:
    """Send what the schedules of MODULE say, and run nothing.

    Workers do this by themselves, so that most applications need no such process. It is for those whose workers are
    told not to (`--no-scheduler`, or the setting `scheduler`). Any number may run at once, beside workers too: each
    tick is sent once.

      taskbridge scheduler shop.tasks

    SIGTERM and Ctrl-C stop it, with exit code 0. Then: `taskbridge schedules MODULE` shows what is due next.
    """
    checked_server(bridge, "a worker")
    names = list(bridge.schedules.planned())
    if not names:
        raise UsageError(f"{arguments.app!r} has no schedules; give a task cron or every")
    bridge.schedules.check()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = locks.Event()

    def obey(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, obey) for number in (signal.SIGTERM, signal.SIGINT)}
    say(f"sending by {len(names)} schedules of {arguments.app} to {bridge.settings.url.safe_url}: {', '.join(names)}")
    thread = threading.Thread(target=Scheduler(bridge).run, args=(stop,), name="taskbridge-scheduler", daemon=True)
    thread.start()
    say("ready")
    while not stop.wait(_LOOK_S):  # a handler runs only between two waits
        pass
    thread.join(bridge.settings.grace_s)
    for number, handler in former.items():
        signal.signal(number, handler)
    return Output()
