"""`taskbridge check`: is everything there that an application needs?"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from itertools import chain
from time import perf_counter
from typing import Any, Final

from taskbridge import Bridge
from taskbridge._version import __version__
from taskbridge.brokers.base import Remark
from taskbridge.cli.applications import others
from taskbridge.cli.command import JSON, MODULE_OR_NONE, URL, Output, any_bridge, argument, command, flag
from taskbridge.cli.output import CYAN, GREEN, RED, YELLOW, colored, duration, policy
from taskbridge.cli.pauses import until_text
from taskbridge.cli.queues import route_text, unmatched_routes
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError, UnsupportedError
from taskbridge.hints import unresolved
from taskbridge.logs import escaped
from taskbridge.retry import RetryPolicy
from taskbridge.settings import Settings, load, without_credentials

_CODES: Final = {"ok": 0, "note": 0, "warning": 1, "failed": 1, "error": 2}
_COLORS: Final = {"ok": GREEN, "note": CYAN, "warning": YELLOW, "failed": RED, "error": RED}

_MOST_STALLED: Final = 10  # flows that are named

_DISTRIBUTIONS: Final = {"celery": ("celery", "kombu"), "amqp": ("pika",)}
"""What an engine or a client library is installed from, where that isn't one package of the same name."""


@command(
    "is everything there that an application needs?",
    MODULE_OR_NONE,
    URL,
    flag("--deep", "try what messages need on the real servers, for some seconds"),
    argument(
        "--management",
        "URL",
        "with --deep: RabbitMQ's management API, perhaps with a user of its own; default: the broker's host, "
        "port 15672 (15671 with TLS)",
    ),
    JSON,
    opens=any_bridge,
)
def check(bridge: Bridge, arguments: Namespace) -> Output:
    """Check that tasks can be sent and run.

    It looks at the settings, the engine and the client library, whether the broker and the store answer, the routes,
    and what this engine and broker can't do.

      taskbridge check shop.tasks
      TASKBRIDGE_URL=dramatiq+amqp://guest:guest@localhost// taskbridge check shop.tasks

    --deep also sends, delays, dead-letters and cancels something, and reads what the servers say of themselves: it
    finds missing permissions, eviction, servers that save nothing, and policies that drop messages or expire them.
    What it makes has names of its own, and is removed; the application's queues are declared if they are missing.

      taskbridge check shop.tasks --deep
      taskbridge check shop.tasks --deep --management https://monitor:secret@rabbit.example:15671

    Exit code: 0 all is well, 1 something looks wrong or failed, 2 it can't work.

    Then: `taskbridge worker MODULE` runs the tasks, `taskbridge verify URL` tries every rule on your own servers.
    """
    findings: list[Remark] = []
    for finding in chain(_findings(bridge, arguments.app), _deep(bridge, arguments, findings)):
        findings.append(finding)
        if not arguments.json:  # each as it is found: a server that does not answer takes its time
            subject, outcome, text = finding
            print(f"{subject:<9} {colored(_COLORS[outcome], f'{outcome:<7}')}  {escaped(text)}", flush=True)
    code = max(_CODES[finding.outcome] for finding in findings)
    return Output(data={"exit_code": code, "findings": [finding._asdict() for finding in findings]}, code=code)


def _findings(bridge: Bridge, app: str | None) -> Iterator[Remark]:
    settings = bridge.settings
    yield Remark("versions", "ok", f"taskbridge {__version__}, Python {'.'.join(map(str, sys.version_info[:3]))}")
    yield Remark("url", "ok", settings.url.safe_url)
    yield Remark("settings", "ok", _changed(settings))
    libraries = list(_libraries(bridge))
    yield from libraries
    if all(finding.outcome != "error" for finding in libraries):
        yield _ping("broker", lambda: bridge.broker, settings, settings.url.broker == "memory")
        if settings.store is not None:
            yield _ping("store", lambda: bridge.store, settings, settings.store.startswith("memory:"))
        yield from _priorities(bridge)
        with suppress(TaskBridgeError):  # that it doesn't answer was told above
            if bridge.store is not None and bridge.store.clock is not None:
                bridge.store.clock.ensure(timeout_s=settings.send_timeout_s)
                if skew := bridge.store.clock.skew:
                    yield Remark("clock", "warning", skew)
    if app is not None:
        names = sorted([each.name for each in bridge.declarations()])
        if names:
            yield Remark("tasks", "ok", f"{len(names)}: {', '.join(names)}")
        else:
            yield Remark("tasks", "warning", f"{app} declares none on this bridge: is a @task missing?")
        for problem in chain(*map(unresolved, bridge.declarations())):
            yield Remark("hints", "note", f"{problem}; it counts as none")
        with suppress(BrokerUnavailable):  # that it doesn't answer was told above
            for text in others(bridge, app, bridge.queues(), is_started=False, timeout_s=settings.send_timeout_s):
                yield Remark("namespace", "warning", text)
        yield from _schedules(bridge)
        unique = [each.name for each in bridge.declarations() if each.unique is not None]
        with suppress(TaskBridgeError):
            if unique and bridge.store is None:
                problem = (
                    "unique, which needs a store: set `store` to a redis:// or postgresql:// URL, or nobody can send"
                )
                yield Remark("unique", "error", f"{', '.join(unique)}: {problem}")
    with suppress(TaskBridgeError):  # it has no store, or that was told above
        for each in bridge.paused():
            what = f"tasks {each.task}" if each.queue is None else f"queue {each.queue}"
            yield Remark("paused", "note", f"{what}{until_text(each)}: nothing of it starts until it is resumed")
        if bridge.store is not None and (stalled := bridge.flows.stalled(most=_MOST_STALLED)):
            ids = ", ".join(each.id for each in stalled)
            yield Remark("flows", "warning", f"stalled, until `taskbridge flow retry ID`: {ids}")
    yield from _routes(bridge, app)
    yield Remark("queues", "ok", ", ".join(bridge.queues()))
    yield from (Remark("limits", "note", limit) for limit in _limits(settings))


