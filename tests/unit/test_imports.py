"""The package's modules import one another in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import taskbridge

_ROOT = Path(taskbridge.__file__).parent


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what a module holds, but for what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from _statements(node)


def _imported(path: Path) -> Iterator[str]:
    """Yield the names that a module imports, some of which are modules."""
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                yield node.module


def _graph() -> dict[str, set[str]]:
    """Return which modules of the package each one imports."""
    paths = {_module(path): path for path in _ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = list(_imported(path))
        found = {name for name in names if name in paths}
        # `from package import module` imports the module; the package itself is no reason for a circle.
        graph[module] = {name for name in found if not any(other.startswith(f"{name}.") for other in found)} - {module}
    return graph


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another in a circle, each sorted (Tarjan's algorithm)."""
    numbers: dict[str, int] = {}
    lows: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lows[module] = len(numbers)
        stack.append(module)
        for other in imports[module]:
            if other not in numbers:
                visit(other)
                lows[module] = min(lows[module], lows[other])
            elif other in stack:
                lows[module] = min(lows[module], numbers[other])
        if lows[module] == numbers[module]:
            group: list[str] = []
            while not group or group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in imports:
        if module not in numbers:
            visit(module)
    return found


def test_a_circle_would_be_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside functions count, those for type checkers alone do not."""
    graph = _graph()
    assert "taskbridge.retry" in graph["taskbridge.message"]
    assert _circles(graph) == []
