"""`taskbridge status` and `taskbridge cancel`: what a message is doing, and cancelling it."""

from __future__ import annotations

import argparse
from typing import Any

from taskbridge import Handle, Status
from taskbridge.cli.arguments import Commands, add_command, add_settings, open_bridge
from taskbridge.cli.show import details, error_data, iso, local_time, print_json

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
        add_settings(each)


def run_status(arguments: argparse.Namespace) -> int:
    """Print what is known of a message."""
    with open_bridge(arguments, or_store=True) as bridge:
        handle = bridge.handle(arguments.id)
        status = handle.status()
        result = repr(handle.result(0)) if status.state == "done" else None
    if arguments.json:
        print_json(_data(status, result))
    else:
        print(_described(status, result))
    return 0


def run_cancel(arguments: argparse.Namespace) -> int:
    """Cancel a message, and print what that did."""
    with open_bridge(arguments, or_store=True) as bridge:
        handle: Handle[Any] = bridge.handle(arguments.id)
        status = handle.cancel()
    if arguments.json:
        print_json(_data(status, None))
    elif status.state == "cancelled":
        print("cancelled: it starts no more")
    elif status.cancel_asked and not status.is_final:
        print("it runs, and was told; there is no further attempt")
    else:
        print(f"too late: it is {status.state} since {local_time(status.ended_at)}")
    return 0 if status.state == "cancelled" or not status.is_final else 1


def _described(status: Status, result: str | None) -> str:
    lines = [
        ("id", status.id),
        ("task", status.task),
        ("queue", status.queue),
        ("state", status.state + (f" ({status.reason})" if status.reason else "")),
        *([("cancelled", "while it ran")] if status.cancel_asked else []),
        ("sent", local_time(status.enqueued_at)),
        *([] if status.due_at is None else [("due", local_time(status.due_at))]),
        *([] if status.ended_at is None else [("ended", local_time(status.ended_at))]),
        *([("replays", str(status.replays))] if status.replays else []),
        *(_attempt_lines(status)),
        *([] if result is None else [("result", result)]),
    ]
    return details(lines, status.traceback or "")


def _attempt_lines(status: Status) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for attempt in status.attempts:
        until = "" if attempt.ended_at is None else f" to {local_time(attempt.ended_at)}"
        error = "" if attempt.error is None else f": {attempt.error.type}: {attempt.error.message}"
        lines.append(
            (f"attempt {attempt.number}", f"{local_time(attempt.started_at)}{until} on {attempt.worker}{error}")
        )
    return lines


def _data(status: Status, result: str | None) -> dict[str, Any]:
    return {
        "id": status.id,
        "task": status.task,
        "queue": status.queue,
        "state": status.state,
        "reason": status.reason,
        "cancel_asked": status.cancel_asked,
        "enqueued_at": iso(status.enqueued_at),
        "due_at": iso(status.due_at),
        "ended_at": iso(status.ended_at),
        "replays": status.replays,
        "attempts": [
            {
                "number": attempt.number,
                "worker": attempt.worker,
                "started_at": iso(attempt.started_at),
                "ended_at": iso(attempt.ended_at),
                "error": error_data(attempt.error),
            }
            for attempt in status.attempts
        ],
        "error": error_data(status.error),
        "traceback": status.traceback,
        "result": result,
    }
