"""On a narrow screen, a wide table is a list whose entries name their columns; what fits side by side stays a table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import DOCS

PAGE = """\
# Tables

| option | default | what it means, in some words that need room |
|---|---|---|
| `hard_time_limit` | | when a run that goes on after its `time_limit` is ended with its process |

| | µs | x |
|---|--:|--:|
| taskbridge | 82.4 | 1.00 |
"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, built = tmp_path_factory.mktemp("pages"), tmp_path_factory.mktemp("site")
    (folder / "index.md").write_text(PAGE, encoding="utf-8")
    shutil.copytree(DOCS / "_static", folder / "_static")
    shutil.copy(DOCS / "conf.py", folder)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(folder), str(built)]
    subprocess.run(command, check=True, timeout=300)
    assert (built / "_static" / "pages.css").exists()
    return (built / "index.html").read_text(encoding="utf-8")


def test_only_what_does_not_fit_is_stacked(html: str) -> None:
    tables = re.findall(r'<table class="([^"]*)"', html)

    assert ["stacked" in classes.split() for classes in tables] == [True, False]


def test_a_cell_names_its_column_unless_it_is_empty(html: str) -> None:
    columns = re.findall(r'<td[^>]*data-column="([^"]*)"', html)

    assert columns == ["option", "what it means, in some words that need room", "", "µs", "x"]
    assert len(re.findall(r"<td", html)) == 6


def test_pages_load_the_style_that_stacks_them(html: str) -> None:
    assert re.search(r'href="_static/pages\.css', html)
    assert "attr(data-column)" in (DOCS / "_static" / "pages.css").read_text(encoding="utf-8")


def test_every_table_of_the_pages_has_as_many_cells_in_each_row_as_columns() -> None:
    for page in DOCS.rglob("*.md"):
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            widths = {len(re.sub(r"\\\||`[^`]*`", "", row).strip("|\n").split("|")) for row in table.splitlines()}
            assert len(widths) == 1, f"{page.relative_to(DOCS)}: {table[:200]}"
