"""These tests have Django set up in their process, with the settings of `tests.django.site`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.site.settings"

import django
from django.db.backends.signals import connection_created

django.setup()


@pytest.fixture(scope="session", autouse=True)
def _connected() -> Iterator[list[tuple[bool, Any]]]:
    """Close connections at the end: those to databases in memory, which Django keeps, too."""
    made: list[tuple[bool, Any]] = []

    def note(connection: Any, **_: object) -> None:
        made.append((threading.current_thread() is threading.main_thread(), connection.connection))

    connection_created.connect(note)
    yield made
    for _, each in made:
        each.close()


@pytest.fixture(autouse=True)
def _leave_no_connection_of_threads(_connected: list[tuple[bool, Any]]) -> Iterator[None]:
    """Close what threads of a test have kept open, which ends with their process elsewhere."""
    yield
    for is_main, each in _connected:
        if not is_main:
            each.close()
