"""The table of scenarios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from taskbridge.contract.environment import EnvironmentSpec
from taskbridge.contract.harness import Harness
from taskbridge.contract.rules import RULES
from taskbridge.contract.target import Target

ORDINARY: Final = EnvironmentSpec(name="ordinary", workers=1, threads=8, grace_s=4, shared=True)
"""One worker with 8 threads; scenarios on it run side by side."""

PROCESSES: Final = EnvironmentSpec(name="processes", workers=1, processes=4, grace_s=4, shared=True)
QUIET: Final = EnvironmentSpec(name="quiet", workers=1, threads=4, quiet=True)
"""One worker with 4 threads, for one scenario, while nothing else runs."""

LEASED: Final = EnvironmentSpec(name="leased", workers=3, threads=2, lease_s=5, shared=True)
ALONE: Final = EnvironmentSpec(name="alone")
"""An environment of the scenario's own, without a worker."""

BURIAL: Final = EnvironmentSpec(name="burial", workers=1, threads=4, shared=True)
"""One worker with 4 threads; scenarios on it replay and purge each other's dead letters unless they take care."""

RECORDED: Final = EnvironmentSpec(name="recorded", workers=1, threads=32, grace_s=4, stored=True, shared=True)
"""One worker with a store and a thread for each scenario: most hold a run while they wait for the next to start."""

RECORDED_PROCESSES: Final = EnvironmentSpec(
    name="recorded processes", workers=1, processes=4, grace_s=4, stored=True, shared=True
)
LONG_GRACE: Final = EnvironmentSpec(name="long grace", grace_s=20, lease_s=5, stored=True)
BRIEFLY_UNKNOWN: Final = EnvironmentSpec(name="briefly unknown", unknown_task_grace_s=2)
BRIEF_PAUSES: Final = EnvironmentSpec(name="brief pauses", requeue_pause_s=0.2)
SHORT_GRACE: Final = EnvironmentSpec(name="short grace", grace_s=8)
SHORT_LEASE: Final = EnvironmentSpec(name="short lease", lease_s=5)
STORED: Final = EnvironmentSpec(name="stored", lease_s=5, grace_s=2, stored=True)
OUTBOX: Final = EnvironmentSpec(name="outbox", lease_s=5, grace_s=2, stored=True, outbox=True)
"""One whose sends are rows in an application's transactions."""

LONG_LEASE: Final = EnvironmentSpec(name="long lease", grace_s=2, stored=True)
FORGETFUL: Final = EnvironmentSpec(name="forgetful", lease_s=5, grace_s=2, stored=True, result_ttl_s=1)
"""One whose records are kept for a second after their end."""

SHORT_GRACE_AND_LEASE: Final = EnvironmentSpec(name="short grace and lease", grace_s=2, lease_s=5)

QUORUM: Final = EnvironmentSpec(name="quorum", queue_type="quorum")
QUORUM_READ: Final = EnvironmentSpec(name="quorum read", queue_type="quorum", new=True)
"""For a scenario that reads off the wire which queues its worker declares: another one would declare them before."""

QUORUM_STORED: Final = EnvironmentSpec(name="quorum stored", queue_type="quorum", lease_s=5, stored=True)

Refusal = Callable[[Target], str]


def everywhere(target: Target) -> str:
    """Keep no target out."""
    return ""


def with_processes(target: Target) -> str:
    """Keep out targets whose worker can't be killed."""
    return "its workers are threads of the process that sends" if target.in_process else ""


def with_a_server(target: Target) -> str:
    """Keep out targets whose broker can't be away."""
    if target.in_process:
        return "its broker is the process that sends"
    return "" if target.place is not None else "its broker has no host and port"


def with_marks(target: Target) -> str:
    """Keep out targets without attempt marks."""
    if target.address.engine == "inline":
        return "nothing is delivered twice where nothing outlives the process"
    return "" if target.keeps_marks or target.store else "it has no attempt marks without TASKBRIDGE_STORE=redis://..."


def with_records(target: Target) -> str:
    """Keep out targets without records."""
    if target.in_process or target.keeps_marks or target.store:
        return ""
    return "it has no records without TASKBRIDGE_STORE=redis://..."


def with_records_and_cron(target: Target) -> str:
    """Keep out targets without records, and all where no cron expression can be read."""
    missing = "cronsim is not installed: pip install 'taskbridge-queue[cron]'"
    return with_records(target) or ("" if find_spec("cronsim") is not None else missing)


def with_processes_and_marks(target: Target) -> str:
    """Keep out targets whose worker can't be killed, or without attempt marks."""
    return with_processes(target) or with_marks(target)


def with_queue_types(target: Target) -> str:
    """Keep out targets whose queues have no types, and those without a host and port."""
    return with_a_server(target) if target.address.broker == "amqp" else "its queues have no type"


def with_readable_queue_types(target: Target) -> str:
    """Keep out targets whose queues have no types, and those where nobody can read what clients declare."""
    return with_queue_types(target) or ("what clients declare is encrypted" if target.is_encrypted else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A way to see whether promises are kept.

    Attributes:
        name: The function's, with the environment's if it runs on several.
        title: The promise, as a sentence.
        rules: The names of the rules that it proves.
        environment: Where it runs.
        run: What it does; it raises `ContractFailure` if a promise is broken.
        refusal: Says why it can't be run on a target; an empty text if it can.
    """

    name: str
    title: str
    rules: tuple[str, ...]
    environment: EnvironmentSpec
    run: Callable[[Harness], None]
    refusal: Refusal


_scenarios: Final[dict[str, Scenario]] = {}

SCENARIOS: Final[Mapping[str, Scenario]] = _scenarios
"""Every scenario by name; `taskbridge.contract.scenarios` fills it."""


def scenario(
    *rules: str, on: tuple[EnvironmentSpec, ...] = (ORDINARY,), where: Refusal = everywhere
) -> Callable[[Callable[[Harness], None]], Callable[[Harness], None]]:
    """Return a decorator that adds a function to the table; the first line of its docstring is the promise.

    Args:
        *rules: The names of the rules that it proves.
        on: The environments that it runs on, each time.
        where: Says why it can't be run on a target.
    """
    unknown = set(rules) - set(RULES)
    if unknown or not rules:
        raise ValueError(f"there are no rules {sorted(unknown)}")

    def add(run: Callable[[Harness], None]) -> Callable[[Harness], None]:
        title = (run.__doc__ or "").partition("\n")[0].rstrip(".")
        for environment in on:
            name = run.__name__ if len(on) == 1 else f"{run.__name__}@{environment.name}"
            if name in _scenarios:
                raise ValueError(f"there is a scenario {name!r} already")
            _scenarios[name] = Scenario(
                name=name, title=title, rules=rules, environment=environment, run=run, refusal=where
            )
        return run

    return add
