"""`taskbridge running`, `failures`, `messages ls` and `top`: what goes on, as the broker and the store tell it."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, get_args

from taskbridge import Bridge, BrokerUnavailable, ErrorInfo, Status
from taskbridge.cli import command as cli
from taskbridge.cli.output import (
    RED,
    YELLOW,
    colored,
    cut,
    duration,
    error_text,
    local_time,
    many,
    table,
    table_or_list,
)
from taskbridge.durations import moment
from taskbridge.logs import escaped
from taskbridge.stores.states import State

if TYPE_CHECKING:
    from taskbridge.operations import Failures, QueueNow, Rates

_REDRAWN_S: Final = 2.0
_MOST_ERROR: Final = 100  # characters of an error in a table
_LEVELS: Final = " .:-=+*#%@"


@cli.command("what runs now", cli.MODULE_OR_NONE, cli.URL, cli.JSON)
def running(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show what runs now, the earliest first, and where.

      taskbridge running

    It is known where a store is set (the broker itself, if it is Redis), within a second or two.
    """
    found = bridge.operations.running()
    rows = [(each.task, each.id, each.queue, str(each.attempt), local_time(each.since), each.worker) for each in found]
    text = table_or_list(("task", "id", "queue", "attempt", "since", "worker"), rows) if rows else "nothing runs"
    return cli.Output(text=text, data=[asdict(each) for each in found])


