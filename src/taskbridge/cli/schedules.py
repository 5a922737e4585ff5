"""`taskbridge schedules` and `taskbridge scheduler`: what is due next, pausing it, and sending it."""

from __future__ import annotations

import json
import signal
import threading
from argparse import ArgumentTypeError, Namespace
from datetime import datetime, timezone
from typing import Any, Final

from taskbridge import Bridge, Cron, Every, ScheduleEntry, UnknownSchedule, acts, locks
from taskbridge.cli import command as cli
from taskbridge.cli.output import say, table
from taskbridge.engines.base import APP_VARIABLE
from taskbridge.exceptions import nearest
from taskbridge.schedules.sender import Scheduler

_LOOK_S: Final = 0.5


_VERBS: Final = ("pause", "resume", "disable", "enable", "remove", "run")
_ADDING: Final = ("cron", "every", "timezone", "args", "kwargs", "queue", "priority", "catch_up", "overlap")
"""The options of `schedules add`."""


def _bridge(arguments: Namespace) -> Bridge:
    """Return the bridge that the words of `taskbridge schedules` name, and leave in them what is to be done."""
    words: list[str] = arguments.words
    match words:
        case [] | ["add", _, _] | ["pause" | "resume" | "disable" | "enable" | "remove" | "run", _]:
            pass
        case [app] if app not in (*_VERBS, "add") and arguments.app is None:
            arguments.app, arguments.words = app, []
        case _:
            raise cli.UsageError(
                "schedules: write `schedules MODULE`, `schedules add NAME TASK --app MODULE`, or "
                f"`schedules VERB NAME --app MODULE` with one of {', '.join(_VERBS)}"
            )
    for option in _ADDING:
        if "add" not in words[:1] and getattr(arguments, option) is not None:
            raise cli.UsageError(f"schedules: --{option.replace('_', '-')} has an effect only with add")
    return cli.checked_server(cli.app_bridge(arguments), "this command")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"it must be JSON: {exc}") from exc


