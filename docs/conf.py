"""How the site is built: `python -m sphinx -W --keep-going -b html docs docs/_build/html`. Nothing is fetched."""

from __future__ import annotations

import os
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.errors import ExtensionError

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


def setup(app: Sphinx) -> None:
    os.environ["COLUMNS"] = "100"  # how wide argparse writes
    app.add_directive("command-help", CommandHelp)
