"""System checks: what `manage.py check` says of taskbridge. A wrong setting is told before, as Django is set up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from django.core.checks import WARNING, CheckMessage
from django.db import DEFAULT_DB_ALIAS, connections, router

from taskbridge.bridge import default_bridge
from taskbridge.django import conf
from taskbridge.transactions import OUTBOX

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


def check_outbox(databases: Collection[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn if sends go to the outbox, and its table is missing, where Django may look into its database."""
    from taskbridge.django.models import OutboxEntry  # here, for the app is loaded before its models

    database, table = router.db_for_write(OutboxEntry), OutboxEntry._meta.db_table
    if database not in (databases or ()) or default_bridge().settings.commit != OUTBOX:
        return []
    if table in connections[database].introspection.table_names():
        return []
    what = f"Sends go to the outbox, and database {database!r} has no table {table!r} for it."
    elsewhere = "" if database == DEFAULT_DB_ALIAS else f" --database {database}"
    hint = f"Run: manage.py migrate taskbridge{elsewhere}"
    return [CheckMessage(WARNING, what, hint=hint, id="taskbridge.W003")]  # no error, which would forbid to migrate
