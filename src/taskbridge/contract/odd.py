"""Odd messages: what a hostile, broken or merely different sender may put on a queue, one field at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import inf, nan
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.contract.rewriting import rewriting, rewritten

Change = Callable[[dict[str, Any]], None]
"""Changes the part of a native message that names its task: Celery's headers, or the object that Dramatiq writes."""

_NAMES: Final = ("task", "actor_name")
"""Where the part to be changed names the task, on Celery and on Dramatiq."""


def without(name: str) -> Change:
    """Return a change that leaves a field out."""

    def change(part: dict[str, Any]) -> None:
        part.pop(name, None)

    return change


def having(name: str, value: object) -> Change:
    """Return a change that gives a field another value."""

    def change(part: dict[str, Any]) -> None:
        part[name] = value

    return change


def nested(depth: int) -> list[Any]:
    """Return lists in one another, so many."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


ODD: Final[Mapping[str, Mapping[str, Change]]] = {
    "celery": {
        "no task": without("task"),
        "a number for a task": having("task", 5),
        "a list for a task": having("task", ["a"]),
        "no text for a name": having("shadow", ["a"]),
        "an object for a name": having("shadow", {"a": 1}),
        "no time": having("eta", "never"),
        "a number for a time": having("eta", 5),
        "no time limits": having("timelimit", "soon"),
        "time limits of other kinds": having("timelimit", ["x", -5]),
        "one time limit": having("timelimit", [5]),
        "deep nesting": having("deep", nested(350)),
    },
    "dramatiq": {
        "no actor": without("actor_name"),
        "a number for an actor": having("actor_name", 5),
        "no arguments": without("args"),
        "a number for arguments": having("args", 5),
        "a list for options": having("options", []),
        "an infinite time": having("options", {"eta": inf}),
        "no number for a time": having("options", {"eta": nan}),
        "a time of 400 digits": having("options", {"eta": 10**400}),
        "an infinite age": having("options", {"max_age": inf}),
        "no number for an age": having("options", {"max_age": nan}),
    },
}
"""Odd messages by engine and name."""


def changing(bridge: Bridge, change: Change) -> AbstractContextManager[None]:
    """Return a block in which what the bridge sends is changed."""
    return rewriting(bridge, lambda text: _changed_text(text, change), lambda part: _change_part(part, change))


def _change_part(part: dict[str, Any], change: Change) -> None:
    if any(name in part for name in _NAMES):
        change(part)


def _changed_text(text: str, change: Change) -> str:
    """Return JSON of an object with the part in it changed; any other text as it is."""
    if not text.startswith("{"):
        return text
    part = json.loads(text)
    return json.dumps(
        rewritten(part, lambda inner: _changed_text(inner, change), lambda each: _change_part(each, change))
    )
