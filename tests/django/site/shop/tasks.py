"""The shop's tasks."""

from __future__ import annotations

from taskbridge import Results, task


@task
def add(left: int, right: int) -> int:
    return left + right


@task
def total(numbers: Results[int]) -> int:
    return sum(numbers)
