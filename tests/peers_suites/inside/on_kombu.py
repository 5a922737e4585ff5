"""A plugin of pytest: with `PEERS_ON_TASKBRIDGE`, kombu's tests connect as taskbridge's Celery engine does."""

from __future__ import annotations

import os
from typing import Any

from taskbridge import Bridge


def _connection(*_: Any, **__: Any) -> Any:
    return Bridge(os.environ["PEERS_URL"], namespace="suite").native.connection_for_write()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Replace the function by which the tests' fixtures connect."""
    for item in items if "PEERS_ON_TASKBRIDGE" in os.environ else ():
        if hasattr(item.module, "get_connection"):
            item.module.get_connection = _connection
