"""Measures rows: in each round all contenders take their turn, so that what disturbs one disturbs the others too."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import MeasuringFailed
from benchmarks.results import Measurement
from benchmarks.rows.base import Row

Figures = dict[tuple[str, str], list[float]]
"""The rounds' values, by contender and metric."""


def measure(
    place: Place, rows: Iterable[Row], plan: Plan, say: Callable[[str], None]
) -> tuple[list[Measurement], Mapping[str, str]]:
    """Return all figures of these rows, and who could not be measured and why."""
    found: list[Measurement] = []
    missing: dict[str, str] = {}
    for row in rows:
        say(f"{row.key} ...")
        started = time.monotonic()
        found += _row(place, row, plan, missing)
        say(f"  {time.monotonic() - started:.0f} s")
    return found, missing


def _row(place: Place, row: Row, plan: Plan, missing: dict[str, str]) -> list[Measurement]:
    figures: Figures = defaultdict(list)
    out: set[str] = set()
    rounds = {contender.name: row.rounds(plan, contender) for contender in row.contenders if place.has(contender)}
    for number in range(max(rounds.values())):
        for contender in row.contenders:
            if contender.name in out or number >= rounds.get(contender.name, 0):
                continue
            try:
                values = row.measure(place, contender, plan)
            except MeasuringFailed as exc:
                missing[f"{row.key}: {contender.name}"] = str(exc)
                out.add(contender.name)
                continue
            for metric in row.metrics:
                figures[contender.name, metric].append(values[metric])
    return [
        Measurement(row=row.key, contender=name, metric=metric, values=tuple(values))
        for (name, metric), values in figures.items()
        if name not in out
    ]
