"""How the site is built: `python -m sphinx -W --keep-going -b html docs docs/_build/html`. Nothing is fetched."""

from taskbridge._version import __version__

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
