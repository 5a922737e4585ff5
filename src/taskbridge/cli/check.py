"""`taskbridge check`: is everything there that an application needs?"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import Any, Final, Literal

from taskbridge import Bridge
from taskbridge._version import __version__
from taskbridge.cli.arguments import Commands, add_app, add_command, add_json, bridge_of
from taskbridge.cli.routes import unmatched_routes
from taskbridge.cli.show import Paint, duration, policy, print_json
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError
from taskbridge.retry import RetryPolicy
from taskbridge.settings import Settings, load, without_credentials

_DESCRIPTION = """\
Check that tasks can be sent and run: the settings, the engine and the client library, whether the broker and the store
answer, the routes, and what this engine and broker can't do.

  taskbridge check shop.tasks
  TASKBRIDGE_URL=dramatiq+amqp://guest:guest@localhost// taskbridge check shop.tasks

Exit code: 0 all is well, 1 it works but something looks wrong, 2 it can't work.

Then: `taskbridge worker MODULE` runs the tasks, `taskbridge verify URL` tries every rule on your own servers.
"""

Outcome = Literal["ok", "note", "warning", "error"]

_EXIT_CODES: Final[dict[Outcome, int]] = {"ok": 0, "note": 0, "warning": 1, "error": 2}
_STYLES: Final[dict[Outcome, str]] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}

_DISTRIBUTIONS: Final = {
    "celery": ("celery", "kombu"),
    "dramatiq": ("dramatiq",),
    "redis": ("redis",),
    "amqp": ("pika",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """What was found about one subject."""

    subject: str
    outcome: Outcome
    text: str


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "check", run, help="is everything there that an application needs?", description=_DESCRIPTION
    )
    add_app(parser, required=False)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found, and return the exit code of the worst of it."""
    bridge = bridge_of(arguments)
    code = 0
    findings: list[_Finding] = []
    paint = Paint(sys.stdout)
    for finding in _findings(bridge, arguments.app):
        findings.append(finding)
        code = max(code, _EXIT_CODES[finding.outcome])
        if not arguments.json:
            outcome = paint(_STYLES[finding.outcome], f"{finding.outcome:<7}")
            print(f"{finding.subject:<9} {outcome}  {finding.text}", flush=True)
    bridge.close()
    if arguments.json:
        print_json({"exit_code": code, "findings": [asdict(finding) for finding in findings]})
    return code


def _findings(bridge: Bridge, app: str | None) -> Iterator[_Finding]:
    yield from _settings(bridge)
    installed = list(_installed(bridge))
    yield from installed
    if all(finding.outcome != "error" for finding in installed):
        yield from _reachable(bridge)
    if app is not None:
        yield _tasks(bridge, app)
        yield from _schedules(bridge)
    yield from _routes(bridge, app)
    yield _Finding(subject="queues", outcome="ok", text=", ".join(bridge.queues()))
    yield from _limits(bridge)


def _settings(bridge: Bridge) -> Iterator[_Finding]:
    settings = bridge.settings
    yield _Finding(
        subject="versions",
        outcome="ok",
        text=f"taskbridge {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}."
        f"{sys.version_info.micro}",
    )
    yield _Finding(subject="url", outcome="ok", text=settings.url.safe_url)
    yield _Finding(subject="settings", outcome="ok", text=_changed(settings))


def _changed(settings: Settings) -> str:
    """Return the settings that differ from their defaults, but for those shown elsewhere."""
    defaults, _ = load({}, environ={})
    changed = [
        f"{field.name.removesuffix('_s')} {_value(field.name, getattr(settings, field.name))}"
        for field in fields(settings)
        if field.name not in ("url", "queues", "routes")
        and getattr(settings, field.name) != getattr(defaults, field.name)
    ]
    return ", ".join(changed) if changed else "the defaults"


def _value(name: str, value: Any) -> str:
    if name == "store":
        return without_credentials(value)
    if name == "schedules":
        return ", ".join(schedule.name for schedule in value)  # not their arguments, which may be secret
    if isinstance(value, RetryPolicy):
        return f"({policy(value)})"
    return duration(value) if name.endswith("_s") else str(value)


def _installed(bridge: Bridge) -> Iterator[_Finding]:
    """Tell whether the engine and the client library can be imported, by importing them."""
    address = bridge.settings.url
    if address.engine == "inline":
        return
    uses: list[tuple[str, str, Callable[[], object]]] = [
        ("client", address.broker, lambda: bridge.broker),
        ("engine", address.engine, lambda: bridge.engine),
    ]
    for subject, name, use in uses:
        if name == "memory":
            continue
        try:
            use()
        except TaskBridgeError as exc:
            yield _Finding(subject=subject, outcome="error", text=str(exc))
            return
        except ImportError as exc:
            yield _Finding(subject=subject, outcome="error", text=f"{_versions(name)} can't be imported: {exc}")
            return
        yield from _versioned(subject, name)


