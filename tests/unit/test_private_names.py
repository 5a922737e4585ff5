"""Few names that upstream keeps to itself are used, and only where the page of upstream's names says so."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from tests.private_names import all_installed, frames, is_fast, modules, replacements, uses

pytestmark = pytest.mark.skipif(not all_installed(), reason="both engines and all clients are needed")

MOST_USES = 3
MOST_REPLACEMENTS = 2
MOST_FRAMES = 0
"""These bounds fall; the aims are 10, 0 and 0."""


def test_private_names_of_upstream_are_used_in_few_places() -> None:
    found = [str(use) for use in uses()]
    assert len(found) <= MOST_USES, "\n".join(found)


def test_no_more_methods_of_upstreams_objects_are_replaced() -> None:
    found = [str(use) for use in replacements()]
    assert len(found) <= MOST_REPLACEMENTS, "\n".join(found)


def test_no_more_stack_frames_are_walked() -> None:
    found = [str(use) for use in frames()]
    assert len(found) <= MOST_FRAMES, "\n".join(found)


def test_what_is_looked_through_is_the_package_but_for_the_fast_rooms_and_the_contract() -> None:
    assert {"bridge.py", "engines/celery/app.py", "engines/dramatiq/app.py", "brokers/redis/broker.py"} <= set(
        modules()
    )
    assert is_fast("engines/celery/fast/way.py")
    assert not is_fast("engines/celery/fast.py")
    assert not is_fast("engines/celery/app.py")


def rows() -> dict[str, str]:
    """Return the names that the page lists, and where upstream defines each."""
    text = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(_\w+)` \| `([\w.]+:\w+)` \|", text, re.MULTILINE))


def test_the_page_lists_the_names_that_are_used_and_no_others() -> None:
    used = {use.name.rpartition(".")[2]: str(use) for use in uses() if use.how != "vars"}
    assert {name: use for name, use in used.items() if name not in rows()} == {}, "used, but not in docs/upstream.md"
    assert rows().keys() - used.keys() == set(), "in docs/upstream.md, but not used"


@pytest.mark.parametrize(("name", "place"), rows().items())
def test_a_name_that_the_page_lists_is_still_there(name: str, place: str) -> None:
    module, _, owner = place.partition(":")
    found = getattr(importlib.import_module(module), owner)
    assert hasattr(found, name) or re.search(rf"\bself\.{name}\b", inspect.getsource(found)), place
