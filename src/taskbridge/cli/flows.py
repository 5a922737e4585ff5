"""`taskbridge flow`: what flows do, cancelling them, and going on with those that failed, are cancelled or stalled."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Final, get_args

from taskbridge import Bridge, acts
from taskbridge.cli import command as cli
from taskbridge.cli.operations import plain
from taskbridge.cli.output import bar, details, error_text, local_time, many, table
from taskbridge.flows.states import FlowState, FlowStatus
from taskbridge.stores.states import Status

_STATES: Final = (*get_args(FlowState), "stalled")
_ID = cli.argument("id", "ID", "the flow's whole id, as its handle has it")


@cli.command(
    "list flows",
    cli.MODULE_OR_NONE,
    cli.argument("--state", "STATE", f"one of {', '.join(_STATES)}", choices=_STATES),
    cli.argument("--most", "N", "how many at most, up to 500; default: 50", type=cli.count, default=50),
    cli.argument("--cursor", "CURSOR", "go on where a list ended, which says how", default=""),
    cli.URL,
    cli.JSON,
)
def _ls(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """List flows, the latest first.

      taskbridge flow ls --state stalled

    Then: `taskbridge flow show ID` shows one with its steps.
    """
    try:
        page = bridge.operations.flows(state=arguments.state, cursor=arguments.cursor, most=arguments.most)
    except ValueError as exc:  # the cursor is no list's
        raise cli.UsageError(f"flow ls: {exc}") from exc
    found = [bridge.dead.shown_flow(each) for each in page.items]
    rows = [
        (each.id, each.name, _state(each), f"{each.stage}/{each.stages}", _so_far(each), local_time(each.created_at))
        for each in found
    ]
    text = table(("id", "flow", "state", "stage", "steps ended", "sent"), rows) if rows else "no such flows"
    more = f"\n\nmore with --cursor '{page.cursor}'" if page.cursor else ""
    return cli.Output(text=f"{text}{more}", data={"flows": [asdict(each) for each in found], "cursor": page.cursor})


@cli.command(
    "show one, with its steps",
    _ID,
    cli.argument("--first", "N", "the first step that is shown; default: 1", type=cli.count, default=1),
    cli.argument("--most", "N", "how many steps at most; default: 50", type=cli.count, default=50),
    *cli.SETTINGS,
)
def _show(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show a flow: how far it has come, how it ended, and its steps.

      taskbridge flow show nightly-2026-11-28
      taskbridge flow show nightly-2026-11-28 --first 51

    Steps of stages that have not begun are no messages yet, and are counted only.
    Then: `taskbridge status ID` shows a step with its attempts.
    """
    found = bridge.dead.shown_flow(bridge.flows.status(arguments.id))
    steps = bridge.flows.steps(arguments.id, first=arguments.first - 1, most=arguments.most)
    shown = [bridge.dead.shown_status(each) for each in steps]
    rows = [_step(each) for each in shown]
    listed = f"\n\n{table(('step', 'task', 'state', 'attempts', 'ended', 'error'), rows)}" if rows else ""
    following = arguments.first + arguments.most
    has_more = len(rows) >= arguments.most and following <= found.total
    more = f"\n\nmore with --first {following}" if has_more else ""
    data = asdict(found) | {"steps": [plain(each) for each in shown]}
    return cli.Output(text=f"{_described(found)}{listed}{more}", data=data)


@cli.command("start no more of its steps", _ID, *cli.SETTINGS)
def _cancel(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Cancel a flow: it starts no step from 1 s on, and the steps that run are told, by `current().cancelled`.

      taskbridge flow cancel nightly-2026-11-28

    Exit code 1: it was too late, for the flow had ended already.
    """
    outcome = acts.cancel_flow(bridge, arguments.id)
    return cli.acted(outcome, "cancel_flow", arguments.id, asdict(outcome.found))


@cli.command("go on with one that did not end well, or is stalled", _ID, *cli.SETTINGS)
def _retry(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Go on with a flow: its dead steps are replayed, and what was lost or given up is sent again under the same ids.

      taskbridge flow retry nightly-2026-11-28

    What is done is not run again. Exit code 1: there was nothing to retry.
    """
    outcome = acts.retry_flow(bridge, arguments.id)
    return cli.acted(outcome, "retry_flow", arguments.id, asdict(outcome.found))


flow: Final = cli.Command(
    name="flow",
    help="what flows do, cancelling and retrying them",
    description="Look after flows: chains and groups of tasks, and what follows them.",
    below=(_ls, _show, _cancel, _retry),
)


def _state(found: FlowStatus) -> str:
    return "stalled" if found.is_stalled else found.state


def _so_far(found: FlowStatus) -> str:
    return f"{found.done + found.dead + found.discarded + found.cancelled}/{found.total}"


def _described(found: FlowStatus) -> str:
    names = ("done", "dead", "discarded", "cancelled", "running", "waiting")
    counts = ", ".join(f"{number} {name}" for name in names if (number := getattr(found, name)))
    end = found.end
    return details(
        [
            ("id", found.id),
            ("flow", found.name),
            ("state", _state(found)),
            ("stage", f"{found.stage} of {found.stages}"),
            ("progress", f"{bar(found.done, max(1, found.total))} {counts} of {many(found.total, 'step')}"),
            ("sent", local_time(found.created_at)),
            ("ended", local_time(found.ended_at) if found.ended_at else None),
            ("waits for", found.oldest or None),
            ("part of", found.parent or None),
            ("because", None if end is None or not end.step else f"{end.task} {end.step} is {end.ended}"),
            ("reason", end.reason or None if end else None),
            ("error", f"{end.error_type}: {end.error}" if end and end.error_type else None),
        ]
    )


def _step(found: Status) -> tuple[str, ...]:
    error = (error_text(found.error) or "").partition("\n")[0][:60]
    attempts = str(len(found.attempts))
    return found.id, found.task, found.state, attempts, local_time(found.ended_at), error
