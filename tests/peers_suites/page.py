"""Writes what came of the suites into the documentation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from tests.peers_suites.differences import Comparison, reason_of
from tests.peers_suites.running import Outcome
from tests.peers_suites.suites import SUITES

PAGE: Final = Path(__file__).parents[2] / "docs/peers-suites.md"

_BEGIN: Final = "<!-- results: written by `python -m tests.peers_suites --write` -->"
_END: Final = "<!-- end of the results -->"


def write(comparisons: Sequence[Comparison], versions: Mapping[str, str]) -> None:
    """Put the results in the page, in the place of those that are there."""
    text = PAGE.read_text()
    found = re.search(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", text, re.DOTALL)
    assert found is not None, f"{PAGE} has no place for the results"
    PAGE.write_text(
        text[: found.start()] + _BEGIN + "\n\n" + rendered(comparisons, versions) + _END + text[found.end() :]
    )


def rendered(comparisons: Sequence[Comparison], versions: Mapping[str, str]) -> str:
    """Return the results as Markdown."""
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [
        f"Run on {datetime.now(timezone.utc).date()} with {shown}.",
        "",
        "| suite | stock: passed, failed, skipped | on taskbridge | worse | better |",
        "|---|---|---|---|---|",
    ]
    for each in comparisons:
        cells = (SUITES[each.suite].title, counts(each.stock), counts(each.ours), len(each.worse()), len(each.better()))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    missing = [suite.title for name, suite in SUITES.items() if name not in {each.suite for each in comparisons}]
    if missing:
        lines += ["", f"Not run for this page: {', '.join(missing)}."]
    lines += ["", "The tests that pass on the stock engine and not on taskbridge:", ""]
    lines += ["| suite | test | why |", "|---|---|---|"]
    for each in comparisons:
        lines += [f"| {SUITES[each.suite].title} | {_names(names)} | {reason} |" for reason, names in _by_reason(each)]
    return "\n".join(lines) + "\n\n"


def _by_reason(comparison: Comparison) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for name in comparison.worse():
        difference = reason_of(comparison.suite, name)
        grouped.setdefault("not explained" if difference is None else difference.reason, []).append(name)
    return list(grouped.items())


def _names(names: Sequence[str]) -> str:
    """Return tests by name, once each, with how many of their parametrised runs it is about."""
    count = Counter(name.rpartition("::")[2].partition("[")[0] for name in names)
    return ", ".join(f"`{name}`" + (f" (x {runs})" if runs > 1 else "") for name, runs in count.items())


def counts(outcomes: Mapping[str, Outcome]) -> str:
    """Return how many passed, failed and were skipped."""
    count = Counter(outcome.ending for outcome in outcomes.values())
    return f"{count['passed']}, {count['failed']}, {count['skipped']}"
