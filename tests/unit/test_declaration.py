"""Arguments are checked as a plain call checks them, also where that is done without `Signature.bind`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskbridge.declaration import Declaration, default_name, positional_of


def _two(a: int, b: int = 0) -> None: ...


def _only(a: int, b: int, /) -> None: ...


def _any(a: int, *rest: int) -> None: ...


def _key(a: int, *, key: int) -> None: ...


def _optional_key(a: int = 0, *, key: int = 0) -> None: ...


def _none() -> None: ...


@pytest.mark.parametrize("function", [_two, _only, _any, _key, _optional_key, _none], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("count", "names"), list(product(range(4), [(), ("b",), ("key",), ("other",)])))
def test_a_declaration_takes_what_the_function_takes_and_nothing_else(
    function: Callable[..., Any], count: int, names: tuple[str, ...]
) -> None:
    known = signature(function)
    declaration = Declaration(
        name="task", function=function, signature=known, is_coroutine=False, positional=positional_of(known)
    )
    args, kwargs = (1,) * count, dict.fromkeys(names, 1)

    assert _fits(lambda: declaration.check(args, kwargs)) == _fits(lambda: function(*args, **kwargs))


def _fits(call: Callable[[], object]) -> bool:
    try:
        call()
    except TypeError:
        return False
    return True


_SCRIPT = """
import multiprocessing
from taskbridge.declaration import default_name

def hello(): ...

print(default_name(hello), flush=True)
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=hello)
    child.start()
    child.join()
"""


@pytest.mark.parametrize(
    ("folder", "words", "module"),
    [
        (".", ["pkg/sub/jobs.py"], "pkg.sub.jobs"),
        (".", ["-m", "pkg.sub.jobs"], "pkg.sub.jobs"),
        (".", ["-c", "import pkg.sub.jobs"], "pkg.sub.jobs"),
        ("elsewhere", ["../pkg/sub/jobs.py"], "pkg.sub.jobs"),
        ("pkg", ["./sub/../sub/jobs.py"], "sub.jobs"),
        ("pkg", ["-m", "sub.jobs"], "sub.jobs"),
        ("pkg/sub", ["jobs.py"], "jobs"),
        ("pkg/sub", ["-c", "import jobs"], "jobs"),
    ],
    ids=str,
)
def test_a_script_names_its_tasks_as_whoever_imports_it_from_there(
    folder: str, words: list[str], module: str, tmp_path: Path
) -> None:
    sub = tmp_path / "pkg" / "sub"
    sub.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for place in (sub, sub.parent):
        (place / "__init__.py").touch()
    (sub / "jobs.py").write_text(_SCRIPT)

    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path / folder, capture_output=True, text=True, timeout=60, check=True
    )

    assert set(done.stdout.split()) == {f"{module}.hello"}, done.stderr


def test_a_script_in_no_package_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(_SCRIPT)

    done = subprocess.run(
        [sys.executable, "jobs.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.split() == ["jobs.hello"] * 2


def test_a_root_folder_that_is_a_package_ends_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose image has the application at `/`, started from another folder."""
    script = ModuleType("__mp_main__")
    script.__file__ = "/app/jobs.py"
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("taskbridge.declaration.isfile", lambda path: True)
    monkeypatch.setattr("taskbridge.declaration.samefile", lambda one, other: False)

    def hello() -> None: ...

    hello.__module__, hello.__qualname__ = "__mp_main__", "hello"
    assert default_name(hello) == "app.jobs.hello"