def _versioned(subject: str, name: str) -> Iterator[_Finding]:
    yield _Finding(subject=subject, outcome="ok", text=_versions(name))
    oldest = _oldest()
    for distribution in _DISTRIBUTIONS.get(name, ()):
        version = _version(distribution)
        if version and distribution in oldest and _numbers(version) < _numbers(oldest[distribution]):
            text = f"{distribution} {version} is older than {oldest[distribution]}, the oldest that is supported"
            yield _Finding(subject=subject, outcome="warning", text=text)


def _oldest() -> Mapping[str, str]:
    """Return the oldest supported version of each optional library, as this package itself requires it."""
    from importlib import metadata  # here and below: it takes as long to import as all the rest of the command line

    try:
        requirements = metadata.requires("taskbridge-queue") or []
    except metadata.PackageNotFoundError:  # it runs from its sources
        return {}
    found = (re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match is not None}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _versions(name: str) -> str:
    distributions = _DISTRIBUTIONS.get(name, (name,))
    return ", ".join(f"{distribution} {_version(distribution)}".strip() for distribution in distributions)


def _version(distribution: str) -> str:
    """Return the installed version; nothing for what was put there by other means than a package."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _reachable(bridge: Bridge) -> Iterator[_Finding]:
    timeout_s, url = bridge.settings.send_timeout_s, bridge.settings.store
    yield _answer("broker", lambda: bridge.broker.ping(timeout_s=timeout_s), bridge.settings.url.broker == "memory")
    if url is not None:
        yield _answer("store", lambda: _ping_store(bridge, timeout_s), url.startswith("memory:"))


def _ping_store(bridge: Bridge, timeout_s: float) -> None:
    store = bridge.store
    if store is not None:
        store.ping(timeout_s=timeout_s)


def _answer(subject: str, ping: Callable[[], None], is_here: bool) -> _Finding:
    started = perf_counter()
    try:
        ping()
    except BrokerUnavailable as exc:
        return _Finding(subject=subject, outcome="error", text=exc.problem)
    except TaskBridgeError as exc:
        return _Finding(subject=subject, outcome="error", text=str(exc))
    took_ms = (perf_counter() - started) * 1000
    text = "in this process" if is_here else f"answers, in {took_ms:.0f} ms"
    return _Finding(subject=subject, outcome="ok", text=text)


def _tasks(bridge: Bridge, app: str) -> _Finding:
    names = sorted(declaration.name for declaration in bridge.declarations())
    if not names:
        return _Finding(subject="tasks", outcome="warning", text=f"{app} declares none on this bridge")
    return _Finding(subject="tasks", outcome="ok", text=f"{len(names)}: {', '.join(names)}")


def _schedules(bridge: Bridge) -> Iterator[_Finding]:
    """Tell whether what is to be sent by schedules can be sent."""
    try:
        names = sorted(schedule.name for schedule in bridge.all_schedules())
        if names:
            bridge.check_schedules()
    except TaskBridgeError as exc:
        yield _Finding(subject="schedules", outcome="error", text=str(exc))
        return
    if names:
        off = "" if bridge.settings.scheduler else " (workers do not send by them: `taskbridge scheduler` has to run)"
        yield _Finding(subject="schedules", outcome="ok", text=f"{len(names)}: {', '.join(names)}{off}")


def _routes(bridge: Bridge, app: str | None) -> Iterator[_Finding]:
    unmatched = unmatched_routes(bridge) if app is not None else []
    for route in unmatched:
        yield _Finding(
            subject="routes",
            outcome="warning",
            text=f"{route.pattern}={route.queue} decides about no task: mistyped, or behind a wider one",
        )
    number = len(bridge.settings.routes)
    if number > len(unmatched):
        yield _Finding(
            subject="routes", outcome="ok", text=f"{number - len(unmatched)} in use, `taskbridge routes` shows them"
        )


def _limits(bridge: Bridge) -> Iterator[_Finding]:
    """Tell what the target can't do, or does differently from the others."""
    settings = bridge.settings
    notes: list[str] = []
    if settings.url.engine == "inline":
        notes.append("nothing chose another url: tasks run in threads of the process that sends them")
    if settings.url.broker == "memory":
        notes.append(
            "messages live in one process and end with it; no worker command, no dead letters to look at later"
        )
    if settings.url.broker == "amqp":
        notes.append("RabbitMQ: delays are whole seconds, rounded up")
    if settings.url.broker == "amqp" and settings.store is None:
        notes.append(
            "RabbitMQ without a store: runs that died with their worker are counted by redeliveries, up to 10, not "
            "exactly, and there are no status, results and schedules; set `store` to a redis:// or postgresql:// URL"
        )
    for note in notes:
        yield _Finding(subject="limits", outcome="note", text=note)
