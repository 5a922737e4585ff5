"""`taskbridge routes`: where each task's messages go, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from taskbridge import Bridge
from taskbridge.cli.arguments import Commands, add_app, add_command, add_json, bridge_of, check_has_tasks
from taskbridge.cli.show import duration, policy, print_json, table
from taskbridge.declaration import Declaration
from taskbridge.routing import Route

_DESCRIPTION = """\
Show for each task of MODULE its queue and the rule that chose it, its priority and its retry policy.

  taskbridge routes shop.tasks

The first of these that says something decides: `using(queue=...)` at the call, the first route that matches the task's
name (setting `routes`, such as TASKBRIDGE_ROUTES='shop.email.*=email,shop.*=shop'), the decorator's `queue`, the
setting `default_queue`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One task, in words."""

    task: str
    queue: str
    why: str
    priority: str
    retry: str
    expires_s: float | None
    time_limit_s: float | None


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "routes", run, help="where each task's messages go, and why", description=_DESCRIPTION
    )
    add_app(parser, required=True)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the routes of all tasks."""
    bridge = bridge_of(arguments)
    check_has_tasks(bridge, arguments.app)
    rows = [_row(bridge, declaration) for declaration in sorted(bridge.declarations(), key=lambda each: each.name)]
    unmatched = unmatched_routes(bridge)
    if arguments.json:
        print_json({"tasks": [asdict(row) for row in rows], "routes_without_task": [_text(each) for each in unmatched]})
        return 0
    print(
        table(
            ("task", "queue", "why", "priority", "retry", "limits"),
            [(row.task, row.queue, row.why, row.priority, row.retry, _limits(row)) for row in rows],
        )
    )
    if unmatched:
        print()
    for route in unmatched:
        print(f"route {_text(route)} decides about no task: mistyped, or behind a wider one")
    return 0


def unmatched_routes(bridge: Bridge) -> list[Route]:
    """Return the routes that are the first to match no task: mistyped, or hidden by an earlier one."""
    used = {deciding_route(bridge, declaration.name) for declaration in bridge.declarations()}
    return [route for route in bridge.settings.routes if route not in used]


def deciding_route(bridge: Bridge, task: str) -> Route | None:
    """Return the route that decides about a task, if one does (rule Q1)."""
    return next((route for route in bridge.settings.routes if route.matches(task)), None)


def _row(bridge: Bridge, declaration: Declaration) -> _Row:
    route = deciding_route(bridge, declaration.name)
    if route is not None:
        why = f"route {_text(route)}"
    elif declaration.queue is not None:
        why = f"@task(queue={declaration.queue!r})"
    else:
        why = "default_queue"
    retry = bridge.settings.retry if declaration.retry is None else declaration.retry
    return _Row(
        task=declaration.name,
        queue=bridge.queue_of(declaration.name),
        why=why,
        priority=declaration.priority,
        retry=policy(retry) + (" (default)" if declaration.retry is None else ""),
        expires_s=declaration.expires_s,
        time_limit_s=declaration.time_limit_s,
    )


def _text(route: Route) -> str:
    return f"{route.pattern}={route.queue}"


def _limits(row: _Row) -> str:
    words: list[str] = []
    if row.expires_s is not None:
        words.append(f"expires after {duration(row.expires_s)}")
    if row.time_limit_s is not None:
        words.append(f"runs up to {duration(row.time_limit_s)}")
    return ", ".join(words) or "-"
