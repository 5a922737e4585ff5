"""What a row of the table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.contenders import Contender
from benchmarks.place import Place
from benchmarks.plan import Plan

Measure = Callable[[Place, Contender, Plan], Mapping[str, float]]
"""Measures a contender once, and returns its figures by metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One thing that is measured of several contenders, which take turns.

    Attributes:
        key: What `--only` calls it.
        title: What the table calls it.
        contenders: Who takes part, in this order in each round.
        measure: How.
        metrics: Which of the figures are kept.
        more_is_better: Whether a higher figure is the better one.
        is_long: Whether it has the smaller number of rounds.
        is_once: Whether it has one round only, however long that takes.
        in_guard: Whether its ratios are stable enough, on a busy machine, for the guard's quick form.
        family: What grows, in a row about how cost grows; the rows of a family are one table, on a page of its own.
        size: How much of that there is in this row.
    """

    key: str
    title: str
    contenders: tuple[Contender, ...]
    measure: Measure
    metrics: tuple[str, ...]
    more_is_better: bool = False
    is_long: bool = False
    is_once: bool = False
    in_guard: bool = False
    family: str = ""
    size: str = ""

    @property
    def is_extra(self) -> bool:
        """Whether it is about how cost grows."""
        return bool(self.family)

    def rounds(self, plan: Plan, contender: Contender) -> int:
        """Return how often a contender is measured."""
        if self.is_once:
            return 1
        if contender.is_peer:
            return 1 if self.is_long else plan.peer_rounds
        return plan.long_rounds if self.is_long else plan.rounds
