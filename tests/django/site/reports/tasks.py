"""Tasks of Django's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import django

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskContext, task
else:
    from django_tasks import TaskContext, task

OPEN = bool(django.VERSION < (6, 0) or django.VERSION >= (6, 1))
"""Whether the decorator takes the options of a backend's own class."""

with_options: Callable[..., Callable[[Callable[..., Any]], Any]] = task  # the stubs know of no further options


@task
def total(prices: list[int], *, discount: int = 0) -> dict[str, int]:
    return {"total": sum(prices) - discount}


@task(queue_name="mail", priority=20)
async def mail(to: str) -> str:
    return f"to {to}"


@task
def fails(text: str) -> None:
    raise ValueError(text)


@task(takes_context=True)
def twice(context: TaskContext[Any, Any], text: str) -> list[Any]:
    result = context.task_result
    if context.attempt == 1:
        raise LookupError(text)
    return [context.attempt, result.id, result.args, [each.exception_class_path for each in result.errors]]


@task
def no_json() -> object:
    return object()


@with_options(**({"max_attempts": 3, "backoff": (0.01, 0.02), "time_limit": 60, "expires": 3600} if OPEN else {}))
def patient() -> None:
    raise OSError("not yet")
