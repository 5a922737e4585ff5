"""`taskbridge dead`: what failed for good."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any

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
from taskbridge.message import DeadLetter

_DESCRIPTION = """\
Look at dead letters: the messages that failed for good, kept for the setting `dead_ttl` (7 days by default).

  taskbridge dead list
  taskbridge dead list --task 'shop.email.*' --reason exhausted
  taskbridge dead show 3f2b

Reasons: exhausted (all attempts failed), gave_up (an error that the policy does not retry), bad_arguments (they don't
fit the function any more), unknown_task (no worker knew the task for the setting `unknown_task_grace`), undecodable.
"""

_LIST = """\
List dead letters, the oldest first.

  taskbridge dead list --task 'shop.email.*' --reason exhausted

Then: `taskbridge dead show ID` shows one with its arguments and traceback.
"""

_SHOW = """\
Show a dead letter with its arguments, error and traceback. The first characters of the id are enough.

  taskbridge dead show 3f2b
"""


def add(commands: Commands) -> None:
    """Add the command, with commands of its own."""
    parser = commands.add_parser("dead", help="what failed for good, and why", description=_DESCRIPTION)
    below: Commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="below", required=True)
    listing = add_command(below, "list", run_list, help="list dead letters", description=_LIST)
    listing.add_argument("--task", metavar="GLOB", help="only of tasks whose names match, such as 'shop.email.*'")
    listing.add_argument("--reason", metavar="REASON", help="only with this reason, such as exhausted")
    listing.add_argument("--last", type=count, metavar="N", help="only the last N")
    showing = add_command(below, "show", run_show, help="show one, with its traceback", description=_SHOW)
    showing.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    for each in (listing, showing):
        each.add_argument(
            "--app",
            metavar="MODULE[:BRIDGE]",
            default=os.environ.get(APP_VARIABLE),
            help=f"the application whose settings count; default: {APP_VARIABLE}, else the environment alone",
        )
        add_url(each)
        add_json(each)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the dead letters that match."""
    letters = [letter for letter in _letters(arguments) if _matches(letter, arguments.task, arguments.reason)]
    chosen = letters if arguments.last is None else letters[-arguments.last :]
    if arguments.json:
        print_json([_data(letter) for letter in chosen])
        return 0
    if not chosen:
        print("no dead letters" if arguments.task is None and arguments.reason is None else "no such dead letters")
        return 0
    print(table(("id", "died at", "task", "queue", "attempts", "reason", "error"), [_row(each) for each in chosen]))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print one dead letter."""
    found = [letter for letter in _letters(arguments) if letter.id.startswith(arguments.id)]
    ids = sorted({letter.id for letter in found})
    if not ids:
        raise UsageError(f"there is no dead letter {arguments.id!r}; `taskbridge dead list` shows what there is")
    if len(ids) > 1:
        raise UsageError(f"{len(ids)} dead letters begin with {arguments.id!r}: {', '.join(ids[:5])}; write more of it")
    letter = found[-1]
    if arguments.json:
        print_json(_data(letter))
        return 0
    print(_described(letter))
    return 0


def _letters(arguments: argparse.Namespace) -> list[DeadLetter]:
    bridge = bridge_of(arguments)
    check_has_server(bridge, "this command")
    letters = bridge.dead_letters()
    bridge.close()
    return letters


def _matches(letter: DeadLetter, task: str | None, reason: str | None) -> bool:
    if reason is not None and letter.reason != reason:
        return False
    if task is None:
        return True
    return letter.message is not None and fnmatchcase(letter.message.task, task)


def _row(letter: DeadLetter) -> tuple[str, ...]:
    message = letter.message
    error = "-" if letter.error is None else _short(f"{letter.error.type}: {letter.error.message}")
    if message is None:
        return (letter.id, _time(letter.died_at), "-", "-", "-", letter.reason, error)
    return (letter.id, _time(letter.died_at), message.task, message.queue, str(message.attempt), letter.reason, error)


def _described(letter: DeadLetter) -> str:
    message = letter.message
    lines = [("id", letter.id), ("reason", letter.reason), ("died at", _time(letter.died_at))]
    if message is not None:
        lines += [
            ("task", message.task),
            ("arguments", _call(message.args_json, message.kwargs_json)),
            ("queue", message.queue),
            ("priority", message.priority),
            ("attempts", str(message.attempt)),
            ("first sent", _time(message.enqueued_at)),
            *(("header", f"{key}: {value}") for key, value in sorted(message.headers.items())),
        ]
    if letter.raw is not None:
        lines.append(("bytes", repr(letter.raw[:2000])))
    if letter.error is not None:
        lines.append(("error", f"{letter.error.type}: {letter.error.message}"))
    described = "\n".join(f"{name:<10}  {value}" for name, value in lines)
    return f"{described}\n\n{letter.traceback.rstrip()}" if letter.traceback else described


def _call(args_json: str, kwargs_json: str) -> str:
    """Return arguments as they would stand in a call; as JSON if they can't be decoded."""
    from taskbridge import codec  # here, for only this needs it
    from taskbridge.exceptions import DecodeError

    try:
        args, kwargs = codec.loads_array(args_json), codec.loads_object(kwargs_json)
    except DecodeError:
        return f"{args_json} {kwargs_json}"
    return ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]) or "none"


def _data(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    return {
        "id": letter.id,
        "reason": letter.reason,
        "died_at": _iso(letter.died_at),
        "task": None if message is None else message.task,
        "queue": None if message is None else message.queue,
        "priority": None if message is None else message.priority,
        "attempts": None if message is None else message.attempt,
        "first_sent_at": None if message is None else _iso(message.enqueued_at),
        "arguments": None if message is None else _call(message.args_json, message.kwargs_json),
        "headers": None if message is None else message.headers,
        "error": None if letter.error is None else {"type": letter.error.type, "message": letter.error.message},
        "traceback": letter.traceback,
        "bytes": None if letter.raw is None else letter.raw.decode("latin-1"),
    }


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:57]}..."
