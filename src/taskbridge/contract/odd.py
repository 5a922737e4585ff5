"""Odd messages: what a hostile, broken or merely different sender may put on a queue, one field at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import inf, nan
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.contract.odd_errors import COMMANDS
from taskbridge.contract.rewriting import rewriting, rewritten

Change = Callable[[dict[str, Any]], object]
"""Changes the part of a native message that names its task: Celery's headers, or the object that Dramatiq writes."""

_NAMES: Final = ("task", "root_id", "actor_name")
"""What the parts to be changed have, on Celery and Dramatiq; on RabbitMQ a Celery message has two such parts."""


def _without(name: str) -> Change:
    return lambda part: part.pop(name, None)


def _having(name: str, value: object) -> Change:
    return lambda part: part.update({name: value})


def nested(depth: int, wrap: Callable[[Any], Any] = lambda item: [item]) -> Any:
    """Return a value of so many levels, lists if nothing else is said."""
    value = wrap(1)
    for _ in range(depth - 1):
        value = wrap(value)
    return value


ODD: Final[Mapping[str, Mapping[str, Change]]] = {
    "celery": {
        "no task": _without("task"),
        "a number for a task": _having("task", 5),
        "a list for a task": _having("task", ["a"]),
        "a task that commands": _having("task", COMMANDS),
        "an id that commands": _having("id", COMMANDS),
        "no text for a name": _having("shadow", ["a"]),
        "an object for a name": _having("shadow", {"a": 1}),
        "no time": _having("eta", "never"),
        "a number for a time": _having("eta", 5),
        "no time limits": _having("timelimit", "soon"),
        "time limits of other kinds": _having("timelimit", ["x", -5]),
        "one time limit": _having("timelimit", [5]),
        "deep nesting": _having("deep", nested(350)),
    },
    "dramatiq": {
        "no actor": _without("actor_name"),
        "a number for an actor": _having("actor_name", 5),
        "an actor that commands": _having("actor_name", COMMANDS),
        "an id that commands": _having("message_id", COMMANDS),
        "no arguments": _without("args"),
        "a number for arguments": _having("args", 5),
        "a list for options": _having("options", []),
        "an infinite time": _having("options", {"eta": inf}),
        "no number for a time": _having("options", {"eta": nan}),
        "a time of 400 digits": _having("options", {"eta": 10**400}),
        "an infinite age": _having("options", {"max_age": inf}),
        "no number for an age": _having("options", {"max_age": nan}),
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
    """Return JSON of an object with the part in it changed; any other text as it is, such as a namespace in braces."""
    if not text.startswith(('{"', "{}")):
        return text
    part = json.loads(text)
    return json.dumps(
        rewritten(part, lambda inner: _changed_text(inner, change), lambda each: _change_part(each, change))
    )
