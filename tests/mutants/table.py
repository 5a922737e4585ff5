"""The table of mutants, and how one is made of the product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from taskbridge.contract.rules import RULES


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """The product with a rule broken.

    Attributes:
        name: The function's that breaks it.
        rule: The name of the rule.
        title: What is broken, as a sentence.
        scenario: The name of the scenario that must fail.
        target: The name of the target on which it must.
        apply: Breaks it, in this process.
    """

    name: str
    rule: str
    title: str
    scenario: str
    target: str
    apply: Callable[[], None]


_mutants: Final[dict[str, Mutant]] = {}

MUTANTS: Final[Mapping[str, Mutant]] = _mutants
"""Every mutant by name."""


def mutants_of(rule: str) -> list[Mutant]:
    """Return the mutants that break a rule."""
    return [mutant for mutant in MUTANTS.values() if mutant.rule == rule]


def mutant(rule: str, scenario: str, target: str = "inline") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Return a decorator that adds a function to the table; the first line of its docstring says what it breaks."""
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r}")

    def add(function: Callable[[], None]) -> Callable[[], None]:
        name = function.__name__
        if name in _mutants:
            raise ValueError(f"there is a mutant {name!r} already")
        title = (function.__doc__ or "").partition("\n")[0].rstrip(".")
        _mutants[name] = Mutant(name=name, rule=rule, title=title, scenario=scenario, target=target, apply=function)
        return function

    return add


def put(module: str, path: str, make: Callable[[Any], Any]) -> None:
    """Put something else in the place of a function, method or constant.

    Args:
        module: The module's name.
        path: The way to it from there, such as `Runner.run`.
        make: Returns what is put there, given what was.
    """
    owner: Any = import_module(module)
    *before, last = path.split(".")
    for name in before:
        owner = getattr(owner, name)
    setattr(owner, last, make(getattr(owner, last)))
