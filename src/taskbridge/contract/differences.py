"""How workers of different kinds differ: what the page of differences says, and scenarios check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from taskbridge.contract.target import Target

Kind = Literal["children", "threads", "dramatiq"]
"""Celery's workers with one thread, Celery's with more, and Dramatiq's."""

DIFFERENCES: Final[Mapping[str, tuple[Kind, ...]]] = {
    "main thread": ("children",),
    "forked": ("children",),
    "interrupted in C": ("children",),
    "hooks elsewhere": ("children",),
    "served by each": ("threads", "dramatiq"),
    "leased by each": ("threads", "dramatiq"),
    "threads awaited": ("threads", "dramatiq"),
}
"""Every difference by name, with the kinds of workers on which it is so; the page says what it is."""

ON_REDIS: Final = ("leased by each",)
"""Those that there are on Redis alone."""


def kind_of(target: Target, *, threads: int) -> Kind:
    """Return what kind of worker a target has with so many threads in each process."""
    if target.address.engine == "dramatiq":
        return "dramatiq"
    return "children" if threads == 1 else "threads"


def expected(target: Target, *, threads: int) -> dict[str, bool]:
    """Return what is to be seen of such a worker, by the names of differences."""
    kind, on_redis = kind_of(target, threads=threads), target.address.broker == "redis"
    return {name: kind in kinds for name, kinds in DIFFERENCES.items() if on_redis or name not in ON_REDIS}
