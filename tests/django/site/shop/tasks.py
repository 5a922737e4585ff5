"""The shop's tasks."""

from __future__ import annotations

from taskbridge import task


@task
def add(left: int, right: int) -> int:
    return left + right
