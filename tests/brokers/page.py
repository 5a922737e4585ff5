"""Keeps what came of the runs, and writes it into the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from tests.brokers.runs import ROOT, RUNS, Outcome, Run
from tests.programs import Origin

PAGE: Final = ROOT / "docs/brokers.md"
KEPT: Final = ROOT / "docs/brokers.json"

_BEGIN: Final = "<!-- matrix: written by ./scripts/brokers --write -->"
_END: Final = "<!-- end of the matrix -->"

Rows = dict[str, dict[str, Any]]
"""By a run's name: its title, and its outcomes, each with its date."""


def kept(file: Path = KEPT) -> Rows:
    """Return what was kept of earlier runs."""
    rows: Rows = json.loads(file.read_text()) if file.exists() else {}
    return rows


def enter(rows: Rows, run: Run, outcome: Outcome, versions: Mapping[Origin, str]) -> None:
    """Put what came of a run into the rows, in the place of what the same release of the engine came to before."""
    title, date = run.title(versions), str(datetime.now(timezone.utc).date())
    row = rows.setdefault(run.name, {"title": title, "outcomes": []})
    if row["title"] != title:  # of another version of the server
        row["outcomes"] = []
    others = [each for each in row["outcomes"] if each["engine"] != outcome.engine]
    found = [*others, {**asdict(outcome), "date": date}]
    row.update(title=title, outcomes=sorted(found, key=lambda each: each["engine"]))


def write(rows: Rows, page: Path = PAGE, file: Path = KEPT) -> None:
    """Keep the rows, and put them into the page."""
    text = page.read_text()
    found = re.search(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", text, re.DOTALL)
    assert found is not None, f"{page} has no place for the matrix"
    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    page.write_text(text[: found.start()] + f"{_BEGIN}\n\n{rendered(rows)}\n{_END}" + text[found.end() :])


def rendered(rows: Rows) -> str:
    """Return the matrix as Markdown."""
    lines = ["| broker | engine | scenarios that passed | date |", "|---|---|---|---|"]
    failures: list[str] = []
    for name in (each for each in RUNS if each in rows):
        row = rows[name]
        for outcome in row["outcomes"]:
            engine, failed = outcome["engine"].capitalize(), outcome["failed"]
            lines.append(f"| {row['title']} | {engine} | {_count(outcome)} | {outcome['date']} |")
            failures += [f"- {row['title']}, {engine}: `{test}`: {_plain(why)}" for test, why in failed.items()]
    missing = [f"`{name}`" for name in RUNS if name not in rows]
    if failures:
        lines += ["", "What did not pass:", "", *failures]
    if missing:
        lines += ["", f"Not run for this page: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _count(outcome: Mapping[str, Any]) -> str:
    passed, failed = outcome["passed"], len(outcome["failed"])
    return f"all {passed}" if not failed else f"{passed} of {passed + failed}"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
