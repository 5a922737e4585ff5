"""`taskbridge status` and `taskbridge cancel`: what a message is doing, and cancelling it."""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from typing import Any

from taskbridge import Bridge, ErrorInfo, Handle, Status
from taskbridge.cli.arguments import Commands, add_command, add_json, add_url, bridge_of, check_has_server
from taskbridge.cli.show import print_json
from taskbridge.loading import APP_VARIABLE

_STATUS = """\
Show what a message is doing, each of its attempts, and what came of it. The whole id is needed, as `handle.id` has it.

  taskbridge status 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b

It is known where a store is set (the broker itself, if it is Redis), for the setting `result_ttl` after its end,
and not for tasks declared with results=False.
"""

_CANCEL = """\
Cancel a message for good: what has not started never starts, whether workers are up or not. One that runs is told, by
`current().cancelled`, and is not run again. The whole id is needed, as `handle.id` has it.

  taskbridge cancel 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b

Exit code 1: it was too late, for the message had ended already.
"""


def add(commands: Commands) -> None:
    """Add the commands."""
    looking = add_command(commands, "status", run_status, help="what a message is doing", description=_STATUS)
    cancelling = add_command(commands, "cancel", run_cancel, help="cancel a message", description=_CANCEL)
    for each in (looking, cancelling):
        each.add_argument("id", metavar="ID", help="the message's id")
        each.add_argument(
            "--app",
            metavar="MODULE[:BRIDGE]",
            default=os.environ.get(APP_VARIABLE),
            help=f"the application whose settings count; default: {APP_VARIABLE}, else the environment alone",
        )
        add_url(each)
        add_json(each)


def run_status(arguments: argparse.Namespace) -> int:
    """Print what is known of a message."""
    bridge = _bridge_of(arguments)
    try:
        handle = bridge.handle(arguments.id)
        status = handle.status()
        result = repr(handle.result(0)) if status.state == "done" else None
    finally:
        bridge.close()
    if arguments.json:
        print_json(_data(status, result))
    else:
        print(_described(status, result))
    return 0


def run_cancel(arguments: argparse.Namespace) -> int:
    """Cancel a message, and print what that did."""
    bridge = _bridge_of(arguments)
    try:
        handle: Handle[Any] = bridge.handle(arguments.id)
        status = handle.cancel()
    finally:
        bridge.close()
    if arguments.json:
        print_json(_data(status, None))
    elif status.state == "cancelled":
        print("cancelled: it starts no more")
    elif status.cancel_asked and not status.is_final:
        print("it runs, and was told; there is no further attempt")
    else:
        print(f"too late: it is {status.state} since {_time(status.ended_at)}")
    return 0 if status.state == "cancelled" or not status.is_final else 1


def _bridge_of(arguments: argparse.Namespace) -> Bridge:
    bridge = bridge_of(arguments)
    if bridge.settings.store is None:
        check_has_server(bridge, "this command")
    return bridge


def _described(status: Status, result: str | None) -> str:
    lines = [
        ("id", status.id),
        ("task", status.task),
        ("queue", status.queue),
        ("state", status.state + (f" ({status.reason})" if status.reason else "")),
        *([("cancelled", "while it ran")] if status.cancel_asked else []),
        ("sent", _time(status.enqueued_at)),
        *([] if status.due_at is None else [("due", _time(status.due_at))]),
        *([] if status.ended_at is None else [("ended", _time(status.ended_at))]),
        *([("replays", str(status.replays))] if status.replays else []),
        *(_attempt_lines(status)),
        *([] if result is None else [("result", result)]),
    ]
    described = "\n".join(f"{name:<10}  {value}" for name, value in lines)
    return f"{described}\n\n{status.traceback.rstrip()}" if status.traceback else described


def _attempt_lines(status: Status) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for attempt in status.attempts:
        until = "" if attempt.ended_at is None else f" to {_time(attempt.ended_at)}"
        error = "" if attempt.error is None else f": {attempt.error.type}: {attempt.error.message}"
        lines.append((f"attempt {attempt.number}", f"{_time(attempt.started_at)}{until} on {attempt.worker}{error}"))
    return lines


def _data(status: Status, result: str | None) -> dict[str, Any]:
    return {
        "id": status.id,
        "task": status.task,
        "queue": status.queue,
        "state": status.state,
        "reason": status.reason,
        "cancel_asked": status.cancel_asked,
        "enqueued_at": _iso(status.enqueued_at),
        "due_at": _iso(status.due_at),
        "ended_at": _iso(status.ended_at),
        "replays": status.replays,
        "attempts": [
            {
                "number": attempt.number,
                "worker": attempt.worker,
                "started_at": _iso(attempt.started_at),
                "ended_at": _iso(attempt.ended_at),
                "error": _error(attempt.error),
            }
            for attempt in status.attempts
        ],
        "error": _error(status.error),
        "traceback": status.traceback,
        "result": result,
    }


def _error(error: ErrorInfo | None) -> dict[str, str] | None:
    return None if error is None else {"type": error.type, "message": error.message}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
