"""The store in an SQL database: SQLite, the embedded one, or PostgreSQL.

On SQLite the tables are made when the store is first used. On PostgreSQL `taskbridge store init` makes them: an
application's own user may often not.
"""

from __future__ import annotations

from taskbridge.exceptions import NotInstalledError
from taskbridge.settings import Settings
from taskbridge.stores.base import StoreWithTables
from taskbridge.stores.sql.backend import SqlBackend


def open_store(settings: Settings, url: str) -> StoreWithTables:
    """Return a store; connects when it is first used.

    Raises:
        NotInstalledError: The database's client is not installed.
        SettingsError: The URL can't be read.
    """
    if url.startswith("postgresql"):
        try:
            import psycopg  # noqa: F401  # pyright: ignore[reportUnusedImport] - to know now, not at the first message
        except ImportError as exc:
            raise NotInstalledError("psycopg, the client of store 'postgresql',", "postgresql") from exc
    return StoreWithTables(settings, SqlBackend(settings, url))
