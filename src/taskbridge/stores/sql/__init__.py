"""The store in an SQL database: SQLite, the embedded one, or PostgreSQL.

On SQLite the tables are made when the store is first used. On PostgreSQL `taskbridge store init` makes them: an
application's own user may often not.
"""

from __future__ import annotations

from taskbridge.exceptions import NotInstalledError
from taskbridge.settings import Settings
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.marks import SqlMarks
from taskbridge.stores.sql.records import SqlRecords
from taskbridge.stores.sql.tables import TABLES
from taskbridge.stores.sql.ticks import SqlTicks


class SqlStore:
    """A store in an SQL database.

    Attributes:
        marks: The attempt marks.
        records: The records.
        ticks: The ticks of schedules.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self._database = Database(settings, url)
        self._light = self._database if self._database.is_sqlite else Database(settings, url, is_light=True)
        self.marks: SqlMarks = SqlMarks(settings, self._light)
        self.records: SqlRecords = SqlRecords(settings, self._database)
        self.ticks: SqlTicks = SqlTicks(self._database)

    def ping(self, *, timeout_s: float) -> None:
        """Return if the database answers and its tables are this release's."""
        with self._database.reading(timeout_s=timeout_s) as connection:
            connection.exec_driver_sql("SELECT 1")

    def init(self, *, timeout_s: float) -> tuple[int, int]:
        """Make the tables, or bring them up to date; return the versions of before and after."""
        return self._database.make_tables(timeout_s=timeout_s)

    def clear(self, *, timeout_s: float) -> None:
        """Remove all rows of the namespace."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            for table in TABLES:
                if "namespace" in table.columns:
                    connection.execute(table.delete().where(table.c.namespace == self._database.namespace))

    def close(self) -> None:
        """Close the connections."""
        self.marks.close()
        self.records.close()
        self._light.close()
        self._database.close()


def open_store(settings: Settings, url: str) -> SqlStore:
    """Return a store; connects when it is first used.

    Raises:
        NotInstalledError: The database's client is not installed.
        SettingsError: The URL can't be read.
    """
    if url.startswith("postgresql"):
        _need_psycopg()
    return SqlStore(settings, url)


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401  # pyright: ignore[reportUnusedImport] - to know now, not at the first message
    except ImportError as exc:
        raise NotInstalledError("psycopg, the client of store 'postgresql',", "postgresql") from exc
