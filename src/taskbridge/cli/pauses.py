"""`taskbridge pause` and `resume`."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Final

from taskbridge import Bridge, Pause, acts
from taskbridge.cli import command as cli
from taskbridge.cli.output import local_time
from taskbridge.durations import moment

_UNITS: Final[Mapping[str, str]] = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days"}

_WHAT: Final = (
    cli.argument("queue", "QUEUE", "the queue", nargs="?"),
    cli.argument("--task", "GLOB", "instead of a queue: the tasks whose names match, such as 'shop.*'"),
)


def _until(text: str) -> datetime | timedelta:
    if found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(s|m|min|h|d)", text):
        return timedelta(**{_UNITS[found[2]]: float(found[1])})
    with suppress(ValueError):
        until = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
        return until if until.tzinfo is not None else until.astimezone()
    raise ArgumentTypeError(f"it must be a duration such as 90s, 30m, 2h or 1d, or a time in ISO format, not {text!r}")


def _bridge(arguments: Namespace) -> Bridge:
    """Return the application's bridge; without one, a bridge that knows the queue that is named."""
    bridge = cli.server_bridge(arguments)
    if (arguments.queue is None) == (not arguments.task):
        raise cli.UsageError(f"{arguments.command}: name either a QUEUE, or the tasks with --task GLOB")
    if arguments.app is not None or arguments.queue is None:
        return bridge
    return Bridge(arguments.url, queues=(*bridge.settings.queues, arguments.queue))


@cli.command(
    "let nothing of a queue or a task start",
    *_WHAT,
    cli.argument("--until", "TIME", "resume by itself: 90s, 30m, 2h, 1d, or a time", type=_until),
    *cli.SETTINGS,
    opens=_bridge,
)
def pause(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Let no message of a queue start any more, or of some tasks, until they are resumed.

    Workers know it within a second, and those that start later too: it is kept in the store. What runs goes on, and
    sending does. What is delayed, retried or replayed comes back to its queue and waits there.

      taskbridge pause email
      taskbridge pause email --until 2h
      taskbridge pause --task 'shop.invoices.*' --until 2026-01-31T08:00+01:00

    A time without a zone is this machine's. To pause again sets another time.
    Then: `taskbridge queues` shows what is paused, `taskbridge resume` ends it.
    """
    until: datetime | timedelta | None = arguments.until
    try:
        if isinstance(until, timedelta):
            until = moment(bridge.now() + until.total_seconds())
        outcome = acts.pause(bridge, arguments.queue, arguments.task, until)
    except (ValueError, OverflowError) as exc:
        raise cli.UsageError(f"pause: {exc}") from exc
    found = next(
        (each for each in bridge.paused() if (each.queue, each.task) == (arguments.queue, arguments.task)), None
    )
    said = replace(outcome, text=f"{outcome.text}{until_text(found)}")
    return cli.acted(said, *_act("pause", arguments), found and asdict(found))


@cli.command("let what is paused start again", *_WHAT, *cli.SETTINGS, opens=_bridge)
def resume(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Let messages of a queue start again, or those of the tasks of a glob that was paused.

      taskbridge resume email
      taskbridge resume --task 'shop.invoices.*'

    Exit code 1: it was not paused.
    """
    outcome = acts.resume(bridge, arguments.queue, arguments.task)
    return cli.acted(outcome, *_act("resume", arguments), {"resumed": outcome.is_done})


def _act(action: str, arguments: Namespace) -> tuple[str, str]:
    return (f"{action}_task", arguments.task) if arguments.queue is None else (action, arguments.queue)


def until_text(found: Pause | None) -> str:
    """Return until when something is paused, with a space before it; nothing if that is not set."""
    return "" if found is None or found.until is None else f" until {local_time(found.until)}"
