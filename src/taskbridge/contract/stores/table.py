"""The table of checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from taskbridge.contract.stores.place import Place
from taskbridge.stores.backend import BackendWithTables

Needs = Callable[[Place], str]


def nothing(place: Place) -> str:
    """Keep no store out."""
    return ""


def processes(place: Place) -> str:
    """Keep out stores that other processes don't see."""
    return "it is this process's memory" if place.in_process else ""


def a_server(place: Place) -> str:
    """Keep out stores that can't be taken away."""
    return "" if place.server is not None else "it has no private server that could be taken away"


def tables(place: Place) -> str:
    """Keep out stores that need not be made ready."""
    return "" if isinstance(place.store().backend, BackendWithTables) else "it has no tables"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A way to see whether a store keeps a promise.

    Attributes:
        name: The function's.
        title: The promise, as a sentence.
        run: Raises `ContractFailure` if it isn't kept.
        refusal: Says why it can't be run on a store; an empty text if it can.
    """

    name: str
    title: str
    run: Callable[[Place], None]
    refusal: Needs


_checks: Final[dict[str, Check]] = {}

CHECKS: Final[Mapping[str, Check]] = _checks
"""Every check by name; `taskbridge.contract.stores.checks` fills it."""


def check(needs: Needs = nothing) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Return a decorator that adds a function to the table; the first line of its docstring is the promise."""

    def add(run: Callable[[Place], None]) -> Callable[[Place], None]:
        name = run.__name__
        if name in _checks:
            raise ValueError(f"there is a check {name!r} already")
        title = (run.__doc__ or "").partition("\n")[0].rstrip(".")
        _checks[name] = Check(name=name, title=title, run=run, refusal=needs)
        return run

    return add