@cli.command(
    "what is due next, pausing it, and adding more",
    cli.argument(
        "words",
        "MODULE[:BRIDGE] | pause NAME | resume NAME | run NAME | add NAME TASK | remove NAME",
        f"the module that declares the tasks; if left out: the variable {APP_VARIABLE}",
        nargs="*",
    ),
    cli.argument("--app", "MODULE[:BRIDGE]", "the module, for all but the first form"),
    cli.argument("--runs", "N", "how many next runs to show; default: 1", type=cli.count, default=1),
    cli.argument("--cron", "EXPRESSION", "add: five fields, such as '0 8 * * mon-fri'"),
    cli.argument("--every", "SECONDS", "add: an interval, counted from 1970", type=float),
    cli.argument("--timezone", "ZONE", "add: the zone of --cron, such as Europe/Rome; default: UTC"),
    cli.argument("--args", "JSON", "add: a list of positional arguments, such as '[7]'", type=_json),
    cli.argument("--kwargs", "JSON", "add: an object of arguments by name", type=_json),
    cli.argument("--queue", "QUEUE", "add: where its messages go"),
    cli.argument("--priority", "PRIORITY", "add: low, normal, high or critical"),
    cli.argument("--catch-up", "WHICH", "add: none, one or all of what was due while no worker was there"),
    cli.argument("--overlap", "HOW", "add: allow, or skip what is due before the last message has ended"),
    cli.URL,
    cli.JSON,
    opens=_bridge,
)
def schedules(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show the schedules of MODULE: when each is due next, whether it is paused, and how many ticks were missed.

    The next run is shown in the schedule's own zone and in UTC. A tick is missed if it was due while no worker was
    there, or while the message before had not ended (`overlap="skip"`).

      taskbridge schedules shop.tasks
      taskbridge schedules shop.tasks --runs 5 --json
      taskbridge schedules pause shop.report --app shop.tasks
      taskbridge schedules resume shop.report --app shop.tasks
      taskbridge schedules run shop.report --app shop.tasks
      taskbridge schedules add report-7 shop.report --cron '0 8 * * *' --args '[7]' --app shop.tasks
      taskbridge schedules remove report-7 --app shop.tasks

    A schedule that is paused stays so until it is resumed, whatever is started anew; what is due meanwhile is left out.
    `disable` and `enable` are other words for `pause` and `resume`. `run` sends its message now, though it is paused.
    `add` keeps a schedule in the store, or replaces one that was added before; workers that know the task follow it
    within 5 s. Those of the code and the settings can't be removed here.
    """
    if not arguments.words:
        entries = bridge.schedules.list(runs=arguments.runs)
        head = ("schedule", "task", "when", "next run", "in UTC", "state", "missed")
        rows = [row for entry in entries for row in _rows(entry)]
        text = table(head, rows, right="missed") if entries else "no schedules"
        return cli.Output(text=text, data=[_data(entry) for entry in entries])
    verb, name, *task = arguments.words
    verb = {"disable": "pause", "enable": "resume"}.get(verb, verb)
    done = [(f"{verb}_schedule", name)]
    if task:
        _add(bridge, arguments, name, *task)
    elif verb == "run":
        outcome = acts.run_schedule(bridge, name)
        return cli.acted(outcome, "run_schedule", name, {"id": outcome.found})
    elif verb != "remove":
        (bridge.schedules.pause if verb == "pause" else bridge.schedules.resume)(name)
    elif bridge.schedules.delete(name):
        return cli.Output(text=f"schedule {name} is removed", data={"removed": name}, acts=done)
    else:
        raise UnknownSchedule(name, [each.name for each in bridge.schedules.list() if each.source == "store"])
    entries = bridge.schedules.list()
    entry = next((each for each in entries if each.name == name), None)
    if entry is None:  # somebody has removed it meanwhile
        raise UnknownSchedule(name, [each.name for each in entries])
    return cli.Output(text=f"schedule {name} is {_state(entry)}", data=_data(entry), acts=done)


def _add(bridge: Bridge, arguments: Namespace, name: str, task: str) -> None:
    given = {option: value for option in _ADDING if (value := getattr(arguments, option)) is not None}
    if not bridge.knows(task):
        hint = nearest(task, [each.name for each in bridge.declarations()])
        raise cli.UsageError(f"schedules add: there is no task {task!r}{hint}")
    args: list[Any] = given.pop("args", [])
    kwargs: dict[str, Any] = given.pop("kwargs", {})
    if (type(args), type(kwargs)) != (list, dict):
        raise cli.UsageError("schedules add: --args must be a JSON list, and --kwargs a JSON object")
    try:
        sendable = bridge.named(task).using(queue=given.pop("queue", None), priority=given.pop("priority", None))
        bridge.schedules.put(name, sendable.call(*args, **kwargs), **given)
    except (TypeError, ValueError) as exc:
        raise cli.UsageError(f"schedules add: {exc}") from exc


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
        "source": entry.source,
    }


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


@cli.command(
    "send what schedules say, and run nothing", *(cli.MODULE, cli.URL, *cli.LOG_ARGUMENTS), opens=cli.logging_bridge
)
def scheduler(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Send what the schedules of MODULE say, and run nothing.

    Workers do this by themselves, so that most applications need no such process. It is for those whose workers are
    told not to (`--no-scheduler`, or the setting `scheduler`). Any number may run at once, beside workers too: each
    tick is sent once.

      taskbridge scheduler shop.tasks

    SIGTERM and Ctrl-C stop it, with exit code 0. Then: `taskbridge schedules MODULE` shows what is due next.
    """
    cli.checked_server(bridge, "a worker")
    cli.check_has_tasks(bridge, arguments.app)
    names = [each.name for each in bridge.schedules.list()]
    stop = locks.Event()
    former = {each: signal.signal(each, lambda number, frame: stop.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    shown = ", ".join(names) or "those that are added"
    say(f"sending by {len(names)} schedules of {arguments.app} to {bridge.settings.url.safe_url}: {shown}")
    thread = threading.Thread(target=Scheduler(bridge).run, args=(stop,), name="taskbridge-scheduler", daemon=True)
    thread.start()
    say("ready")
    while not stop.wait(_LOOK_S):  # a handler runs only between two waits
        pass
    thread.join(bridge.settings.grace_s)
    for number, handler in former.items():
        signal.signal(number, handler)
    return cli.Output()
