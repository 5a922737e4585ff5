"""What was measured: frozen, and the same in memory and in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One figure of one contender in one row.

    Attributes:
        row: The row's key.
        contender: What the contender is called in that row.
        metric: Which figure.
        values: It, in each round, in order: the contenders take turns, so the same places were measured together.
    """

    row: str
    contender: str
    metric: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def spread(self) -> float:
        """How far the rounds are apart: the highest less the lowest, as a part of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one run of the benchmark found.

    Attributes:
        date: The day, as in ISO 8601.
        machine: What it ran on, by name.
        versions: What was measured, by name.
        plan: How much was measured, by name.
        measurements: All figures.
        missing: Contenders that could not be measured, and why.
        left_out: Environments (`Contender.home`) that were not there, so that who lives in them was not measured.
    """

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    plan: Mapping[str, float]
    measurements: tuple[Measurement, ...]
    missing: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def find(self, row: str, contender: str, metric: str) -> Measurement | None:
        """Return a figure; None if it was not measured."""
        wanted = (row, contender, metric)
        return next((each for each in self.measurements if (each.row, each.contender, each.metric) == wanted), None)

    def of_row(self, row: str) -> Sequence[Measurement]:
        """Return the figures of a row."""
        return [each for each in self.measurements if each.row == row]

    def dumps(self) -> str:
        """Return it as JSON, for people too."""
        return json.dumps(asdict(self), indent=1) + "\n"


def loads(text: str) -> Result:
    """Return a result that `dumps` wrote."""
    data: dict[str, Any] = json.loads(text)
    read: list[dict[str, Any]] = data.pop("measurements")
    found = [Measurement(**dict(each, values=tuple(each["values"]))) for each in read]
    left_out: list[str] = data.pop("left_out", [])
    return Result(**data, measurements=tuple(found), left_out=tuple(left_out))


def ratio(ours: Measurement, theirs: Measurement) -> float:
    """Return the median of the rounds' ratios: what disturbs a round disturbs both, and falls out."""
    pairs = zip(ours.values, theirs.values, strict=False)
    return median(one / other for one, other in pairs if other)
