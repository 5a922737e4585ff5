"""Writes what came of Django's tests into the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from tests.django.suite.left_out import LEFT_OUT

_PAGE: Final = Path(__file__).parents[3] / "docs/django-tasks.md"
_BEGIN: Final = "<!-- results: written by `python -m tests.django.suite --write` -->"
_END: Final = "<!-- end of the results -->"


def write(counts: Mapping[str, tuple[int, int]], version: str) -> None:
    """Put the results in the page, in the place of those that are there.

    `counts` are, by target, how many tests ran, and how many of them failed.
    """
    text = _PAGE.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", text, re.DOTALL)
    assert found is not None, f"{_PAGE} has no place for the results"
    lines = [f"Run on {datetime.now(timezone.utc).date()} with Django {version}.", "", "| target | passed | failed |"]
    lines += ["|---|---|---|"]
    lines += [f"| `{target}` | {ran - failed} of {ran} | {failed} |" for target, (ran, failed) in counts.items()]
    lines += [
        "",
        f"The {len(LEFT_OUT)} tests that don't apply:",
        "",
        "| module | class | test | why |",
        "|---|---|---|---|",
    ]
    for name, why in LEFT_OUT.items():
        module, case, test = name.split(".")
        lines.append(f"| `{module}` | `{case}` | `{test}` | It {why}. |")
    results = "\n".join(lines)
    _PAGE.write_text(f"{text[: found.start()]}{_BEGIN}\n\n{results}\n\n{_END}{text[found.end() :]}", encoding="utf-8")