@cli.command("what failed in the last 24 hours", cli.MODULE_OR_NONE, cli.URL, cli.JSON)
def failures(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show the failures of the last 24 hours, equal ones in one line, the latest first.

      taskbridge failures

    Failures are equal if task, exception and the beginning of its text are. `dead` is after how many of them the
    message was dead; the other messages were retried.
    Then: `taskbridge status ID` shows the last one with its attempts.
    """
    found = _failures(bridge, bridge.operations.failures())
    head = "last", "count", "dead", "task", "error", "last id"
    rows = [
        (local_time(each.last_at), str(each.count), str(each.is_dead_count), each.task, _error(error), each.last_id)
        for each, error in found
    ]
    data = [asdict(each) | {"error": error and asdict(error)} for each, error in found]
    return cli.Output(text=table_or_list(head, rows) if rows else "no failures", data=data)


def _failures(bridge: Bridge, found: Sequence[Failures]) -> list[tuple[Failures, ErrorInfo | None]]:
    """Return failures, each with what may be shown of its error."""
    return [(each, bridge.dead.shown_error(each.task, each.last_id, each.error)) for each in found]


def _error(error: ErrorInfo | None) -> str:
    return (error_text(error) or "")[:_MOST_ERROR]


@cli.command(
    "list messages",
    cli.MODULE_OR_NONE,
    cli.argument("--task", "GLOB", "only of tasks whose names match, such as 'shop.email.*'", default="*"),
    cli.argument("--queue", "QUEUE", "only of this queue"),
    cli.argument("--state", "STATE", f"one of {', '.join(get_args(State))}", choices=get_args(State)),
    cli.argument("--minutes", "N", "only those that came to their state in the last N minutes", type=cli.count),
    cli.argument("--most", "N", "how many at most; default: 50", type=cli.count, default=50),
    cli.argument("--cursor", "CURSOR", "go on where a list ended, which says how", default=""),
    cli.URL,
    cli.JSON,
)
def _ls(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """List messages, the latest first.

      taskbridge messages ls --state retrying --task 'shop.email.*'

    It needs the setting `listing`, for workers and for those who send.
    Then: `taskbridge status ID` shows one with its attempts.
    """
    since = None if arguments.minutes is None else moment(bridge.now()) - timedelta(minutes=arguments.minutes)
    filters: dict[str, Any] = {name: getattr(arguments, name) for name in ("task", "queue", "state")}
    found: list[Status] = []
    cursor, has_more = arguments.cursor, True
    while has_more and len(found) < arguments.most:
        left = arguments.most - len(found)
        page = bridge.operations.messages(**filters, since=since, cursor=cursor, most=left)
        found += map(bridge.dead.shown_status, page.items)
        cursor, has_more = page.cursor, bool(page.cursor)
    rows = [(each.id, each.task, each.queue, each.state, local_time(_at(each))) for each in found]
    text = table_or_list(("id", "task", "queue", "state", "since, or due"), rows) if rows else "no such messages"
    more = f"\n\nmore with --cursor '{cursor}'" if cursor else ""
    return cli.Output(text=f"{text}{more}", data={"messages": [plain(each) for each in found], "cursor": cursor})


def _at(found: Status) -> datetime:
    is_running = found.state == "running" and found.attempts
    since = found.attempts[-1].started_at if is_running else found.ended_at or found.due_at
    return found.enqueued_at if since is None else since


def plain(found: Status) -> dict[str, Any]:
    """Return a status as `--json` prints it in a list."""
    data = asdict(found)
    del data["result_json"], data["sent"], data["traceback"]  # arguments and results may be secret
    return data


messages: Final = cli.Command(
    name="messages", help="list messages", description="Look at messages that the store lists.", below=(_ls,)
)


@cli.command("watch what goes on", cli.MODULE_OR_NONE, cli.flag("--once", "print it once, and end"), cli.URL)
def top(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show queues, rates, what runs and what failed, again every 2 seconds until `q` or Ctrl-C.

      taskbridge top shop.tasks

    The charts have a character for each of the last 60 minutes.
    """
    if arguments.once or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return cli.Output(text="\n".join(_screen(bridge, *_size())))
    from taskbridge.cli import screen  # here, for Windows has no termios

    with screen.opened():
        goes_on = True
        while goes_on:
            width, height = _size()
            try:
                lines = _screen(bridge, width, height)
            except BrokerUnavailable as exc:
                lines = [cut(escaped(exc.problem), width)]
            screen.draw(lines)
            goes_on = screen.wait(_REDRAWN_S)
    return cli.Output()


def _size() -> tuple[int, int]:
    width, height = shutil.get_terminal_size()
    return max(40, width), max(20, height)


def _screen(bridge: Bridge, width: int, height: int) -> list[str]:
    """Return the lines of the screen: all are escaped, and none is wider than it is."""
    operations, title = bridge.operations.snapshot(), bridge.settings.url.safe_url
    queues, rates, workers = operations.queues(), operations.rates(), operations.workers()
    busy, slots = sum(each.busy for each in workers), sum(each.slots for each in workers)
    at_work = f"{many(len(workers), 'process', 'processes')}, {busy} of {many(slots, 'slot')} busy"
    alarms = [
        (colored(RED if each.level == "error" else YELLOW, "!"), cut(escaped(each.text), width - 2))
        for each in operations.alarms(queues=queues, rates=rates)[:4]
    ]
    lines = [f"{title}  {at_work}", *_charts(rates, width), "", *_queues(queues, height // 4)]
    lines += ["", "running", *(f"  {_since(each.since)}  {each.task}  {each.id}" for each in operations.running())][
        : 2 + height // 4
    ]
    failed = [
        f"  {each.count} x {each.task}  {_error(error)}" for each, error in _failures(bridge, operations.failures())
    ]
    lines += ["", "failed in the last 24 hours", *failed]
    shown = [cut(escaped(line), width) for line in lines]
    return [*shown[:1], *(f"{mark} {text}" for mark, text in alarms), *shown[1:]][:height]


def _charts(rates: Rates, width: int) -> list[str]:
    rows = [(name, getattr(rates, name)) for name in ("done", "retried", "dead", "discarded")]
    return [f"{name:<9} |{_chart(each)}| {sum(each)}"[:width] for name, each in rows]


def _chart(numbers: Sequence[int]) -> str:
    most, top_level = max(1, *numbers), len(_LEVELS) - 1
    return "".join(_LEVELS[-(-number * top_level // most)] for number in numbers)


def _queues(found: Sequence[QueueNow], most: int) -> list[str]:
    head = "queue", "engine", "waiting", "running", "oldest", ""
    rows = [
        (
            each.name[:24],
            each.engine or "-",
            str(each.waiting),
            "-" if each.running is None else str(each.running),
            "-" if each.oldest_s is None else duration(round(each.oldest_s)),
            "" if each.paused is None else "paused",
        )
        for each in sorted(found, key=lambda each: -each.waiting)[:most]
    ]
    return table(head, rows, right="waiting").split("\n")


def _since(since: datetime) -> str:
    return since.astimezone().strftime("%H:%M:%S")
