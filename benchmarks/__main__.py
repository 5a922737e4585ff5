"""The command line of the benchmark; `./scripts/bench` prepares what it needs and calls it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from benchmarks.goals import GOALS, Judged, judge
from benchmarks.machine import machine, versions
from benchmarks.measuring import measure
from benchmarks.place import Place
from benchmarks.plan import FULL, QUICK, Plan
from benchmarks.processes import ROOT
from benchmarks.render import markdown, replaced, text
from benchmarks.results import Result, loads
from benchmarks.rows.base import Row
from benchmarks.rows.table import ROWS
from benchmarks.scaling import SUMMED, sums, tables

_DOCS: Final = ROOT / "docs"
PAGES: Final = {
    "performance": [row for row in ROWS if not row.family],
    "scaling": [row for row in ROWS if row.family or row.key in SUMMED],
}
"""The rows of each page; it is written from one run of all of these."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code: 1 if the guard lets a ratio not pass, 2 for a wrong command line."""
    options = _parser().parse_args(argv)
    if options.write and options.only:
        _parser().error("a page is written from one run of all its rows: --write goes with --page, not with --only")
    rows = _rows(options)
    if options.render:
        for page in PAGES:
            _write(page, loads((_DOCS / f"{page}.json").read_text()))
        return 0
    result = _measured(rows, options)
    judged = judge(result, GOALS)
    print(text(result, rows, judged))
    if options.json:
        Path(options.json).write_text(result.dumps())
    if options.write:
        for page in PAGES if options.page is None else [options.page]:
            _write(page, result)
    return _guarded(rows, result, judged, options) if options.guard else 0


def _write(page: str, result: Result) -> None:
    """Write the generated parts of a page, and the figures that they are made of."""
    (_DOCS / f"{page}.json").write_text(result.dumps())
    file = _DOCS / f"{page}.md"
    parts = (
        [markdown(result, ROWS, judge(result, GOALS))]
        if page == "performance"
        else [sums(result), tables(result, ROWS)]
    )
    for part in parts:
        file.write_text(replaced(file.read_text(), part))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no peers; with --guard, few rows"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows only; a glob is allowed")
    parser.add_argument("--page", choices=PAGES, help="the rows of this page only")
    parser.add_argument(
        "--guard", action="store_true", help="exit with 1 if a ratio misses its goal past its tolerance"
    )
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with the peers' packages")
    parser.add_argument("--taskferry", metavar="PYTHON", help="one with taskferry's, which needs Python 3.12")
    parser.add_argument("--threadmill", metavar="PYTHON", help="one with threadmill's, which needs it too")
    parser.add_argument("--observed", metavar="PYTHON", help="one with taskbridge, Django, and OpenTelemetry's SDK")
    parser.add_argument("--json", metavar="FILE", help="write the result there, too")
    parser.add_argument(
        "--write", action="store_true", help="write the pages' tables, and what they are made of, docs/PAGE.json"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing: the pages from docs/PAGE.json")
    parser.add_argument("--rows", action="version", version="\n".join(row.key for row in ROWS), help="name the rows")
    return parser


def _rows(options: argparse.Namespace) -> list[Row]:
    wanted: Sequence[str] | None = options.only
    if wanted is not None:
        for each in wanted:
            if not any(fnmatch(row.key, each) for row in ROWS):
                _parser().error(f"no row is called {each!r}; there are {', '.join(row.key for row in ROWS)}")
        return [row for row in ROWS if any(fnmatch(row.key, each) for each in wanted)]
    if options.guard and options.quick:
        return [row for row in ROWS if row.in_guard]
    return list(ROWS if options.page is None else PAGES[options.page])


def _measured(rows: Sequence[Row], options: argparse.Namespace) -> Result:
    plan: Plan = QUICK if options.quick else FULL
    named = {home: getattr(options, home) for home in ("peers", "taskferry", "threadmill", "observed")}
    pythons = {home: python for home, python in named.items() if python is not None}
    with Place(pythons) as place:
        measurements, missing = measure(place, rows, plan, lambda line: print(line, file=sys.stderr, flush=True))
    return Result(
        date=datetime.now(timezone.utc).date().isoformat(),
        machine=machine(),
        versions=versions(pythons),
        plan=asdict(plan),
        measurements=tuple(measurements),
        missing=missing,
        left_out=tuple(home for home in named if home not in pythons),
    )


def _guarded(rows: Sequence[Row], result: Result, judged: Sequence[Judged], options: argparse.Namespace) -> int:
    failed = _failed(judged)
    if failed:  # what disturbs a machine may outlast a row, and what is slower stays slower
        doubted = [row for row in rows if any(each.goal.row == row.key for each in failed)]
        print(f"guard: measured again: {', '.join(row.key for row in doubted)}")
        failed = _failed(judge(_measured(doubted, options), [each.goal for each in failed]))
    if not judged:
        print("guard: nothing was compared")
    return 1 if failed or not judged or result.missing else 0


def _failed(judged: Sequence[Judged]) -> list[Judged]:
    """Return the goals that the guard lets not pass, and say which these are."""
    failed = [each for each in judged if not each.passes]
    for each in failed:
        goal = each.goal
        who = goal.ours if goal.theirs is None else f"{goal.ours} to {goal.theirs}"
        print(f"guard: {goal.row}, {goal.metric}: {who} is {each.found:.3g}, not {goal.text}")
    return failed


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