def _deep(bridge: Bridge, arguments: Namespace, so_far: list[Remark]) -> Iterator[Remark]:
    """Try the servers, if that is asked for, and what was found so far lets it."""
    if not arguments.deep or any(finding.outcome == "error" for finding in so_far):
        return
    from taskbridge.cli.deep import remarks  # here, for it takes some time to import

    try:
        yield from remarks(bridge, arguments.management)
    except TaskBridgeError as exc:
        yield Remark("deep", "error", str(exc))


def _changed(settings: Settings) -> str:
    """Return the settings that differ from their defaults, but for those shown elsewhere."""
    defaults, _ = load({}, environ={})
    changed = [
        f"{field.name.removesuffix('_s')} {_shown(field.name, getattr(settings, field.name))}"
        for field in fields(settings)
        if field.name not in ("url", "queues", "routes")
        and getattr(settings, field.name) != getattr(defaults, field.name)
    ]
    return ", ".join(changed) if changed else "the defaults"


def _shown(name: str, value: Any) -> str:
    if name == "store":
        return without_credentials(value)
    if name == "schedules":
        return ", ".join(schedule.name for schedule in value)  # not their arguments, which may be secret
    if isinstance(value, RetryPolicy):
        return f"({policy(value)})"
    return duration(value) if name.endswith("_s") else str(value)


def _libraries(bridge: Bridge) -> Iterator[Remark]:
    """Tell whether the engine and the client library can be imported, by importing them, and their versions."""
    address = bridge.settings.url
    if address.engine == "inline":
        return
    uses: list[tuple[str, str, Callable[[], object]]] = [("engine", address.engine, lambda: bridge.engine)]
    if address.broker != "memory":
        uses.insert(0, ("client", address.broker, lambda: bridge.broker))
    for subject, name, use in uses:
        versions = {each: _version(each) for each in _DISTRIBUTIONS.get(name, (name,))}
        text = ", ".join(" ".join(pair).strip() for pair in versions.items())
        try:
            use()
        except TaskBridgeError as exc:
            yield Remark(subject, "error", str(exc))
            return
        except ImportError as exc:
            yield Remark(subject, "error", f"{text} can't be imported: {exc}")
            return
        yield Remark(subject, "ok", text)
        for each, oldest in _oldest().items():
            if versions.get(each) and _numbers(versions[each]) < _numbers(oldest):
                text = f"{each} {versions[each]} is older than {oldest}, the oldest that is supported"
                yield Remark(subject, "warning", text)


def _version(distribution: str) -> str:
    """Return the installed version; nothing for what was put there by other means than a package."""
    from importlib import metadata  # here and below: it takes as long to import as all the rest of the command line

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _oldest() -> dict[str, str]:
    """Return the oldest supported version of each optional library, as this package itself requires it."""
    from importlib import metadata

    try:
        requirements = metadata.requires("taskbridge-queue") or []
    except metadata.PackageNotFoundError:  # it runs from its sources
        return {}
    found = (re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match is not None}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _ping(subject: str, place: Callable[[], Any], settings: Settings, is_here: bool) -> Remark:
    started = perf_counter()
    try:
        place().ping(timeout_s=settings.send_timeout_s)
    except TaskBridgeError as exc:
        return Remark(subject, "error", exc.problem if isinstance(exc, BrokerUnavailable) else str(exc))
    took_ms = (perf_counter() - started) * 1000
    return Remark(subject, "ok", "in this process" if is_here else f"answers, in {took_ms:.0f} ms")


def _priorities(bridge: Bridge) -> Iterator[Remark]:
    with suppress(BrokerUnavailable):  # which is told anyway
        try:
            bridge.check_priorities()
        except UnsupportedError as exc:
            yield Remark("tasks", "error", str(exc))


def _schedules(bridge: Bridge) -> Iterator[Remark]:
    try:
        names = sorted(bridge.schedules.planned())
        bridge.schedules.check()
    except TaskBridgeError as exc:
        yield Remark("schedules", "error", str(exc))
        return
    if names:
        off = "" if bridge.settings.scheduler else " (workers do not send by them: `taskbridge scheduler` has to run)"
        yield Remark("schedules", "ok", f"{len(names)}: {', '.join(names)}{off}")


def _routes(bridge: Bridge, app: str | None) -> Iterator[Remark]:
    unmatched = unmatched_routes(bridge) if app is not None else []
    for route in unmatched:
        text = f"{route_text(route)} decides about no task: mistyped, or behind a wider one"
        yield Remark("routes", "warning", text)
    if used := len(bridge.settings.routes) - len(unmatched):
        yield Remark("routes", "ok", f"{used} in use, `taskbridge routes` shows them")


def _limits(settings: Settings) -> Iterator[str]:
    if settings.url.engine == "inline":
        yield "nothing chose another url: tasks run in threads of the process that sends them"
    if settings.url.broker == "memory":
        yield "messages live in one process and end with it; no worker command, no dead letters to look at later"
    if settings.url.broker == "amqp":
        yield "RabbitMQ: delays are whole seconds, rounded up"
        if settings.store is None:
            yield (
                "RabbitMQ without a store: runs that died with their worker are counted by redeliveries, up to 10, not "
                "exactly, and there are no status, results, schedules and unique tasks; set `store` to a redis:// or "
                "postgresql:// URL"
            )
