"""The matrix: every rule on every target, with what came of its scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from taskbridge import TaskBridgeError
from taskbridge.contract import scenarios
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import SCENARIOS, Scenario
from taskbridge.contract.rules import RULES
from taskbridge.contract.suite import PARALLEL, PATIENCE_S, Result, run_suite
from taskbridge.contract.target import Target

Mark = Literal["ok", "FAIL", "n/a", "-"]

assert scenarios.NAMES, "importing the package is what fills the table"


class UnknownRule(TaskBridgeError, LookupError):
    """A rule was asked for that there isn't."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"there is no rule {rule!r} (there are {', '.join(RULES)})")
        self.rule = rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A rule on a target.

    Attributes:
        rule: The rule's name.
        target: The target's name, such as `celery+redis`.
        results: What came of its scenarios; empty if there is none yet.
    """

    rule: str
    target: str
    results: tuple[Result, ...]

    @property
    def mark(self) -> Mark:
        """`ok`, `FAIL`, `n/a` if no scenario can be run on the target, `-` if there is none."""
        outcomes = {result.outcome for result in self.results}
        if outcomes & {"failed", "crashed"}:
            return "FAIL"
        if "passed" in outcomes:
            return "ok"
        return "n/a" if outcomes else "-"

    @property
    def seconds(self) -> float:
        """How long its scenarios took, in all."""
        return sum(result.seconds for result in self.results)

    @property
    def why(self) -> str:
        """Why it failed, or is not applicable: the first scenario's reason."""
        wanted = ("failed", "crashed") if self.mark == "FAIL" else ("not applicable",) if self.mark == "n/a" else ()
        reasons = (f"{result.scenario}: {result.why}" for result in self.results if result.outcome in wanted)
        return next(reasons, "")


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
        return not self.failures

    @property
    def failures(self) -> list[Result]:
        """The scenarios that failed."""
        return [result for result in self.results if result.outcome in ("failed", "crashed")]

    def cell(self, rule: str, target: str) -> Cell:
        """Return a rule on a target."""
        results = (result for result in self.results if result.target == target)
        own = tuple(result for result in results if rule in SCENARIOS[result.scenario].rules)
        return Cell(rule=rule, target=target, results=own)

    def render(self) -> str:
        """Return the matrix as a table of text, and below it why cells failed."""
        widths = [max(len(target), 6) for target in self.targets]
        lines = [_row("", self.targets, widths, "")]
        for rule in self.rules:
            marks = [self.cell(rule, target).mark for target in self.targets]
            lines.append(_row(rule, marks, widths, RULES[rule]))
        lines += ["", self._summary()]
        lines += [f"\n{failure.target}: {failure.scenario}\n{failure.why}" for failure in self.failures]
        return "\n".join(lines)

    def _summary(self) -> str:
        outcomes = [result.outcome for result in self.results]
        failed = len(self.failures)
        return f"{outcomes.count('passed')} scenarios passed, {failed} failed, on {len(self.targets)} targets"

    def as_json(self) -> dict[str, Any]:
        """Return the matrix as plain data, for `json.dumps`."""
        cells = [self.cell(rule, target) for rule in self.rules for target in self.targets]
        return {
            "ok": self.ok,
            "targets": list(self.targets),
            "cells": [
                {
                    "rule": cell.rule,
                    "target": cell.target,
                    "mark": cell.mark,
                    "seconds": round(cell.seconds, 2),
                    "scenarios": [result.scenario for result in cell.results],
                    "why": cell.why,
                }
                for cell in cells
            ],
        }


def _row(head: str, cells: Sequence[str], widths: Sequence[int], text: str) -> str:
    shown = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{head:<4} {shown}  {text}".rstrip()


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
    targets = [Target.of(url) for url in urls]
    for target in targets:
        target.check()
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
