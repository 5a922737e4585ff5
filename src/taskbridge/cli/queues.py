"""`taskbridge queues`, `health`, `routes` and `metrics`: what waits in queues, who consumes them, what goes there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from taskbridge import Bridge, BrokerUnavailable, Pause, StoreUnavailable, UnsupportedError
from taskbridge.cli import command as cli
from taskbridge.cli.output import duration, policy, say, table
from taskbridge.cli.pauses import until_text
from taskbridge.declaration import Declaration
from taskbridge.routing import Route


@cli.command("how much waits, is delayed, is dead", cli.MODULE_OR_NONE, cli.URL, cli.JSON, opens=cli.server_bridge)
def queues(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show how many messages wait in each known queue, and how many are delayed and dead.

      taskbridge queues shop.tasks
      watch -n 2 taskbridge queues shop.tasks

    The known queues are those of the settings, the routes and the tasks of MODULE. One that is paused is shown so, and
    so are the tasks that are. Delayed messages are scheduled, or
    wait for their next attempt. What a worker has taken is not counted.
    Then: `taskbridge dead list` shows what failed for good, and why.
    """
    counts = bridge.counts()
    none = "\nno MODULE is named: only the queues of the settings and their routes are known"
    more = none if arguments.app is None else ""
    paused: Sequence[Pause] = ()
    with suppress(UnsupportedError, StoreUnavailable):  # it has no store, or that is away
        paused = bridge.paused()
    states = {each.queue: f"paused{until_text(each)}" for each in paused}
    rows = [(queue, str(number), states.get(queue, "")) for queue, number in counts.waiting.items()]
    tasks = [f"\ntasks {each.task} paused{until_text(each)}" for each in paused if each.task is not None]
    waiting = table(("queue", "waiting", ""), rows, right="waiting")
    return cli.Output(
        text=f"{waiting}\n\ndelayed {counts.delayed}, dead {counts.dead}{''.join(tasks)}{more}",
        data={
            "waiting": dict(counts.waiting),
            "delayed": counts.delayed,
            "dead": counts.dead,
            "paused": [asdict(each) for each in paused],
        },
    )


_MEANINGS = {
    "consumed": "consumed",
    "busy": "busy: all slots of its workers are taken",
    "silent": "silent: no worker consumes it",
    "paused": "paused: nothing of it starts until it is resumed",
    "unknown": "unknown: the broker does not answer",
}


def _bridge(arguments: Namespace) -> Bridge:
    """Return the application's bridge; without one, a bridge that knows the queues that are asked about."""
    bridge = cli.server_bridge(arguments)
    if arguments.app is not None or not arguments.queues:
        return bridge
    return Bridge(arguments.url, queues=(*bridge.settings.queues, *arguments.queues))


@cli.command(
    "whether workers consume the queues",
    cli.MODULE_OR_NONE,
    cli.URL,
    cli.argument("--queues", "A,B", "these only; default: all known ones", type=cli.words, default=[]),
    cli.argument("--timeout", "S", "how many seconds to wait; default: 5", type=cli.above_zero, default=5.0),
    cli.JSON,
    opens=_bridge,
)
def health(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Tell whether workers consume the queues: put a probe in each, and wait until a worker has answered it.

    That a worker is connected is not enough.

      taskbridge health shop.tasks
      taskbridge health --queues email,vip --timeout 10

    It prints a line a queue:

      consumed   a worker answered
      busy       none answered, but a worker that consumes it says that all its slots are taken by running tasks
      silent     neither: there is no worker for it, or it hangs
      paused     it is paused, so no worker was asked

    MODULE is needed only for the names of its queues: with --queues, and TASKBRIDGE_URL in the environment, leave it
    out, and nothing of the application is imported.

    Exit codes: 0 no queue is silent; 1 one is, or the broker does not answer; 2 it can't be asked, and one line says
    why.
    """
    try:
        found = bridge.health(*arguments.queues, timeout=arguments.timeout)
    except BrokerUnavailable as exc:
        if not arguments.json:
            say(exc.problem)
        states = dict.fromkeys(arguments.queues or bridge.queues(), "unknown")
        data = {"ok": False, "queues": states, "problem": exc.problem}
    else:
        states = dict[str, str](found.queues)
        data = {"ok": found.is_well, "queues": states, "seconds": round(found.seconds, 3)}
    text = "\n".join(f"{queue}: {_MEANINGS[state]}" for queue, state in states.items())
    return cli.Output(text=text, data=data, code=0 if data["ok"] else 1)


@cli.command("what waits, in Prometheus' format", cli.MODULE_OR_NONE, cli.URL, opens=cli.server_bridge)
def metrics(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Print once, in Prometheus' text format, what broker and store tell: what waits, is delayed and is dead.

      taskbridge metrics shop.tasks
      taskbridge metrics shop.tasks > /var/lib/node_exporter/taskbridge.prom

    What workers count (runs, waits, failures) is on the port of `taskbridge worker --metrics-port`, with these numbers.
    """
    from taskbridge.metrics.gauges import text_of  # here, for other commands need none of it

    return cli.Output(text=text_of(bridge))


@cli.command("where each task's messages go, and why", cli.MODULE, cli.URL, cli.JSON, opens=cli.app_bridge)
def routes(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Show for each task of MODULE its queue and the rule that chose it, its priority and its retry policy.

      taskbridge routes shop.tasks

    The first of these that says something decides: `using(queue=...)` at the call, the first route that matches the
    task's name (setting `routes`, such as TASKBRIDGE_ROUTES='shop.email.*=email,shop.*=shop'), the decorator's `queue`,
    the setting `default_queue`.
    """
    cli.check_has_tasks(bridge, arguments.app)
    tasks = [_described(bridge, each) for each in sorted(bridge.declarations(), key=lambda each: each.name)]
    unmatched = [route_text(route) for route in unmatched_routes(bridge)]
    columns = ("task", "queue", "why", "priority", "retry")
    lines = [table((*columns, "limits"), [(*(task[name] for name in columns), _limits(task)) for task in tasks])]
    if unmatched:
        lines += ["", *(f"route {route} decides about no task: mistyped, or behind a wider one" for route in unmatched)]
    return cli.Output(text="\n".join(lines), data={"tasks": tasks, "routes_without_task": unmatched})


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
