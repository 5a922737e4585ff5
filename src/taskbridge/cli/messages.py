"""`taskbridge status` and `taskbridge cancel`: what a message is doing, and cancelling it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from taskbridge import Attempt, Bridge, Handle, Status
from taskbridge.cli.command import APP, JSON, URL, Output, any_bridge, argument, checked_server, command
from taskbridge.cli.output import details, error_text, local_time

_ID = argument("id", metavar="ID", help="the message's id")


def _bridge(arguments: Namespace) -> Bridge:
    """Return the bridge if other processes can see its messages, or at least its store."""
    bridge = any_bridge(arguments)
    return bridge if bridge.settings.store is not None else checked_server(bridge, "this command")


@command("status", "what a message is doing", _ID, APP, URL, JSON, opens=_bridge)
def status(bridge: Bridge, arguments: Namespace) -> Output:
    """Show what a message is doing, each of its attempts, and what came of it.

    The whole id is needed, as `handle.id` has it.

      taskbridge status 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b

    It is known where a store is set (the broker itself, if it is Redis), for the setting `result_ttl` after its end,
    and not for tasks declared with results=False.
    """
    handle = bridge.handle(arguments.id)
    found = handle.status()
    is_known = found.state == "done" and not found.reason  # which says why a result could not be recorded
    result = repr(handle.result(0)) if is_known else None
    return Output(text=_described(found, result), data=_data(found, result))


@command("cancel", "cancel a message", _ID, APP, URL, JSON, opens=_bridge)
def cancel(bridge: Bridge, arguments: Namespace) -> Output:
    """Cancel a message for good: what has not started never starts, whether workers are up or not.

    One that runs is told, by `current().cancelled`, and is not run again. The whole id is needed, as `handle.id` has
    it.

      taskbridge cancel 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b

    Exit code 1: it was too late, for the message had ended already.
    """
    handle: Handle[Any] = bridge.handle(arguments.id)
    found = handle.cancel()
    is_too_late = found.is_final and found.state != "cancelled"
    if found.state == "cancelled":
        text = "cancelled: it starts no more"
    elif found.cancel_asked and not found.is_final:
        text = "it runs, and was told; there is no further attempt"
    else:
        text = f"too late: it is {found.state} since {local_time(found.ended_at)}"
    return Output(text=text, data=_data(found, None), code=1 if is_too_late else 0)


def _data(found: Status, result: str | None) -> dict[str, Any]:
    data = asdict(found) | {"result": result}
    del data["result_json"]
    return data


def _described(found: Status, result: str | None) -> str:
    lines = [
        ("id", found.id),
        ("task", found.task),
        ("queue", found.queue),
        ("state", found.state + (f" ({found.reason})" if found.reason else "")),
        ("cancelled", "while it ran" if found.cancel_asked else None),
        ("sent", local_time(found.enqueued_at)),
        ("due", local_time(found.due_at) if found.due_at else None),
        ("ended", local_time(found.ended_at) if found.ended_at else None),
        ("replays", str(found.replays) if found.replays else None),
        *((f"attempt {attempt.number}", _attempt(attempt)) for attempt in found.attempts),
        ("result", result),
    ]
    return details(lines, found.traceback)


def _attempt(attempt: Attempt) -> str:
    until = "" if attempt.ended_at is None else f" to {local_time(attempt.ended_at)}"
    error = "" if attempt.error is None else f": {error_text(attempt.error)}"
    return f"{local_time(attempt.started_at)}{until} on {attempt.worker}{error}"
