"""The matrix: every rule on every target, with what came of its scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from taskbridge import TaskBridgeError
from taskbridge.contract import scenarios
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import SCENARIOS, Scenario
from taskbridge.contract.rules import RULES
from taskbridge.contract.suite import PARALLEL, PATIENCE_S, Result, run_suite
from taskbridge.contract.target import Target

assert scenarios.NAMES, "importing the package is what fills the table"


class UnknownRule(TaskBridgeError, LookupError):
    """A rule was asked for that there isn't."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"there is no rule {rule!r} (there are {', '.join(RULES)})")
        self.rule = rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Every rule on every target.

    Attributes:
        targets: The targets' names, in the order in which they were asked for.
        rules: The rules' names.
        results: What came of the scenarios.
    """

    targets: tuple[str, ...]
    rules: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no scenario failed."""
        return not any(map(_has_failed, self.results))

    def render(self) -> str:
        """Return the matrix as a table of text, and below it why cells failed."""
        width = max(6, *map(len, self.targets))
        rows: list[tuple[str, str, Sequence[str]]] = [("", "", self.targets)]
        rows += [(rule, RULES[rule], [self._cell(rule, each)["mark"] for each in self.targets]) for rule in self.rules]
        lines = [
            f"{rule:<4} {'  '.join(mark.ljust(width) for mark in marks)}  {text}".rstrip() for rule, text, marks in rows
        ]
        failures = [result for result in self.results if _has_failed(result)]
        passed = sum(result.outcome == "passed" for result in self.results)
        lines.append(f"\n{passed} scenarios passed, {len(failures)} failed, on {len(self.targets)} targets")
        return "\n".join([*lines, *(f"\n{each.target}: {each.scenario}\n{each.why}" for each in failures)])

    def as_json(self) -> dict[str, Any]:
        """Return the matrix as plain data, for `json.dumps`."""
        cells = [self._cell(rule, target) for rule in self.rules for target in self.targets]
        return {"ok": self.ok, "targets": list(self.targets), "cells": cells}

    def _cell(self, rule: str, target: str) -> dict[str, Any]:
        """Return what came of a rule on a target.

        Its mark is `ok`, `FAIL`, `n/a` if no scenario can be run there, `-` if there is none; `why` is the first reason
        for one of the two in the middle.
        """
        own = [each for each in self.results if each.target == target and rule in SCENARIOS[each.scenario].rules]
        if telling := [each for each in own if _has_failed(each)]:
            mark = "FAIL"
        elif any(each.outcome == "passed" for each in own):
            mark = "ok"
        else:
            mark, telling = ("n/a" if own else "-"), own
        return {
            "rule": rule,
            "target": target,
            "mark": mark,
            "seconds": round(sum(each.seconds for each in own), 2),
            "scenarios": [each.scenario for each in own],
            "why": next((f"{each.scenario}: {each.why}" for each in telling), ""),
        }


def _has_failed(result: Result) -> bool:
    return result.outcome in ("failed", "crashed")


def scenarios_of(rule: str) -> list[Scenario]:
    """Return the scenarios that show whether a rule is kept.

    Raises:
        UnknownRule: There is no such rule.
    """
    if rule not in RULES:
        raise UnknownRule(rule)
    return [scenario for scenario in SCENARIOS.values() if rule in scenario.rules]


def verify(
    urls: Sequence[str],
    rules: Iterable[str] | None = None,
    *,
    progress: Callable[[str], object] = lambda text: None,
    patience_s: float = PATIENCE_S,
    parallel: int = PARALLEL,
) -> Matrix:
    """Run the contract on targets, one after another, and return the matrix.

    Workers are started as processes of this machine, and stopped. What is made on a server has a name of its own, and
    is removed.

    Args:
        urls: The targets, such as `celery+redis://localhost:6379/0`.
        rules: The names of the rules to prove; all if None.
        progress: Told in a line what has been done, from several threads.
        patience_s: How long something may take that should happen at once.
        parallel: How many scenarios with environments of their own run at a time.

    Raises:
        SettingsError: A URL is wrong.
        UnknownRule: There is no such rule.
        NotInstalledError: An engine or a client library is missing.
        BrokerUnavailable: A broker doesn't answer.
    """
    wanted = tuple(RULES) if rules is None else tuple(rules)
    chosen_names = {scenario.name for rule in wanted for scenario in scenarios_of(rule)}
    targets = [Target.of(url).checked() for url in urls]
    chosen = [scenario for scenario in SCENARIOS.values() if scenario.name in chosen_names]
    told = count(1)
    results: list[Result] = []

    def done(result: Result) -> None:
        how = f"{result.outcome} ({result.seconds:.1f} s)"
        progress(f"{next(told)}/{len(chosen) * len(targets)} {result.target} {result.scenario}: {how}")

    pace = Pace.of_this_run()
    progress(f"{pace}")
    for target in targets:
        results += run_suite(target, chosen, done=done, patience_s=patience_s, parallel=parallel, pace=pace)
    names = tuple(dict.fromkeys(target.name for target in targets))
    return Matrix(targets=names, rules=wanted, results=tuple(results))
