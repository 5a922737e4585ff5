"""What the page on scaling says of flows is what was measured."""

from __future__ import annotations

import json

from benchmarks.flows import OURS, THEIRS, page
from tests.docs.pages import DOCS

RESULT = json.loads((DOCS / "flows.json").read_text(encoding="utf-8"))


def test_the_page_has_the_figures_that_were_measured() -> None:
    assert page(RESULT) in (DOCS / "scaling.md").read_text(encoding="utf-8"), "run python -m benchmarks.flows --render"


def test_they_were_measured_at_full_size_beside_both_engines() -> None:
    assert (RESULT["sizes"]["members"], RESULT["sizes"]["beside"]) == (100_000, 10_000)
    assert {each.name for each in (*OURS, *THEIRS)} == RESULT["figures"].keys()
