"""A plugin of pytest: with `PEERS_ON_TASKBRIDGE`, Celery's tests run on the app of a bridge, and its worker."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.contrib import pytest as fixtures  # type: ignore[import-untyped, unused-ignore]
from celery.contrib.testing import tasks
from celery.contrib.testing.app import setup_default_app

from taskbridge import Bridge

pytest_plugins = ["celery.contrib.pytest"]

assert tasks  # its task `celery.ping` is registered on every app that is made from here on


@contextmanager
def _app(enable_logging: bool = False, use_trap: bool = False, parameters: Any = None, **config: Any) -> Generator[Any]:
    app = Bridge(os.environ["PEERS_URL"], namespace="suite").native
    app.conf.update({name: value for name, value in config.items() if name != "broker_url"})
    app.conf.worker_hijack_root_logger = False
    with setup_default_app(app, use_trap=use_trap):
        yield app


def _set_current(app: Any, celery_session_app: Any) -> None:
    """Do what the fixture of this suite does, but for its check that an app has no queue but `celery`."""
    app.set_current()
    app.set_default()


if "PEERS_ON_TASKBRIDGE" in os.environ:
    fixtures._create_app = _app

    def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
        """Let no test fail as it ends: a bridge's queues begin with its namespace (rule Q5), on whatever app."""
        if fixturedef.argname == "ZZZZ_set_app_current":
            vars(fixturedef)["func"] = _set_current
