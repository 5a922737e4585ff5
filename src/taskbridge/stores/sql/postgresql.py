"""What is PostgreSQL's own: above all, that each call ends in time.

psycopg waits for a silent server for ever, so its connections are given a way of waiting with a deadline.
"""

from __future__ import annotations

import math
import re
import select
from collections.abc import Mapping, Sequence
from functools import cache
from time import monotonic
from typing import Any, ClassVar, Final

from taskbridge.background import in_time
from taskbridge.exceptions import SettingsError, needs
from taskbridge.settings import Settings
from taskbridge.stores.notifications import Notifications
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.schema import Run

with needs("psycopg, the client of store 'postgresql',", "postgresql", fails_by=ImportError):
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.waiting import Ready, Wait

_CHANNEL: Final = "taskbridge_told"
"""The channel on which PostgreSQL tells of keys, as `namespace:key`; all bridges with a database share it."""

_HARMLESS: Final = "invalid URI query parameter"
"""How libpq begins to say that an option has no such name; what else it says of a URL shows a part of it."""

_HOST_S: Final = 2  # how long one of several hosts may take to answer; libpq waits no shorter
_UNDEFINED_TABLE: Final = "42P01"

_EVENTS: Final[Mapping[Wait, int]] = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose calls end by a deadline; one that doesn't closes it.

    Attributes:
        deadline: When calls end, by the monotonic clock.
    """

    deadline: float = math.inf

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Carry out what psycopg has to do, which yields what it waits for (see `psycopg.waiting.wait`)."""
        poll = select.poll()
        try:
            wanted = next(gen)
            while True:
                poll.register(self.pgconn.socket, _EVENTS[wanted])
                left_s = self.deadline - monotonic()
                events = poll.poll(None if left_s == math.inf else max(0, math.ceil(left_s * 1000)))
                if not events:
                    self.close()
                    raise psycopg.OperationalError("no answer in time")
                wanted = gen.send(_ready(events[0][1]))
        except StopIteration as done:
            return done.value


class PostgreSQL(Database):
    """A server, by psycopg."""

    errors: ClassVar[tuple[type[Exception], ...]] = (psycopg.Error, OSError)
    now = "date_part('epoch', clock_timestamp())"
    among = "= ANY(:keys)"
    light = "set_config('synchronous_commit', 'off', true)"  # of this transaction; it is looked at as that commits
    notify = f"CASE WHEN :tells THEN pg_notify('{_CHANNEL}', CAST(:namespace AS text) || ':' || :key) END"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    finds_schema = "SELECT 1 WHERE to_regclass('taskbridge_schema') IS NOT NULL"
    makes_tables = False
    one_writes = False

    def __init__(self, settings: Settings, url: str) -> None:
        super().__init__(settings, url)
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error as exc:
            said = str(exc).strip()
            why = said if said.startswith(_HARMLESS) else "is something in it not percent-encoded?"
            raise SettingsError("store", f"{self.shown} can't be read: {why}") from None  # else it shows a password
        ports = str(given.get("port", ""))
        if not all(port.isdecimal() or not port for port in ports.split(",")):
            raise SettingsError("store", f"{self.shown} can't be read: {ports} is no port")
        self._url = url
        several = "," in str(given.get("host")) and "connect_timeout" not in given
        self._limits: dict[str, Any] = {"connect_timeout": _HOST_S} if several else {}

    def connect(self, deadline: float) -> BoundedConnection:
        """Return a new connection."""

        def connect() -> BoundedConnection:
            # Not prepared: a pooler between may give every transaction another connection.
            options: dict[str, Any] = {"autocommit": True, "prepare_threshold": None, "application_name": "taskbridge"}
            return BoundedConnection.connect(self._url, **options, **self._limits)

        made = in_time("sql-connect", connect, BoundedConnection.close, left_s=lambda: deadline - monotonic())
        made.deadline = deadline
        return made

    def lend(self, connection: Any, deadline: float) -> bool:
        """Have calls on a connection end in time; return False if the server has closed it meanwhile."""
        connection.deadline = deadline
        if connection.closed:
            return False
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    def is_missing_table(self, error: Exception) -> bool:
        return getattr(error, "sqlstate", None) == _UNDEFINED_TABLE

    def written(self, statement: str) -> str:
        return _written(statement)

    def keys(self, keys: Sequence[str]) -> list[str]:
        return list(keys)

    def lock(self, run: Run, name: str) -> None:
        run("SELECT pg_advisory_xact_lock(hashtext('taskbridge'), hashtext(:name))", {"name": name})

    def notifications(self) -> Notifications:
        return _PostgresNotifications(self, self._timeout_s)


class _PostgresNotifications(Notifications):
    """Listens on the channel."""

    def __init__(self, database: PostgreSQL, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._database = database

    def _connect(self) -> BoundedConnection:
        return self._database.connect(monotonic() + self._timeout_s)

    def _begin(self, connection: BoundedConnection) -> None:
        connection.add_notify_handler(lambda found: self._told(found.payload))  # those that other answers come with
        connection.execute(f"LISTEN {_CHANNEL}")  # of all keys
        super()._begin(connection)

    def _hear(self, connection: BoundedConnection) -> None:
        connection.pgconn.consume_input()
        while (found := connection.pgconn.notifies()) is not None:
            self._told(found.extra.decode())

    def _told(self, namespace_and_key: str) -> None:
        mine = f"{self._database.namespace}:"
        if namespace_and_key.startswith(mine):
            self._watches.wake(namespace_and_key.removeprefix(mine))

    def _ask(self, connection: BoundedConnection) -> None:
        connection.deadline = monotonic() + self._timeout_s
        connection.execute("SELECT 1")


@cache
def _written(statement: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", statement)


def _ready(events: int) -> Ready:
    if events & select.POLLOUT and events & ~select.POLLOUT:
        return Ready.RW
    return Ready.W if events & select.POLLOUT else Ready.R  # an error or an end is found by reading
