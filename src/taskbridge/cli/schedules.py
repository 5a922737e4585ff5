"""`taskbridge schedules`: what is due next, and pausing it."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from typing import Any

from taskbridge import Bridge, Cron, ScheduleEntry
from taskbridge.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_json,
    add_url,
    bridge_of,
    check_has_server,
    count,
)
from taskbridge.cli.show import print_json, table
from taskbridge.loading import APP_VARIABLE

_DESCRIPTION = """\
Show the schedules of MODULE: when each is due next, in its own zone and in UTC, whether it is paused, and how many
ticks were missed: due while no worker was there, or while the message before had not ended (`overlap="skip"`).

  taskbridge schedules shop.tasks
  taskbridge schedules shop.tasks --runs 5 --json
  taskbridge schedules pause shop.report --app shop.tasks
  taskbridge schedules resume shop.report --app shop.tasks

A schedule that is paused stays so until it is resumed, whatever is started anew; what is due meanwhile is left out.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "schedules", run, help="what is due next, and pausing it", description=_DESCRIPTION)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODULE[:BRIDGE] | pause NAME | resume NAME",
        help=f"the module that declares the tasks; if left out: the variable {APP_VARIABLE}",
    )
    parser.add_argument("--app", metavar="MODULE[:BRIDGE]", default=None, help="the module, for pause and resume")
    parser.add_argument("--runs", type=count, metavar="N", default=1, help="how many next runs to show; default: 1")
    add_url(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """List the schedules, or pause or resume one."""
    match arguments.words:
        case ["pause" | "resume" as verb, name]:
            return _set(arguments, verb, name)
        case []:
            return _list(arguments, arguments.app)
        case [app] if app not in ("pause", "resume") and arguments.app is None:
            return _list(arguments, app)
        case _:
            raise UsageError(
                "schedules: write `schedules MODULE`, `schedules pause NAME --app MODULE` or "
                "`schedules resume NAME --app MODULE`"
            )


def _bridge(arguments: argparse.Namespace, app: str | None) -> Bridge:
    arguments.app = os.environ.get(APP_VARIABLE) if app is None else app
    arguments.app_required = True
    bridge = bridge_of(arguments)
    check_has_server(bridge, "this command")
    return bridge


def _set(arguments: argparse.Namespace, verb: str, name: str) -> int:
    bridge = _bridge(arguments, arguments.app)
    try:
        if verb == "pause":
            bridge.schedules.pause(name)
        else:
            bridge.schedules.resume(name)
        [entry] = [each for each in bridge.schedules.list() if each.name == name]
    finally:
        bridge.close()
    if arguments.json:
        print_json(_data(entry))
        return 0
    print(f"{name} is {'paused' if entry.paused else 'active'}")
    return 0


def _list(arguments: argparse.Namespace, app: str | None) -> int:
    bridge = _bridge(arguments, app)
    try:
        entries = bridge.schedules.list(runs=arguments.runs)
    finally:
        bridge.close()
    if arguments.json:
        print_json([_data(entry) for entry in entries])
        return 0
    if not entries:
        print("no schedules")
        return 0
    rows = [row for entry in entries for row in _rows(entry)]
    print(table(("schedule", "task", "when", "next run", "in UTC", "state", "missed"), rows, right=("missed",)))
    return 0


def _rows(entry: ScheduleEntry) -> list[tuple[str, ...]]:
    when = entry.timing.spec
    if isinstance(entry.timing, Cron):
        when = f"{when} ({entry.timing.timezone})"
    state, missed = "paused" if entry.paused else "active", str(entry.missed)
    times = [(_local(run), _utc(run)) for run in entry.next_runs] or [("never", "")]
    first = (entry.name, entry.task, when, *times[0], state, missed)
    return [first, *(("", "", "", *each, "", "") for each in times[1:])]


def _local(moment: datetime) -> str:
    return moment.strftime("%a %Y-%m-%d %H:%M:%S %z")


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _data(entry: ScheduleEntry) -> dict[str, Any]:
    timing = entry.timing
    cron, every = (timing, None) if isinstance(timing, Cron) else (None, timing)
    last = entry.last_planned_at
    return {
        "name": entry.name,
        "task": entry.task,
        "cron": None if cron is None else cron.expression,
        "every_s": None if every is None else every.interval_s,
        "timezone": "UTC" if cron is None else cron.timezone,
        "catch_up": timing.catch_up,
        "overlap": timing.overlap,
        "next_runs": [{"local": run.isoformat(), "utc": _iso_utc(run)} for run in entry.next_runs],
        "paused": entry.paused,
        "missed": entry.missed,
        "last_id": entry.last_id,
        "last_planned_at": None if last is None else _iso_utc(last),
    }


def _iso_utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
