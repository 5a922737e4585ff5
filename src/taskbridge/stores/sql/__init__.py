"""The store in an SQL database: SQLite, the embedded one, or PostgreSQL.

On SQLite the tables are made when the store is first used. On PostgreSQL `taskbridge store init` makes them: an
application's own user may often not.
"""

from __future__ import annotations

from taskbridge.settings import Settings
from taskbridge.stores.base import Store
from taskbridge.stores.sql.backend import SqlBackend
from taskbridge.stores.sql.database import Database


def open_store(settings: Settings, url: str) -> Store:
    """Return a store; connects when it is first used.

    Raises:
        NotInstalledError: The database's client is not installed.
        SettingsError: The URL can't be read.
    """
    return Store(settings, SqlBackend(settings, _database(settings, url)))


def _database(settings: Settings, url: str) -> Database:
    if url.startswith("sqlite:"):
        from taskbridge.stores.sql.sqlite import Sqlite

        return Sqlite(settings, url)
    from taskbridge.stores.sql.postgresql import PostgreSQL  # here, for SQLite needs no psycopg

    return PostgreSQL(settings, url)
