from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq.middleware
import pytest
from dramatiq.results import Results

from tests.docs.pages import NEEDS, outputs, run_page, words_of


@pytest.mark.parametrize("page", [page for page, engine in NEEDS.items() if engine == "dramatiq"])
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) == outputs(page)


def test_every_option_and_middleware_of_dramatiq_has_an_equivalent_or_a_reason() -> None:
    said = words_of("docs/coming-from-dramatiq.md")
    found = [getattr(dramatiq.middleware, name) for name in dramatiq.middleware.__all__]
    middleware: list[Any] = [each for each in found if isinstance(each, type) and issubclass(each, dramatiq.Middleware)]
    middleware = [*(each for each in middleware if each is not dramatiq.Middleware), Results]
    given = {"rate_limiter_backend": None, "backend": None}
    made = [
        each(**{key: given[key] for key in given if key in inspect.signature(each).parameters}) for each in middleware
    ]
    options = {option for each in made for option in each.actor_options or ()}
    parameters = set(inspect.signature(dramatiq.actor).parameters) - {"fn", "options"}
    methods = {name for name in vars(dramatiq.Middleware) if not name.startswith("_")}

    composed = {name for kind in (dramatiq.group, dramatiq.pipeline) for name in vars(kind) if not name.startswith("_")}

    assert len(options) >= 14
    assert sorted((options | parameters | methods | composed) - said) == []
    assert sorted({each.__name__ for each in middleware} - said) == []
    assert {"send", "send_with_options", "delay", "message", "copy"} <= said
