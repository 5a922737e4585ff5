"""`taskbridge dead`: what failed for good, and what becomes of it."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from taskbridge import Bridge, DeadEntry, acts
from taskbridge.acts import letters, some
from taskbridge.cli import command as cli
from taskbridge.cli.output import details, error_text, local_time, progress, say, table
from taskbridge.dead import filters_text

_DESCRIPTION = """\
Look after dead letters: the messages that failed for good, kept for the setting `dead_ttl` (7 days by default).

  taskbridge dead list --task 'shop.email.*' --reason exhausted
  taskbridge dead show 3f2b
  taskbridge dead replay 3f2b
  taskbridge dead purge --all --reason undecodable

Reasons: exhausted (all attempts failed), gave_up (an error that the policy does not retry), bad_arguments (they don't
fit the function any more), unknown_task (no worker knew the task for the setting `unknown_task_grace`), too_large
(for RabbitMQ, with what its engine adds), undecodable, internal_error (something unexpected went wrong around the task,
several times).

An application's own `bridge.dead.redact` function counts only where the application is named, by --app or by the
variable TASKBRIDGE_APP.
"""

_FILTERS = (
    cli.argument("--task", "GLOB", "only of tasks whose names match, such as 'shop.email.*'"),
    cli.argument("--reason", "REASON", "only with this reason, such as exhausted"),
    cli.argument("--queue", "QUEUE", "only from this queue"),
)
_CHOSEN = (
    cli.argument("ids", "ID", "an id, or the beginning of one", nargs="*"),
    cli.flag("--all", "all, or all that the filters find"),
    *_FILTERS,
)


@cli.command(
    "list dead letters",
    cli.argument("--last", "N", "only the last N", type=cli.count),
    *_FILTERS,
    *cli.SETTINGS,
    opens=cli.server_bridge,
)
def _list(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """List dead letters, the oldest first.

      taskbridge dead list --task 'shop.email.*' --reason exhausted

    Then: `taskbridge dead show ID` shows one with its arguments and traceback.
    """
    entries = bridge.dead.list(limit=None, **_filters(arguments)).entries
    chosen = entries if arguments.last is None else entries[-arguments.last :]
    if chosen:
        text = table(("id", "died at", "task", "queue", "attempts", "reason", "error"), [_row(each) for each in chosen])
    else:
        text = _none(arguments)
    return cli.Output(text=text, data=[_data(entry) for entry in chosen])


def _none(arguments: Namespace) -> str:
    return "no such dead letters" if any(_filters(arguments).values()) else "no dead letters"


@cli.command(
    "show one, with its traceback",
    cli.argument("id", "ID", "its id, or the beginning of it"),
    *cli.SETTINGS,
    opens=cli.server_bridge,
)
def _show(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show a dead letter with its arguments, error and traceback.

      taskbridge dead show 3f2b

    The first characters of the id are enough.
    """
    [entry] = _resolved(bridge, [arguments.id])
    return cli.Output(text=_described(entry), data=_data(entry))


