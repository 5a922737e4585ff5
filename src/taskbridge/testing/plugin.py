"""The pytest plugin: fixtures for the tests of applications. An entry point loads it where pytest is installed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskbridge import Bridge
    from taskbridge.testing import Sent


@pytest.fixture
def taskbridge_app() -> Bridge:
    """Return the bridge under test, the default one; override it for an application that makes its own."""
    from taskbridge import default_bridge  # here, for a run of tests that uses none need not load it

    return default_bridge()


@pytest.fixture
def taskbridge_inline(taskbridge_app: Bridge) -> Generator[Bridge]:
    """Have messages wait in this process until `run_until_idle`, and return the bridge; nothing is left afterwards."""
    from taskbridge.testing import inline

    with inline(taskbridge_app) as bridge:
        yield bridge


@pytest.fixture
def taskbridge_sent(taskbridge_app: Bridge) -> Generator[Sent]:
    """Keep what is sent, send none of it, and return it."""
    from taskbridge.testing import capture_sent

    with capture_sent(taskbridge_app) as sent:
        yield sent
