"""The pages keep what they promise: their code runs, their lists are complete, their commands exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import NEEDS, PAGES, blocks_of, outputs, run_page

RUN = [page for page in PAGES if page not in NEEDS and any(block.is_run for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) == outputs(page)


def test_most_pages_have_blocks_that_run() -> None:
    assert len(RUN) >= 8, RUN
    assert "README.md" in RUN


@pytest.mark.parametrize("page", PAGES)
def test_python_is_fenced_as_python(page: str) -> None:
    known = {"python", "output", "shell", "text", "toml", "ini", "yaml", "{toctree}", "{eval-rst}"}

    assert {block.info for block in blocks_of(page)} <= known
