"""Results: the cells that were measured, in a JSON file, so that one can be measured again alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.guarantees import rows as _rows  # fills the table
from benchmarks.guarantees.columns import COLUMNS, Column
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import ROWS, Row

assert _rows.__all__

FILE: Final = "guarantees.json"
"""The file's name in the folder of the documentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A row in a column, as it was measured.

    Attributes:
        row: The row's name.
        column: The column's name.
        outcome: What came of it.
        measured_at: When, as `2026-11-23 23:40`, in UTC.
        took_s: How long measuring took.
        versions: Of what took part, by name.
    """

    row: str
    column: str
    outcome: Outcome
    measured_at: str
    took_s: float
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def command(self) -> str:
        """How to measure it again."""
        return f"python -m benchmarks.guarantees --row {self.row} --column {self.column}"


Cells = Mapping[tuple[str, str], Cell]
"""Cells by the names of row and column."""


def load(path: Path) -> dict[tuple[str, str], Cell]:
    """Return the cells of a file; none if it is not there."""
    if not path.exists():
        return {}
    cells: dict[tuple[str, str], Cell] = {}
    read: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for each in read:
        outcome: Any = Outcome(**each["outcome"])
        cell = Cell(**(each | {"outcome": outcome}))
        cells[cell.row, cell.column] = cell
    return cells


def save(path: Path, cells: Iterable[Cell]) -> None:
    """Write cells to a file, in the order of rows and columns; those of rows that are no more are left out."""
    by_place = {(cell.row, cell.column): cell for cell in cells}
    ordered = [by_place[place] for place in places() if place in by_place]
    text = json.dumps({"cells": [asdict(cell) for cell in ordered]}, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")


def places(rows: Iterable[Row] | None = None, columns: Iterable[Column] = COLUMNS) -> list[tuple[str, str]]:
    """Return the names of row and column of each cell, row by row."""
    chosen = list(columns)
    return [(row.name, column.name) for row in (ROWS.values() if rows is None else rows) for column in chosen]


def as_json(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Return cells as plain data, for `json.dumps`."""
    return [{**asdict(cell), "command": cell.command} for cell in cells]
