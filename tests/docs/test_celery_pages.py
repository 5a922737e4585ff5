from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from celery import canvas, signals
from celery.app.defaults import NAMESPACES
from celery.app.task import Task

from tests.docs.pages import NEEDS, outputs, run_page, words_of


@pytest.mark.parametrize("page", [page for page, engine in NEEDS.items() if engine == "celery"])
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) == outputs(page)


DOCUMENTED = frozenset(
    [
        "countdown",
        "eta",
        "expires",
        "connection",
        "retry",
        "retry_policy",
        "time_limit",
        "soft_time_limit",
        "queue",
        "exchange",
        "routing_key",
        "priority",
        "serializer",
        "compression",
        "producer",
        "add_to_parent",
        "publisher",
        "headers",
        "ignore_result",
        "shadow",
        "link",
        "link_error",
        "task_id",
    ]
)
"""What the docstring of `apply_async` lists, and its signature."""

DECORATORS = frozenset(
    [
        "name",
        "bind",
        "base",
        "shared",
        "lazy",
        "typing",
        "pydantic",
        "autoretry_for",
        "dont_autoretry_for",
        "retry_kwargs",
        "retry_backoff",
        "retry_backoff_max",
        "retry_jitter",
        "queue",
    ]
)
"""Options of the decorator that are no attributes of the class."""

BEAT = ("task", "schedule", "args", "kwargs", "options", "relative", "crontab", "solar", "timedelta")


def test_every_option_and_signal_of_celery_has_an_equivalent_or_a_reason() -> None:
    said = words_of("docs/coming-from-celery.md")
    options = {
        name
        for name, value in list(vars(Task).items())
        if not (name.startswith("_") or callable(value) or isinstance(value, (classmethod, property)))
    }
    parameters = set(inspect.signature(Task.apply_async).parameters) - {"self", "args", "kwargs", "options"}

    assert sorted(parameters - set(DOCUMENTED)) == []
    assert sorted({*options, *DECORATORS, *DOCUMENTED, *BEAT} - said) == []
    assert sorted({f"beat_{name}" for name in NAMESPACES["beat"]} - said) == []
    assert sorted(set(signals.__all__) - said) == []
    assert sorted(set(canvas.__all__) - said) == []
