"""The contract has teeth: with a rule broken, its scenario fails."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskbridge.contract.matrix import scenarios_of
from taskbridge.contract.preloading import without_settings
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.rules import RULES
from tests.forking import run_breaker
from tests.mutants.applying import ROOT, RULE, environment
from tests.mutants.catalogue import MUTANTS, Mutant, mutants_of

PATIENCE_S = 6
LONGEST_S = 900
"""What hangs is ended then: more than all scenarios of a target take beside others."""

Urls = Callable[[str], str]
Stores = Callable[[str], str | None]


def _is_possible(mutant: Mutant) -> bool:
    modules = {"celery": "celery", "dramatiq": "dramatiq", "redis": "redis", "amqp": "pika"}
    needed = [modules[word] for word in mutant.target.split("+") if word in modules]
    if SCENARIOS[mutant.scenario].environment.stored and mutant.target.endswith("+amqp"):
        needed.append("redis")
    return all(importlib.util.find_spec(module) is not None for module in needed)


POSSIBLE = {name: mutant for name, mutant in MUTANTS.items() if _is_possible(mutant)}
"""The mutants whose engine and client library are installed."""


def run_contract(url: str, *scenarios: str, store: str | None, mutant: str = "") -> dict[str, Any]:
    env = without_settings()
    if store is not None:
        env["TASKBRIDGE_STORE"] = store
    env |= environment(RULE, mutant)
    command = ("tests.run_scenarios", url, *scenarios, "--patience", str(PATIENCE_S))
    done = run_breaker(url.partition("+")[0].partition(":")[0], *command, env=env, cwd=ROOT, timeout_s=LONGEST_S)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(scenarios), done.stderr
    return {result["scenario"]: result for result in results}


@contextmanager
def _one_at_a_time(folder: Path, kind: str) -> Generator[None]:
    """Let no other process of this run be in here for the same kind: `folder` is one that they share."""
    with (folder / f"{kind}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go of it


@pytest.mark.parametrize("place", sorted({each.target for each in POSSIBLE.values()}))
def test_the_unbroken_product_passes_as_quickly(
    place: str, url_of: Urls, store_of: Stores, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Else a mutant could be found out by impatience alone. What fails in company runs again alone, as mutants do."""
    scenarios = sorted({mutant.scenario for mutant in POSSIBLE.values() if mutant.target == place})
    url, store = url_of(place), store_of(place)
    kind = "unbroken-servers" if place.endswith(("redis", "amqp")) else "unbroken"
    with _one_at_a_time(tmp_path_factory.getbasetemp().parent, kind):  # each runs many workers
        results = run_contract(url, *scenarios, store=store)
        slow = [name for name, result in results.items() if result["outcome"] != "passed"]
        alone = [run_contract(url, name, store=store)[name] for name in slow]
    failed = [result["why"] for result in alone if result["outcome"] != "passed"]
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("name", POSSIBLE)
def test_a_broken_rule_is_found_out(name: str, url_of: Urls, store_of: Stores) -> None:
    mutant = MUTANTS[name]
    store = store_of(mutant.target)
    result = run_contract(url_of(mutant.target), mutant.scenario, store=store, mutant=name)[mutant.scenario]
    assert result["outcome"] == "failed", f"{mutant.title}: {result}"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_breaks_a_rule_that_its_scenario_proves(name: str) -> None:
    assert MUTANTS[name].rule in SCENARIOS[MUTANTS[name].scenario].rules


def test_every_rule_has_a_scenario_and_a_mutant() -> None:
    assert [rule for rule in RULES if not scenarios_of(rule)] == []
    assert [rule for rule in RULES if not mutants_of(rule)] == []


APPLIES_EACH = """
import importlib, os, pkgutil, sys
import taskbridge
from tests.mutants.catalogue import MUTANTS

for module in pkgutil.walk_packages(taskbridge.__path__, "taskbridge."):  # once, not in each fork
    if "main" not in module.name and not module.name.startswith(("taskbridge.contract.app", "taskbridge.django.")):
        try:
            importlib.import_module(module.name)
        except ImportError:
            pass
for name in sys.argv[1:]:
    if os.fork() == 0:  # for what one breaks, the next must find whole
        try:
            MUTANTS[name].apply()
        except Exception as exc:
            print(f"{name}: {exc!r}", flush=True)
        os._exit(0)
    os.wait()
"""


def test_what_a_mutant_breaks_is_there() -> None:
    """Else a renamed function makes it a mutant that can't be made, which only its own test would tell."""
    env = {**without_settings(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", APPLIES_EACH, *POSSIBLE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONGEST_S, check=True)
    assert done.stdout == ""
