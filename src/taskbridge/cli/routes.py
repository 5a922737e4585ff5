"""`taskbridge routes`: where each task's messages go, and why."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from taskbridge import Bridge
from taskbridge.cli.command import JSON, MODULE, URL, Output, app_bridge, check_has_tasks, command
from taskbridge.cli.output import duration, policy, table
from taskbridge.declaration import Declaration
from taskbridge.routing import Route


@command("routes", "where each task's messages go, and why", MODULE, URL, JSON, opens=app_bridge)
def routes(bridge: Bridge, arguments: Namespace) -> Output:
    """Show for each task of MODULE its queue and the rule that chose it, its priority and its retry policy.

      taskbridge routes shop.tasks

    The first of these that says something decides: `using(queue=...)` at the call, the first route that matches the
    task's name (setting `routes`, such as TASKBRIDGE_ROUTES='shop.email.*=email,shop.*=shop'), the decorator's `queue`,
    the setting `default_queue`.
    """
    check_has_tasks(bridge, arguments.app)
    tasks = [_described(bridge, each) for each in sorted(bridge.declarations(), key=lambda each: each.name)]
    unmatched = [route_text(route) for route in unmatched_routes(bridge)]
    columns = ("task", "queue", "why", "priority", "retry")
    lines = [table((*columns, "limits"), [(*(task[name] for name in columns), _limits(task)) for task in tasks])]
    if unmatched:
        lines += ["", *(f"route {route} decides about no task: mistyped, or behind a wider one" for route in unmatched)]
    return Output(text="\n".join(lines), data={"tasks": tasks, "routes_without_task": unmatched})


def unmatched_routes(bridge: Bridge) -> list[Route]:
    """Return the routes that are the first to match no task: mistyped, or hidden by an earlier one."""
    used = {bridge.settings.route_of(declaration.name) for declaration in bridge.declarations()}
    return [route for route in bridge.settings.routes if route not in used]


def route_text(route: Route) -> str:
    """Return a route as the setting `routes` has it."""
    return f"{route.pattern}={route.queue}"


def _described(bridge: Bridge, declaration: Declaration) -> dict[str, Any]:
    route = bridge.settings.route_of(declaration.name)
    if route is not None:
        why = f"route {route_text(route)}"
    elif declaration.queue is not None:
        why = f"@task(queue={declaration.queue!r})"
    else:
        why = "default_queue"
    own = declaration.retry
    return {
        "task": declaration.name,
        "queue": bridge.queue_of(declaration.name),
        "why": why,
        "priority": declaration.priority,
        "retry": f"{policy(bridge.settings.retry)} (default)" if own is None else policy(own),
        "expires_s": declaration.expires_s,
        "time_limit_s": declaration.time_limit_s,
    }


def _limits(task: dict[str, Any]) -> str:
    expires_s, time_limit_s = task["expires_s"], task["time_limit_s"]
    words = [f"expires after {duration(expires_s)}"] if expires_s is not None else []
    words += [f"runs up to {duration(time_limit_s)}"] if time_limit_s is not None else []
    return ", ".join(words) or "-"