@cli.command(
    "send some again",
    *_CHOSEN,
    cli.argument("--per-second", "N", "start at most N in a second; default: all at once", type=cli.above_zero),
    *cli.SETTINGS,
    opens=cli.server_bridge,
)
def _replay(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Send dead letters again, on whichever engine the setting `url` names now.

    Each starts at attempt 1, in its own queue and priority. The first characters of an id are enough. Each is dead or
    waits, never both, even if this is killed.

      taskbridge dead replay 3f2b 90ac
      taskbridge dead replay --all --task 'shop.email.*' --reason exhausted
      taskbridge dead replay --all --per-second 20

    A dead letter that could not be read (reason undecodable) can't be replayed.
    """
    _check_chosen(arguments, "replay")
    if arguments.all:
        with progress("replaying", lambda: bridge.counts().dead) as tell:
            replayed = bridge.dead.replay_all(**_filters(arguments), per_second=arguments.per_second, progress=tell)
    else:
        entries = _resolved(bridge, arguments.ids)
        _check_readable(entries)
        replayed = bridge.dead.replay([entry.id for entry in entries], per_second=arguments.per_second)
    text = acts.replayed(replayed).text
    data = asdict(replayed)
    if replayed.missing and arguments.json:  # else the text says so
        say(text)
    return cli.Output(
        text=text if any(data.values()) else f"{text}: {_none(arguments)}",
        data={"replayed": data.pop("ids"), **data},
        code=2 if replayed.missing else 0,
        acts=_acts(arguments, "replay", replayed.ids),
    )


@cli.command("forget some for good", *_CHOSEN, cli.flag("--yes", "do not ask"), *cli.SETTINGS, opens=cli.server_bridge)
def _purge(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Forget dead letters for good. Asks first, unless --yes is given.

      taskbridge dead purge 3f2b
      taskbridge dead purge --all --reason undecodable --yes

    The first characters of an id are enough.
    """
    _check_chosen(arguments, "purge")
    entries: Sequence[DeadEntry]
    if arguments.all:
        entries = bridge.dead.list(limit=None, **_filters(arguments)).entries
    else:
        entries = _resolved(bridge, arguments.ids)
    if entries and not arguments.yes and not _agreed(entries):
        return cli.Output(text="nothing was purged", data={"purged": ()}, code=1)
    with progress("purging", lambda: len(entries)) as tell:  # what was counted, and no more
        purged = bridge.dead.purge([entry.id for entry in entries], progress=tell) if entries else ()
    done = _acts(arguments, "purge", purged)
    return cli.Output(text=acts.purged(purged).text, data={"purged": purged}, acts=done)


dead: cli.Command = cli.Command(
    name="dead",
    help="what failed for good, and replaying it",
    description=_DESCRIPTION,
    below=(_list, _show, _replay, _purge),
)


def _agreed(entries: Sequence[DeadEntry]) -> bool:
    if not sys.stdin.isatty():
        raise cli.UsageError(f"purge: this forgets {letters(entries)} for good; add --yes if that is meant")
    print(f"forget {letters(entries)} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# Which dead letters


def _filters(arguments: Namespace) -> dict[str, str | None]:
    return {"task": arguments.task, "reason": arguments.reason, "queue": arguments.queue}


def _acts(arguments: Namespace, action: str, ids: Sequence[str]) -> list[tuple[str, str]]:
    if not arguments.all:
        return [(action, each) for each in ids]
    return [(f"{action}_all", filters_text(**_filters(arguments)))] if ids else []


def _check_chosen(arguments: Namespace, name: str) -> None:
    """Refuse what may do more, or less, than is meant."""
    if arguments.ids and (arguments.all or any(value is not None for value in _filters(arguments).values())):
        raise cli.UsageError(f"{name}: name IDs, or say --all with filters, not both")
    if not arguments.ids and not arguments.all:
        raise cli.UsageError(f"{name}: which? Name their IDs, or say --all (with --task, --reason or --queue for some)")


def _check_readable(entries: Sequence[DeadEntry]) -> None:
    unreadable = [entry.id for entry in entries if entry.task is None and entry.raw is not None]
    if unreadable:
        raise cli.UsageError(
            f"{some(unreadable)} can't be replayed: its bytes are no message that this release can read "
            "(`taskbridge dead show` shows them); nothing was replayed"
        )


def _resolved(bridge: Bridge, beginnings: Iterable[str]) -> list[DeadEntry]:
    entries = {entry.id: entry for entry in bridge.dead.list(limit=None).entries}
    ids = dict.fromkeys(_whole_id(entries, beginning) for beginning in beginnings)
    return [entries[each] for each in ids]


def _whole_id(ids: Iterable[str], beginning: str) -> str:
    found = sorted(each for each in ids if each.startswith(beginning))
    if beginning in found or len(found) == 1:
        return beginning if beginning in found else found[0]
    if not found:
        raise cli.UsageError(f"there is no dead letter {beginning!r}; `taskbridge dead list` shows what there is")
    raise cli.UsageError(f"{len(found)} dead letters begin with {beginning!r}: {some(found)}; write more of it")


# How they are shown


def _row(entry: DeadEntry) -> tuple[str, ...]:
    line = (error_text(entry.error) or "-").partition("\n")[0]
    attempts = "-" if entry.attempts is None else str(entry.attempts)
    return (
        *(entry.id, local_time(entry.died_at), entry.task or "-", entry.queue or "-"),
        *(attempts, entry.reason, line if len(line) <= 60 else f"{line[:57]}..."),
    )


def _described(entry: DeadEntry) -> str:
    lines: list[tuple[str, str | None]] = [
        *(("id", entry.id), ("reason", entry.reason)),
        *(("died at", local_time(entry.died_at)), ("buried by", entry.worker)),
    ]
    if entry.task is not None:
        lines += [
            ("task", entry.task),
            ("arguments", entry.arguments or "none"),
            ("queue", entry.queue or "-"),
            ("priority", entry.priority or "-"),
            ("attempts", str(entry.attempts)),
            ("replays", str(entry.replays) if entry.replays else None),
            ("first sent", local_time(entry.enqueued_at)),
            ("expires", local_time(entry.expires_at) if entry.expires_at else None),
            *(("header", f"{key}: {value}") for key, value in sorted(entry.headers.items())),
        ]
    lines += [("bytes", None if entry.raw is None else repr(entry.raw[:2000])), ("error", error_text(entry.error))]
    return details(lines, entry.traceback or "")


_SAME: Final = ("id", "reason", "died_at", "task", "queue", "priority", "attempts", "replays", "expires_at", "worker")


def _data(entry: DeadEntry) -> dict[str, Any]:
    error = entry.error
    return {name: getattr(entry, name) for name in _SAME} | {
        "first_sent_at": entry.enqueued_at,
        "arguments": None if entry.task is None else entry.arguments or "none",
        "headers": None if entry.task is None else dict(entry.headers),
        "error": None if error is None else {"type": error.type, "message": error.message},
        "traceback": entry.traceback,
        "bytes": None if entry.raw is None else entry.raw.decode("latin-1"),
    }
