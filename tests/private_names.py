"""Finds by syntax trees where taskbridge uses what Celery, Dramatiq and their libraries keep to themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeGuard

import taskbridge

UPSTREAM: Final = ("celery", "kombu", "billiard", "amqp", "vine", "dramatiq", "pika", "redis")
"""The packages whose private names are counted."""

HOOKS: Final = frozenset(
    {"_get", "_put", "_size", "_purge", "_delete", "_has_queue", "_new_queue", "_lookup", "_put_fanout", "_get_many"}
    | {"_queue_bind", "_poll"}
)
"""What kombu documents as the methods that a virtual channel defines (kombu/transport/virtual/base.py)."""

ROOT: Final = Path(taskbridge.__file__).parent

_PRIVATE: Final = re.compile(
    r"def (_\w+)\(|\b(?:self|cls)\.(_\w+)\s*[:=][^=]|^\s*(_\w+)\s*[:=][^=]|^class (_\w+)", re.MULTILINE
)
"""What defines a private name; a search, for trees of all upstream's modules take a minute."""

_METHOD: Final = re.compile(r"^\s+(?:async )?def ([a-z]\w*|_[a-z]\w*)\((?:self|cls)\b", re.MULTILINE)
_PROPERTY: Final = re.compile(r"@[\w.]*(?:property|setter)[^\n]*\n\s+def \w+\(self")

_BY_NAME: Final = ("getattr", "setattr", "hasattr", "delattr")
_OF_NAMED_TUPLES: Final = frozenset({"_asdict", "_fields", "_make", "_replace"})
"""What Python documents for all named tuples."""

_OF_MODELS: Final = frozenset({"_meta", "_default_manager"})
"""What Django documents for all models (docs.djangoproject.com: "Model _meta API", and "Managers")."""

_FRAMES: Final = frozenset({"_getframe", "currentframe", "f_back"})


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Use:
    """A place where a private name is used.

    Attributes:
        path: The file, from the package's folder.
        line: The line in it.
        name: The name.
        how: `attribute`, `override`, `by name`, `import`, `vars`, `replaced` or `frame`.
    """

    path: str
    line: int
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name} ({self.how})"


def all_installed() -> bool:
    """Return whether all of these packages are installed: without one, what is its private name is not known."""
    try:
        return all(importlib.import_module(package) for package in UPSTREAM)
    except ModuleNotFoundError:
        return False


def is_private(name: str) -> bool:
    """Return whether a name begins with an underscore and is no special name of Python's."""
    return name.startswith("_") and name.strip("_") != "" and not (name.startswith("__") and name.endswith("__"))


def is_fast(path: str) -> bool:
    """Return whether a file is in a room that may use private names."""
    parts = Path(path).parts
    return parts[0] == "engines" and "fast" in parts[2:-1]


@cache
def modules() -> dict[str, ast.Module]:
    """Return the package's modules by path, but for the rooms that may use private names and the contract."""
    found = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
    return {
        name: ast.parse(path.read_text())
        for name, path in found.items()
        if not is_fast(name) and not name.startswith("contract/")
    }


@cache
def upstream_names() -> tuple[frozenset[str], frozenset[str]]:
    """Return the private names that the installed upstream packages define, and the names of all their methods."""
    private: set[str] = set()
    methods: set[str] = set()
    for package in UPSTREAM:
        place = importlib.import_module(package).__file__  # celery and kombu replace their modules, and have no spec
        assert place is not None
        for path in Path(place).parent.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            private |= {name for found in _PRIVATE.findall(text) for name in found if is_private(name)}
            methods |= set(_METHOD.findall(_PROPERTY.sub("", text)))
    return frozenset(private), frozenset(methods)


@cache
def _defined(tree: ast.AST) -> frozenset[str]:
    """Return the names that a module or class defines anywhere: what it sets on `self`, too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif _is_field(node):
            names.add(node.attr)
    return frozenset(names)


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _is_field(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Return whether something is set on `self`."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
        return False
    return ast.unparse(node.value) in ("self", "cls")


def uses() -> list[Use]:
    """Return every use of a private name of upstream's, in the order of files and lines."""
    return sorted({*_overrides(), *(use for path, tree in modules().items() for use in _uses_in(path, tree))})


