"""The home page and the page that compares have the figures that were measured, and compare in both directions."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from tests.docs.pages import DOCS

HOME = DOCS / "index.md"


def written_by() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "write_figures.py"))


@pytest.mark.parametrize(("name", "tables"), [("index.md", 2), ("how-it-compares.md", 1)])
def test_its_figures_are_those_that_were_measured(name: str, tables: int) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")

    assert page.count(", by docs/write_figures.py: begin -->") == tables
    assert written_by()["written"](page) == page, "run python docs/write_figures.py"


def test_its_table_of_guarantees_has_rows_that_the_engines_keep_too() -> None:
    home = written_by()
    cells = home["load"](DOCS / "guarantees.json")
    raw = [name for engine in ("celery", "dramatiq") for name in (f"{engine}+redis:raw", f"{engine}+amqp:raw")]

    kept = [row for row in home["GUARANTEES"] if all(cells[row, column].outcome.kept for column in raw)]

    assert len(kept) >= 2


def test_it_shows_both_engines_side_by_side_and_only_the_url_differs() -> None:
    page = HOME.read_text(encoding="utf-8")
    sides = page.split(":::{container} side\n")[1:]

    commands = [side.split("```shell\n")[1].split("```")[0] for side in sides]

    assert len(commands) == 2
    assert commands[0] != commands[1]
    assert commands[0].replace("celery+", "dramatiq+") == commands[1]
