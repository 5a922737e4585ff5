"""`taskbridge dead`: what failed for good, and what becomes of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from taskbridge import Bridge, DeadEntry
from taskbridge.cli.arguments import Commands, UsageError, add_command, add_settings, count, open_bridge
from taskbridge.cli.show import details, error_data, iso, local_time, print_json, table

_DESCRIPTION = """\
Look after dead letters: the messages that failed for good, kept for the setting `dead_ttl` (7 days by default).

  taskbridge dead list --task 'shop.email.*' --reason exhausted
  taskbridge dead show 3f2b
  taskbridge dead replay 3f2b
  taskbridge dead purge --all --reason undecodable

Reasons: exhausted (all attempts failed), gave_up (an error that the policy does not retry), bad_arguments (they don't
fit the function any more), unknown_task (no worker knew the task for the setting `unknown_task_grace`), too_large
(for RabbitMQ, with what its engine adds), undecodable.

An application's own `bridge.dead.redact` function counts only where the application is named, by --app or by the
variable TASKBRIDGE_APP.
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

_REPLAY = """\
Send dead letters again: each starts at attempt 1, in its own queue and priority, on whichever engine the setting `url`
names now. The first characters of an id are enough. Each is dead or waits, never both, even if this is killed.

  taskbridge dead replay 3f2b 90ac
  taskbridge dead replay --all --task 'shop.email.*' --reason exhausted

A dead letter that could not be read (reason undecodable) can't be replayed.
"""

_PURGE = """\
Forget dead letters for good. Asks first, unless --yes is given. The first characters of an id are enough.

  taskbridge dead purge 3f2b
  taskbridge dead purge --all --reason undecodable --yes
"""

T = TypeVar("T")

_SHOWN_IDS: Final = 5


def add(commands: Commands) -> None:
    """Add the command, with commands of its own."""
    parser = commands.add_parser("dead", help="what failed for good, and replaying it", description=_DESCRIPTION)
    below: Commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="below", required=True)
    listing = add_command(below, "list", run_list, help="list dead letters", description=_LIST)
    listing.add_argument("--last", type=count, metavar="N", help="only the last N")
    showing = add_command(below, "show", run_show, help="show one, with its traceback", description=_SHOW)
    showing.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    replaying = add_command(below, "replay", run_replay, help="send some again", description=_REPLAY)
    purging = add_command(below, "purge", run_purge, help="forget some for good", description=_PURGE)
    purging.add_argument("--yes", action="store_true", help="do not ask")
    for each in (replaying, purging):
        each.add_argument("ids", metavar="ID", nargs="*", help="an id, or the beginning of one")
        each.add_argument("--all", action="store_true", help="all, or all that the filters find")
    for each in (listing, replaying, purging):
        each.add_argument("--task", metavar="GLOB", help="only of tasks whose names match, such as 'shop.email.*'")
        each.add_argument("--reason", metavar="REASON", help="only with this reason, such as exhausted")
        each.add_argument("--queue", metavar="QUEUE", help="only from this queue")
    for each in (listing, showing, replaying, purging):
        add_settings(each)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the dead letters that match."""
    entries = _with_bridge(arguments, lambda bridge: bridge.dead.list(limit=None, **_filters(arguments)).entries)
    chosen = entries if arguments.last is None else entries[-arguments.last :]
    if arguments.json:
        print_json([_data(entry) for entry in chosen])
        return 0
    if not chosen:
        print("no such dead letters" if _is_filtered(arguments) else "no dead letters")
        return 0
    print(table(("id", "died at", "task", "queue", "attempts", "reason", "error"), [_row(each) for each in chosen]))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print one dead letter."""
    [entry] = _with_bridge(arguments, lambda bridge: _resolved(bridge, [arguments.id]))
    if arguments.json:
        print_json(_data(entry))
        return 0
    print(_described(entry))
    return 0


def run_replay(arguments: argparse.Namespace) -> int:
    """Replay the dead letters that are named, or all that match."""
    _check_chosen(arguments, "replay")
    return _with_bridge(arguments, lambda bridge: _replay(bridge, arguments))


def _replay(bridge: Bridge, arguments: argparse.Namespace) -> int:
    if arguments.all:
        replayed = bridge.dead.replay_all(**_filters(arguments))
    else:
        entries = _resolved(bridge, arguments.ids)
        _check_readable(entries)
        replayed = bridge.dead.replay([entry.id for entry in entries])
    if arguments.json:
        print_json({"replayed": replayed.ids, "missing": replayed.missing, "unreadable": replayed.unreadable})
    else:
        print(f"replayed {_letters(len(replayed.ids))}")
    if replayed.missing:
        raise UsageError(f"{_letters(len(replayed.missing))} gone meanwhile: {_some(replayed.missing)}")
    if replayed.unreadable and not arguments.json:
        stay = "stays" if len(replayed.unreadable) == 1 else "stay"
        print(f"{_letters(len(replayed.unreadable))} can't be read and {stay}: {_some(replayed.unreadable)}")
    return 0


