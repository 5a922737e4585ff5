"""The pages keep what they promise: their code runs, their lists are complete, their commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

import taskbridge
from taskbridge import cli, exceptions
from taskbridge.contract.rules import RULES
from taskbridge.declaration import OPTIONS
from taskbridge.hooks import HOOK_NAMES
from taskbridge.settings import SETTING_KEYS
from tests.docs.pages import DOCS, NEEDS, PAGES, ROOT, blocks_of, outputs, run_page

RUN = [page for page in PAGES if page not in NEEDS and any(block.is_run for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) == outputs(page)


def test_most_pages_have_blocks_that_run() -> None:
    assert len(RUN) >= 8, RUN
    assert "README.md" in RUN


@pytest.mark.parametrize("page", PAGES)
def test_python_is_fenced_as_python(page: str) -> None:
    directives = {"{toctree}", "{eval-rst}", "{literalinclude}"}
    known = {"python", "pyi", "output", "shell", "sql", "text", "toml", "ini", "yaml"} | directives

    assert {block.info.partition(" ")[0] for block in blocks_of(page)} <= known


def commands_of(page: str) -> list[list[str]]:
    """Return the arguments of each `taskbridge` command that a page shows."""
    texts = [block.text.replace("\\\n", " ") for block in blocks_of(page) if block.info == "shell"]
    lines = [line for text in texts for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[each.index("taskbridge") + 1 :] for each in words if "taskbridge" in each[:2]]


def test_the_commands_that_pages_show_exist() -> None:
    commands = [(page, command) for page in PAGES for command in commands_of(page)]

    assert len(commands) >= 8
    for page, command in commands:
        arguments = list(takewhile(lambda word: word not in ("&", ">"), command))
        try:
            cli._parser().parse_args(arguments)
        except taskbridge.TaskBridgeError as exc:
            pytest.fail(f"{page}: taskbridge {shlex.join(arguments)}: {exc}")


def first_cells(page: str) -> list[str]:
    """Return the words that stand as code in the first column of a page's tables, in order."""
    rows = re.findall(r"^\| *(`[^|]*`) *\|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]*)`", row)]


def test_every_setting_is_described_in_order() -> None:
    assert [word for word in first_cells("guide/settings.md") if word in SETTING_KEYS] == list(SETTING_KEYS)


def test_every_task_option_and_every_hook_is_described_in_order() -> None:
    words = first_cells("guide/tasks.md")

    assert [word for word in words if word in OPTIONS] == list(OPTIONS)
    assert [word for word in words if word in HOOK_NAMES] == list(HOOK_NAMES)


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    errors = set(dir(exceptions))

    assert [name for name in taskbridge.__all__ if name not in errors and f"taskbridge.{name}\n" not in text] == []


def test_every_rule_is_described_in_order() -> None:
    text = (DOCS / "semantics.md").read_text(encoding="utf-8")
    sections = re.split(r"^\(rule-(\w+)\)=\n", text, flags=re.MULTILINE)[1:]

    assert [name.upper() for name in sections[::2]] == list(RULES)


def test_every_rule_leads_to_its_scenarios() -> None:
    text = (DOCS / "semantics.md").read_text(encoding="utf-8")

    assert re.findall(r"\(scenarios\.md#(\w+)\)", text) == [name.lower() for name in RULES]


def test_every_public_name_has_its_signature_in_the_reference() -> None:
    reference = runpy.run_path(str(DOCS / "write_reference.py"))
    shown = re.findall(r"^(?:class |def |)(\w+)\b", (DOCS / "reference" / "index.md").read_text("utf-8"), re.MULTILINE)

    assert all(issubclass(kind, BaseException) for kind in reference["_errors"]())
    assert [name for name in taskbridge.__all__ if name not in shown] == []


@pytest.mark.parametrize(
    ("page", "script"),
    [("scenarios", "scenarios"), ("differences", "differences"), ("reference/index", "reference")],
)
def test_pages_that_are_written_are_up_to_date(page: str, script: str) -> None:
    command = [sys.executable, f"docs/write_{script}.py"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)

    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == written.stdout, (
        f"run python docs/write_{script}.py > docs/{page}.md"
    )


@pytest.mark.parametrize("page", ["README.md", "examples/README.md", "CONTRIBUTING.md"])
def test_links_between_files_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))

    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_diagrams_are_drawn_from_their_texts() -> None:
    texts = sorted((DOCS / "diagrams").glob("*.txt"))
    assert len(texts) >= 3
    for text in texts:
        drawing = runpy.run_path(str(DOCS / "draw.py"))["drawn"](text.read_text(encoding="utf-8"))
        assert text.with_suffix(".svg").read_text(encoding="utf-8") == drawing, "run: python docs/draw.py"
