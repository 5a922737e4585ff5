"""`taskbridge status` and `taskbridge cancel`: what a message is doing, and cancelling it."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from time import sleep
from typing import Any, Final

from taskbridge import Attempt, Bridge, Handle, Status, acts
from taskbridge.cli.command import SETTINGS, Output, acted, argument, command, flag
from taskbridge.cli.output import bar, details, error_text, line, local_time
from taskbridge.logs import escaped

_LOOK_S: Final = 0.5
_ID = argument("id", "ID", "the message's id")


@command(
    "what a message is doing",
    _ID,
    flag("--watch", "show how far it has come until it has ended, and then its status"),
    *SETTINGS,
)
def status(bridge: Bridge, arguments: Namespace) -> Output:
    """Show what a message is doing, each of its attempts, and what came of it.

    The whole id is needed, as `handle.id` has it.

      taskbridge status 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b
      taskbridge status 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b --watch

    It is known where a store is set (the broker itself, if it is Redis), for the setting `result_ttl` after its end,
    and not for tasks declared with results=False.
    """
    handle = bridge.handle(arguments.id)
    found = bridge.dead.shown_status(_watched(handle) if arguments.watch else handle.status())
    is_known = found.state == "done" and not found.reason  # which says why a result could not be recorded
    result = repr(handle.result(0)) if is_known else None
    return Output(text=_described(found, result), data=_data(found, result))


def _watched(handle: Handle[Any]) -> Status:
    """Write to stderr what a message is doing, as that changes, and return its status when it has ended."""
    shown = ""
    while True:
        found = handle.status()
        text = escaped(f"{found.state}{_so_far(found)}")
        if text != shown:
            line(text)
            shown = text
        if found.is_final:
            sys.stderr.write("\n" if sys.stderr.isatty() else "")
            return found
        sleep(_LOOK_S)


def _so_far(found: Status) -> str:
    """Return how far a run has come, with a space before it; nothing if it doesn't tell."""
    progress = found.progress
    if progress is None:
        return ""
    if progress.fraction is None:
        return f"  {progress.done:g}  {progress.note}".rstrip()
    shown = f"{bar(progress.fraction, 1)} {progress.fraction:4.0%}"
    return f"  {shown}  {progress.done:g}/{progress.total:g}  {progress.note}".rstrip()


@command("cancel a message", _ID, flag("--interrupt", "interrupt it if it runs"), *SETTINGS)
def cancel(bridge: Bridge, arguments: Namespace) -> Output:
    """Cancel a message for good: what has not started never starts, whether workers are up or not.

    One that runs is told, by `current().cancelled`, and is not run again; with --interrupt, `Cancelled` is raised in
    it. The whole id is needed, as `handle.id` has it.

      taskbridge cancel 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b
      taskbridge cancel 3f2b8a54-62c1-4f5e-9d0b-1c2d3e4f5a6b --interrupt

    Exit code 1: it was too late, for the message had ended already.
    """
    outcome = acts.cancel(bridge, arguments.id, interrupt=arguments.interrupt)
    return acted(outcome, "cancel", arguments.id, _data(outcome.found, None))


def _data(found: Status, result: str | None) -> dict[str, Any]:
    data = asdict(found) | {"result": result}
    del data["result_json"], data["sent"]  # arguments may be secret
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
        ("progress", _so_far(found).strip() or None),
        *((f"attempt {attempt.number}", _attempt(attempt)) for attempt in found.attempts),
        ("result", result),
    ]
    return details(lines, found.traceback)


def _attempt(attempt: Attempt) -> str:
    until = "" if attempt.ended_at is None else f" to {local_time(attempt.ended_at)}"
    error = "" if attempt.error is None else f": {error_text(attempt.error)}"
    return f"{local_time(attempt.started_at)}{until} on {attempt.worker}{error}"
