"""The shortcuts through Celery's own code are taken with the versions that they were tested with alone."""

from __future__ import annotations

import inspect
import pkgutil
from types import SimpleNamespace
from typing import Any

import pytest

from taskbridge.engines.celery.fast import gate

NAMES = [(place, name) for needed in gate.NEEDED.values() for place, names in needed.items() for name in names]


def obstacles() -> tuple[str | None, str | None]:
    return gate.obstacle("tasks", is_wanted=True), gate.obstacle("reader", is_wanted=True)


def test_nothing_is_in_the_way_of_the_versions_installed_here() -> None:
    """A canary: it fails when Celery, kombu or py-amqp have other names than the shortcuts use."""
    assert obstacles() == (None, None)


def test_they_are_not_taken_where_they_are_not_wanted() -> None:
    assert gate.obstacle("tasks", is_wanted=False) == "the setting fast is off"
    assert gate.obstacle("reader", is_wanted=False) == "the setting fast is off"


@pytest.mark.parametrize("found", ["5.4.9", "5.8.0", "6.0.0rc1", "55.5"])
def test_they_are_not_taken_with_a_version_that_was_not_tested(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "version", lambda package: found)
    for why in obstacles():
        assert why is not None
        assert f"{found} is none of the versions that were tested" in why


@pytest.mark.parametrize(("place", "name"), NAMES)
def test_they_are_not_taken_without_a_name_that_they_use(
    place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pkgutil.resolve_name

    def without(asked: str) -> Any:
        whole = found(asked)
        if asked != place:
            return whole
        return SimpleNamespace(**{each: getattr(whole, each) for each in dir(whole) if each != name})

    monkeypatch.setattr(gate, "resolve_name", without)
    assert f"there is no {place.replace(':', '.')}.{name} any more" in obstacles()


def test_py_amqp_delivers_and_reads_as_the_reader_expects() -> None:
    """A canary, too."""
    deliver: Any = pkgutil.resolve_name("amqp.channel:Channel")._on_basic_deliver
    expected = ("self", "consumer_tag", "delivery_tag", "redelivered", "exchange", "routing_key", "msg")
    assert tuple(inspect.signature(deliver).parameters) == expected
    set_up: Any = pkgutil.resolve_name("amqp.transport:TCPTransport")._setup_transport
    assert "_read_buffer" in set_up.__code__.co_names
