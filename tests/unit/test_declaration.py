"""Arguments are checked as a plain call checks them, also where that is done without `Signature.bind`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import product
from typing import Any

import pytest

from taskbridge.declaration import Declaration, positional_of


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
