"""The pages about Django and SQLAlchemy: their blocks run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import NEEDS, outputs, run_page


@pytest.mark.parametrize("page", [page for page, needed in NEEDS.items() if needed in ("django", "fastapi")])
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) == outputs(page)
