"""How the site is built: `python -m sphinx -W --keep-going -b html docs docs/_build/html`. Nothing is fetched."""

from __future__ import annotations

import os
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Final

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

from taskbridge import cli
from taskbridge._version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "taskbridge"
author = "taskbridge maintainers"
copyright = "taskbridge maintainers"  # noqa: A001  # Sphinx's name for it
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
root_doc = "index"

# Pages are Markdown. Headings are link targets (`[priority](semantics.md#p1)`), and a link to nowhere is an error.
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3

# The reference is taken from the docstrings, which are in Google's style.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
default_role = "code"  # docstrings say `name`, as Markdown does

html_theme = "furo"
html_title = f"taskbridge {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]


class CommandHelp(Directive):
    """`.. command-help::` shows what each command's `--help` prints."""

    def run(self) -> list[nodes.Node]:
        return [section for command in _commands(cli._parser()) for section in _help(command)]


def _commands(parser: ArgumentParser, name: str = "") -> Iterator[str]:
    """Yield a command and those below it, such as `dead` and `dead list`, in the order of its help."""
    yield name
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for word, below in action.choices.items():
                yield from _commands(below, f"{name} {word}".lstrip())


def _help(command: str) -> list[nodes.Node]:
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        cli.main([*command.split(), "--help"])
    if not printed.getvalue():
        raise ExtensionError(f"taskbridge {command} --help prints nothing")
    text = printed.getvalue().replace(f"{os.cpu_count()} here", "8 here").rstrip()
    name = f"taskbridge {command}".rstrip()
    section = nodes.section(ids=[name.replace(" ", "-")], names=[name])
    section += nodes.title(text=name)
    section += nodes.literal_block(text, text, language="text")
    return [section]


NARROW_PX: Final = 320
"""What a screen of 390 px has for a table, 349, less what the estimate of a table's width may lack."""


class Translator(HTML5Translator):
    """Marks the tables that are too wide for a narrow screen, and says at each cell what its column is called."""

    def visit_table(self, node: nodes.Element) -> None:
        if _least_px(node) > NARROW_PX:
            node["classes"].append("stacked")  # see _static/pages.css
        super().visit_table(node)

    def visit_entry(self, node: nodes.Element) -> None:
        super().visit_entry(node)
        row = node.parent
        if isinstance(row.parent, nodes.tbody) and node.astext().strip():
            name = _column_names(row.parent.parent)[row.index(node)]
            self.body[-1] = self.body[-1].replace("<td", f'<td data-column="{escape(name)}"', 1)


def _column_names(group: nodes.Element) -> list[str]:
    heads = list(group.findall(nodes.thead))
    width: int = group["cols"]
    return [entry.astext() for entry in heads[0][0].children] if heads else [""] * width


def _least_px(table: nodes.Element) -> float:
    """Return how wide a table is at least: the longest word of each column, and some words a line in one of text."""
    rows = [[entry.astext() for entry in row.children] for row in table.findall(nodes.row)]
    columns = list(zip(*rows, strict=True))
    padding_px, letter_px, of_text, letters_of_text = 16, 7.3, 30, 18
    widths = [max(max(map(len, cell.split()), default=0) for cell in column) for column in columns]
    texts = [letters_of_text if max(map(len, column)) > of_text else 0 for column in columns]
    return sum(padding_px + letter_px * max(pair) for pair in zip(widths, texts, strict=True))


def setup(app: Sphinx) -> None:
    os.environ["COLUMNS"] = "100"  # how wide argparse writes
    app.add_directive("command-help", CommandHelp)
    app.set_translator("html", Translator, override=True)
