"""Which engines there are: each has its own queue of due messages."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_BUILT_IN: Final = ("celery", "dramatiq")


@lru_cache(maxsize=8)
def other_engines(engine: str) -> tuple[str, ...]:
    """Return the names of the other engines: the built-in ones, and those that are installed as entry points."""
    from importlib.metadata import entry_points  # here, for it takes 20 ms to import, and a process may only send

    installed = (each.name for each in entry_points(group="taskbridge.engines"))
    return tuple(name for name in dict.fromkeys((*_BUILT_IN, *installed)) if name != engine)
