"""What is PostgreSQL's own about the connections of a database: above all, that each call ends in time.

psycopg waits for a silent server for ever, so its connections are given a way of waiting with a deadline.
"""

from __future__ import annotations

import math
import select
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from time import monotonic
from typing import Any, Final, TypeVar

import psycopg
from psycopg.waiting import Ready, Wait
from sqlalchemy import URL, Connection, Engine

T = TypeVar("T")

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


class PostgresDriver:
    """Makes connections of psycopg's.

    Args:
        url: The database's.
        is_light: Whether a transaction counts before it is flushed to the disk.
    """

    def __init__(self, url: URL, *, is_light: bool) -> None:
        self._url = url
        self._is_light = is_light
        self._options: Any = None

    def prepare(self, engine: Engine) -> None:
        """Read the URL."""
        words, options = engine.dialect.create_connect_args(self._url)
        options["application_name"] = "taskbridge"
        options["prepare_threshold"] = None  # a pooler between may give every transaction another connection
        if self._is_light:
            options["options"] = f"{options.get('options', '')} -c synchronous_commit=off".strip()
        self._options = words, options

    def connect(self, deadline: float) -> BoundedConnection:
        """Return a new connection; the deadline, for it and its first call, is by the monotonic clock."""
        words, options = self._options
        made = in_time(lambda: BoundedConnection.connect(*words, **options), _close, deadline)
        made.deadline = deadline
        return made

    def lend(self, connection: BoundedConnection, deadline: float) -> bool:
        """Have a call on a connection end in time; return False if the server has closed it meanwhile."""
        connection.deadline = deadline
        return not connection.closed and not can_read(connection, 0)

    def for_reading(self, connection: Connection) -> Connection:
        """Return a connection whose statements are each a transaction of its own."""
        return connection.execution_options(isolation_level="AUTOCOMMIT")


def can_read(connection: BoundedConnection, wait_s: float) -> bool:
    """Return whether there is something to read on a connection, at once or within so many seconds."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(math.ceil(wait_s * 1000)))


def in_time(make: Callable[[], T], discard: Callable[[T], None], deadline: float) -> T:
    """Make something in a thread, so that no part of it outlasts a deadline; what comes too late is given away.

    Raises:
        TimeoutError: It wasn't in time.
        Exception: What making it raised.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as exc:
            made.set_exception(exc)

    threading.Thread(target=run, name="taskbridge-sql-connect", daemon=True).start()
    try:
        return made.result(max(0.0, deadline - monotonic()))
    except FutureTimeoutError:
        if made.done() and made.exception() is not None:
            raise  # it was an error of its own
        made.add_done_callback(lambda late: None if late.exception() else discard(late.result()))
        raise TimeoutError("no connection in time") from None


def _close(connection: BoundedConnection) -> None:
    connection.close()


def _ready(events: int) -> Ready:
    if events & select.POLLOUT and events & ~select.POLLOUT:
        return Ready.RW
    return Ready.W if events & select.POLLOUT else Ready.R  # an error or an end is found by reading
