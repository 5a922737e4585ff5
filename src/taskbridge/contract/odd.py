"""Odd messages: what a hostile, broken or merely different sender may put on a queue, one field at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from math import inf, nan
from typing import Any, Final, cast

from taskbridge import Bridge

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


@contextmanager
def changing(bridge: Bridge, change: Change) -> Generator[None]:
    """Change what the bridge sends while the block runs."""
    wire: Any = bridge.wire
    encode = wire.encode
    wire.encode = lambda message: _changed(encode(message), change)  # pyright: ignore[reportUnknownLambdaType]
    try:
        yield
    finally:
        wire.encode = encode


def _changed(native: Any, change: Change) -> Any:
    """Return a native message of any make, with the part changed that names its task."""
    if isinstance(native, (str, bytes)):
        return _changed_text(native, change)
    if isinstance(native, (list, tuple)):
        items = [_changed(item, change) for item in cast("list[Any]", native)]
        return items if isinstance(native, list) else tuple(items)
    if isinstance(native, Mapping):
        part: dict[str, Any] = {key: _changed(item, change) for key, item in native.items()}  # pyright: ignore[reportUnknownVariableType]
        if any(name in part for name in _NAMES):
            change(part)
        return part
    if is_dataclass(native) and not isinstance(native, type):
        names = [field.name for field in fields(native) if field.init]
        return replace(native, **{name: _changed(getattr(native, name), change) for name in names})
    return native


def _changed_text(text: Any, change: Change) -> Any:
    """Return JSON of an object with the part in it changed; any other text as it is."""
    if not text.startswith("{" if isinstance(text, str) else b"{"):
        return text
    changed = json.dumps(_changed(json.loads(text), change))
    return changed if isinstance(text, str) else changed.encode()