@cache
def _classes() -> tuple[type, ...]:
    """Return the package's own classes that derive from one of upstream's."""
    found: list[type] = []
    for path in modules():
        if not path.startswith(("engines/", "brokers/", "stores/")) or path.endswith("/main.py"):
            continue  # engines' `main` modules load an application
        name = "taskbridge." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for each in vars(importlib.import_module(name)).values():
            if isinstance(each, type) and each.__module__ == name and any(_is_upstream(base) for base in each.__mro__):
                found.append(each)
    return tuple(found)


def _is_upstream(each: type) -> bool:
    return each.__module__.partition(".")[0] in UPSTREAM


@cache
def _tree_of(each: type) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(each)))


@cache
def _private_of(each: type) -> frozenset[str]:
    """Return the private names that a class defines: its methods, its constants and what it sets on `self`."""
    names = set(vars(each)) if _is_upstream(each) else set()
    return frozenset(name for name in {*names, *_defined(_tree_of(each))} if is_private(name))


def _overrides() -> Iterator[Use]:
    for each in _classes():
        theirs = {name for base in each.__mro__ if _is_upstream(base) for name in _private_of(base)}
        path = each.__module__.removeprefix("taskbridge.").replace(".", "/") + ".py"
        _, first = inspect.getsourcelines(each)
        for name in sorted((_private_of(each) & theirs) - HOOKS):
            yield Use(path=path, line=first, name=f"{each.__name__}.{name}", how="override")


def _uses_in(path: str, tree: ast.Module) -> Iterator[Use]:
    private, _ = upstream_names()
    own = _known(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in _FRAMES:
            holder = ast.unparse(node.value)
            known = frozenset() if "super()" in holder else own
            if holder == "os":  # os._exit
                continue
            if node.attr in private and node.attr not in known | HOOKS | _OF_NAMED_TUPLES | _OF_MODELS:
                yield Use(path=path, line=node.lineno, name=node.attr, how="attribute")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UPSTREAM:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            for name in parts:
                if is_private(name):
                    yield Use(path=path, line=node.lineno, name=name, how="import")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = _named(node)
            if node.func.id in _BY_NAME and named in private - _OF_NAMED_TUPLES:
                yield Use(path=path, line=node.lineno, name=named, how="by name")
            if node.func.id == "vars" and _is_engines(path):
                yield Use(path=path, line=node.lineno, name=ast.unparse(node), how="vars")


def _known(tree: ast.Module) -> frozenset[str]:
    """Return what a module defines, and what the modules of taskbridge define that it imports from."""
    found = set(_defined(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskbridge."):
            path = (node.module or "").removeprefix("taskbridge.").replace(".", "/")
            named = [f"{path}.py", f"{path}/__init__.py", *(f"{path}/{alias.name}.py" for alias in node.names)]
            for each in named:
                if each in modules():
                    found |= _defined(modules()[each])
    return frozenset(found)


def _named(call: ast.Call) -> str | None:
    if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str):
        return call.args[1].value
    return None


def _is_engines(path: str) -> bool:
    return path.startswith(("engines/celery/", "engines/dramatiq/"))


def replacements() -> list[Use]:
    """Return where a method of something that is not `self` is replaced."""
    _, methods = upstream_names()
    fields = {node.attr for tree in modules().values() for node in ast.walk(tree) if _is_field(node)}
    found = []
    for path, tree in modules().items():
        if not path.startswith(("engines/", "brokers/")):
            continue
        replaceable = methods - fields
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                found += [
                    Use(path=path, line=node.lineno, name=ast.unparse(target), how="replaced")
                    for target in _targets(node)
                    if isinstance(target, ast.Attribute)
                    and ast.unparse(target.value) not in ("self", "cls")
                    and target.attr in replaceable
                ]
    return found


def frames() -> list[Use]:
    """Return where stack frames are walked."""
    return [
        Use(path=path, line=node.lineno, name=node.attr, how="frame")
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in _FRAMES
    ]


def main() -> None:
    """Print all that is found."""
    for found in (uses(), replacements(), frames()):
        for use in found:
            print(use)
        print(len(found))


if __name__ == "__main__":
    main()