def _check_readable(entries: Sequence[DeadEntry]) -> None:
    unreadable = [entry.id for entry in entries if entry.task is None and entry.raw is not None]
    if unreadable:
        raise UsageError(
            f"{_some(unreadable)} can't be replayed: its bytes are no message that this release can read "
            "(`taskbridge dead show` shows them); nothing was replayed"
        )


def run_purge(arguments: argparse.Namespace) -> int:
    """Forget the dead letters that are named, or all that match."""
    _check_chosen(arguments, "purge")
    return _with_bridge(arguments, lambda bridge: _purge(bridge, arguments))


def _purge(bridge: Bridge, arguments: argparse.Namespace) -> int:
    if arguments.all:
        entries: Sequence[DeadEntry] = bridge.dead.list(limit=None, **_filters(arguments)).entries
    else:
        entries = _resolved(bridge, arguments.ids)
    if entries and not arguments.yes and not _agreed(len(entries)):
        print("nothing was purged")
        return 1
    purged = bridge.dead.purge([entry.id for entry in entries]) if entries else ()  # what was counted, and no more
    if arguments.json:
        print_json({"purged": purged})
    else:
        print(f"purged {_letters(len(purged))}")
    return 0


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"purge: this forgets {_letters(number)} for good; add --yes if that is meant")
    print(f"forget {_letters(number)} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# What the commands have in common


def _with_bridge(arguments: argparse.Namespace, act: Callable[[Bridge], T]) -> T:
    with open_bridge(arguments) as bridge:
        return act(bridge)


def _filters(arguments: argparse.Namespace) -> dict[str, str | None]:
    return {"task": arguments.task, "reason": arguments.reason, "queue": arguments.queue}


def _is_filtered(arguments: argparse.Namespace) -> bool:
    return any(value is not None for value in _filters(arguments).values())


def _check_chosen(arguments: argparse.Namespace, command: str) -> None:
    """Refuse what may do more, or less, than is meant."""
    if arguments.ids and (arguments.all or _is_filtered(arguments)):
        raise UsageError(f"{command}: name IDs, or say --all with filters, not both")
    if not arguments.ids and not arguments.all:
        raise UsageError(f"{command}: which? Name their IDs, or say --all (with --task, --reason or --queue for some)")


def _resolved(bridge: Bridge, beginnings: Sequence[str]) -> list[DeadEntry]:
    """Return the dead letters whose ids begin so, each once."""
    entries = {entry.id: entry for entry in bridge.dead.list(limit=None).entries}
    return list({entry.id: entry for entry in (_one(entries, beginning) for beginning in beginnings)}.values())


def _one(entries: dict[str, DeadEntry], beginning: str) -> DeadEntry:
    if beginning in entries:
        return entries[beginning]
    ids = sorted(each for each in entries if each.startswith(beginning))
    if not ids:
        raise UsageError(f"there is no dead letter {beginning!r}; `taskbridge dead list` shows what there is")
    if len(ids) > 1:
        raise UsageError(f"{len(ids)} dead letters begin with {beginning!r}: {_some(ids)}; write more of it")
    return entries[ids[0]]


def _letters(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")


def _row(entry: DeadEntry) -> tuple[str, ...]:
    error = "-" if entry.error is None else _short(f"{entry.error.type}: {entry.error.message}")
    attempts = "-" if entry.attempts is None else str(entry.attempts)
    return (entry.id, local_time(entry.died_at), entry.task or "-", entry.queue or "-", attempts, entry.reason, error)


def _described(entry: DeadEntry) -> str:
    lines = [("id", entry.id), ("reason", entry.reason), ("died at", local_time(entry.died_at))]
    if entry.worker is not None:
        lines.append(("buried by", entry.worker))
    if entry.task is not None:
        lines += [
            ("task", entry.task),
            ("arguments", entry.arguments or "none"),
            ("queue", entry.queue or "-"),
            ("priority", entry.priority or "-"),
            ("attempts", str(entry.attempts)),
            *([("replays", str(entry.replays))] if entry.replays else []),
            ("first sent", local_time(entry.enqueued_at)),
            *([] if entry.expires_at is None else [("expires", local_time(entry.expires_at))]),
            *(("header", f"{key}: {value}") for key, value in sorted(entry.headers.items())),
        ]
    if entry.raw is not None:
        lines.append(("bytes", repr(entry.raw[:2000])))
    if entry.error is not None:
        lines.append(("error", f"{entry.error.type}: {entry.error.message}"))
    return details(lines, entry.traceback or "")


def _data(entry: DeadEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "reason": entry.reason,
        "died_at": iso(entry.died_at),
        "task": entry.task,
        "queue": entry.queue,
        "priority": entry.priority,
        "attempts": entry.attempts,
        "replays": entry.replays,
        "first_sent_at": iso(entry.enqueued_at),
        "expires_at": iso(entry.expires_at),
        "arguments": None if entry.task is None else entry.arguments or "none",
        "headers": None if entry.task is None else dict(entry.headers),
        "error": error_data(entry.error),
        "traceback": entry.traceback,
        "worker": entry.worker,
        "bytes": None if entry.raw is None else entry.raw.decode("latin-1"),
    }


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:57]}..."
