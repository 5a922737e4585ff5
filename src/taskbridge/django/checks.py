"""System checks: what `manage.py check` says of taskbridge. A wrong setting is told before, as Django is set up."""

from __future__ import annotations

from typing import Any, Final

from django.core.checks import WARNING, CheckMessage
from django.db import connections

from taskbridge.django import conf

TAG: Final = "taskbridge"


def check_settings(**_: Any) -> list[CheckMessage]:
    """Warn if nothing chooses a URL."""
    if conf.chosen_url() is not None:
        return []
    what = "Nothing chooses where tasks run: they run in threads of the process that sends them, and end with it."
    hint = f"Set {conf.NAME} = {{'URL': 'celery+redis://localhost:6379/0'}}, say, or 'inline://' if that is wanted."
    return [CheckMessage(WARNING, what, hint=hint, id="taskbridge.W001")]


def check_pools(**_: Any) -> list[CheckMessage]:
    """Warn of a pool whose connections nobody checks: after the database was restarted, a task fails for each."""
    return [
        CheckMessage(
            WARNING,
            f"Database {alias!r} has a pool of connections that are not checked before a task gets them.",
            hint=f"Set DATABASES[{alias!r}]['CONN_HEALTH_CHECKS'] = True.",
            id="taskbridge.W002",
        )
        for alias in connections
        if connections.settings[alias]["OPTIONS"].get("pool") and not connections.settings[alias]["CONN_HEALTH_CHECKS"]
    ]
