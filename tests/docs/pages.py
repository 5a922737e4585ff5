"""Finds and runs the Python in the documentation.

The blocks that are fenced as `python` in a page are run from top to bottom, as one module in a process of its own,
with warnings as errors. What a block prints must stand in the `output` block right after it, and a block that is not
to be run must stand right under a comment that says why: `<!-- not run: it needs a server -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
TIMEOUT_S: Final = 180.0

PAGES: Final = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in path.parts
)

NEEDS: Final = {
    "docs/coming-from-celery.md": "celery",
    "docs/coming-from-dramatiq.md": "dramatiq",
    "docs/guide/django-commit.md": "django",
    "docs/guide/sqlalchemy-commit.md": "fastapi",
}
"""Pages whose blocks import an engine or a framework."""

VARIABLES: Final = {"README.md": {"TASKBRIDGE_URL": "inline://?threads=0"}}
"""What a page's reader has set before its Python is run."""

_FENCE: Final = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`]*)$")
_NOT_RUN: Final = re.compile(r"<!-- not run: \S.{5,} -->")
_MARK: Final = "~~ end of block {} ~~"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        info: What stands after the opening fence, such as `python`.
        first: The line of the opening fence; 0 is the page's first line.
        last: The line of the closing fence.
        text: The lines in between.
        above: The line above the opening fence.
    """

    info: str
    first: int
    last: int
    text: str
    above: str

    @property
    def is_run(self) -> bool:
        return self.info == "python" and not _NOT_RUN.fullmatch(self.above)


def blocks_of(page: str) -> list[Block]:
    return list(_blocks((ROOT / page).read_text(encoding="utf-8").splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(lines):
        found = _FENCE.match(line)
        if found is None:
            continue
        if opened is None:
            opened = number, found["fence"], found["info"].strip()
        elif line.strip() == opened[1]:
            first, _, info = opened
            yield Block(
                info=info,
                first=first,
                last=number,
                text="\n".join(lines[first + 1 : number]),
                above=lines[first - 1] if first else "",
            )
            opened = None
    assert opened is None, f"the block that begins on line {opened[0] + 1} has no end" if opened else ""


def words_of(page: str) -> set[str]:
    """Return the words that stand as code in the first column of a page's tables."""
    rows = re.findall(r"^\| *([^|]*)\|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {word for row in rows for code in re.findall(r"`([^`]*)`", row) for word in re.findall(r"\w+", code)}


def outputs(page: str) -> dict[int, str]:
    """Return what each block that is run should print, by the block's place among them."""
    blocks = blocks_of(page)
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    expected: dict[int, str] = {}
    run = -1
    for position, block in enumerate(blocks):
        if block.is_run:
            run += 1
            expected[run] = ""
        elif block.info == "output":
            before = blocks[position - 1] if position else None
            assert before is not None, f"{page}:{block.first + 1}: output of nothing"
            assert before.is_run, f"{page}:{block.first + 1}: output of a block that is not run"
            assert not "".join(lines[before.last + 1 : block.first]).strip(), f"{page}:{block.first + 1}: too far below"
            expected[run] = block.text
    return expected


def script_of(page: str) -> str:
    """Return the page as a module: every line of code on its own line of the page, all others empty."""
    lines = [""] * (len((ROOT / page).read_text(encoding="utf-8").splitlines()) + 1)
    run = 0
    for block in blocks_of(page):
        if block.is_run:
            lines[block.first + 1 : block.last] = block.text.splitlines()
            lines[block.last] = f"print({_MARK.format(run)!r}, flush=True)"
            run += 1
    return "\n".join(lines) + "\n"


def run_page(page: str, folder: Path) -> dict[int, str]:
    """Run a page's blocks, and return what each printed.

    Raises:
        AssertionError: It failed; the traceback's line numbers are the page's own.
    """
    path = folder / f"{Path(page).stem.replace('-', '_')}.py"
    path.write_text(script_of(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=folder,
        env=_environment() | VARIABLES.get(page, {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{page}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    printed: dict[int, str] = {}
    rest = done.stdout
    while rest:
        text, mark, rest = rest.partition(_MARK.format(len(printed)) + "\n")
        assert mark, f"{page}: printed after its last block:\n{text}"
        printed[len(printed)] = text.rstrip("\n")
    return printed


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("TASKBRIDGE_")}
