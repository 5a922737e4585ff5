"""The connections of a process: opened on demand, kept for reuse, and opened anew in a forked child."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakSet

from taskbridge import locks
from taskbridge.brokers.rabbitmq.channel import ChannelClosedError, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError, connect
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.publication import EncodedPublication
from taskbridge.brokers.rabbitmq.publishing import FAILURES, NOT_FOUND, publish
from taskbridge.exceptions import BrokerUnavailable

T = TypeVar("T")

_TRIES: Final = 12
"""How often a call is tried again when its connection was lost: the pool may hold that many that are dead."""

_MOST: Final = 8
"""With this many connections, a thread waits for one of them for half of its time before it opens another."""

_KEEP_S: Final = 1.0
_IDLE_S: Final = 5.0
"""A connection that was idle for this long is closed, unless it is the last one."""

_LEAVE_S: Final = 0.3

_log = logging.getLogger("taskbridge.rabbitmq")


class Pool:
    """Publishes and asks on connections to one server, which threads share.

    Each connection is used by one thread at a time. The pool's own thread keeps idle ones alive.

    Args:
        hosts: pika's parameters of each host; the first host that accepts a connection is used.
    """

    def __init__(self, hosts: Sequence[Any]) -> None:
        self._hosts = hosts
        self._made: WeakSet[Connection] = WeakSet()
        self._lock = locks.Lock()
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._closed: threading.Event | None = None  # ends the thread, if there is one
        self._thread: threading.Thread | None = None
        _living.add(self)

    def deliver(self, publications: Sequence[EncodedPublication], deadline: Deadline) -> Outcome:
        """Publish messages as `publish` does, on another connection if the first one was lost.

        A message is published again only if the server has not taken it.
        """
        outcome = Outcome()
        for _ in range(_TRIES):
            accepted = outcome.accepted
            left = (
                [publication for publication in publications if publication.number not in accepted]
                if accepted
                else publications
            )
            try:
                with self.connection(deadline) as connection:
                    publish(connection, left, outcome, deadline)
                break
            except FAILURES as exc:
                outcome.problem = str(exc)
                if outcome.unsure or not _may_help(exc) or deadline.passed:
                    break
        return outcome

    def ask(self, act: Callable[[Connection, Deadline], T], timeout_s: float) -> T:
        """Call a function with a connection, and again with another one if that was lost; return its result.

        Raises:
            BrokerUnavailable: The server didn't answer, or refused.
        """
        deadline = Deadline(timeout_s)
        tries = _TRIES
        while True:
            tries -= 1
            try:
                with self.connection(deadline) as connection:
                    return act(connection, deadline)
            except FAILURES as exc:
                again = isinstance(exc, ConnectionLostError) and exc.was_open
                if not again or tries == 0 or deadline.passed:
                    raise BrokerUnavailable(str(exc)) from exc

    @contextmanager
    def connection(self, deadline: Deadline) -> Generator[Connection, None, None]:
        """Take an open connection for the block; afterwards it is reused, unless its state is unknown.

        Raises:
            ConnectionLostError, TimedOutError: None is free, and none can be opened.
        """
        connection = self._taken(deadline)
        try:
            yield connection
        except TimedOutError as exc:
            if connection.blocked_by is None:  # else it is usable again when the alarm ends
                connection.lose(str(exc))
            raise
        except FAILURES:
            raise
        except BaseException:  # a signal or a time limit: the next confirm might belong to this publication
            connection.lose(f"the connection to RabbitMQ at {connection.where} was interrupted")
            raise
        finally:
            self._give_back(connection)

    def _taken(self, deadline: Deadline) -> Connection:
        while True:
            try:
                connection = self._idle.get_nowait()
            except Empty:
                break
            connection.read()  # notice a close now, not after publishing into the void
            if connection.problem is None:
                return connection
        if len(self._open_connections()) >= _MOST:
            try:
                connection = self._idle.get(timeout=deadline.slice_s / 2)
            except Empty:
                _log.debug("all connections to RabbitMQ are in use, another one is made")
            else:
                connection.read()
                if connection.problem is None:
                    return connection
        return connect(self._hosts, deadline, kind=self._begun)

    def _begun(self, parameters: Any, *, heartbeat_s: float | None) -> Connection:
        connection = Connection(parameters, heartbeat_s=heartbeat_s)
        with self._lock:  # before it is open, so that threads that start together count each other's
            self._made.add(connection)
        return connection

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return [connection for connection in self._made if connection.problem is None]

    def _give_back(self, connection: Connection) -> None:
        if connection.problem is not None:
            return
        connection.used_at = time.monotonic()
        if self._thread is None:
            self._start()
        self._idle.put(connection)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._closed = locks.Event()
                made = threading.Thread(
                    target=self._keep, args=(self._closed,), name="taskbridge-rabbitmq", daemon=True
                )
                try:
                    made.start()
                except RuntimeError as exc:  # the interpreter is shutting down
                    _log.debug("idle connections to RabbitMQ are not kept alive: %s", exc)
                else:
                    self._thread = made

    def _keep(self, closed: threading.Event) -> None:
        """Keep idle connections alive, and close those that are no longer needed."""
        while not closed.wait(min([_KEEP_S, *(connection.read_s for connection in self._open_connections())])):
            for _ in range(self._idle.qsize()):
                try:
                    connection = self._idle.get_nowait()
                except Empty:
                    break
                connection.read()
                if self._idle.qsize() and time.monotonic() - connection.used_at > _IDLE_S:
                    connection.close(_LEAVE_S)
                elif connection.problem is None:
                    self._idle.put(connection)

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the idle connections; the next use opens another."""
        deadline = Deadline(timeout_s)
        with self._lock:
            thread, self._thread = self._thread, None
            if self._closed is not None:
                self._closed.set()
        if thread is not None:
            thread.join(deadline.left_s)
        while True:
            try:
                self._idle.get_nowait().close(deadline.left_s)
            except Empty:
                return

    def forget(self) -> None:
        """Start empty in a forked child: the parent uses the connections, and the thread does not exist."""
        self._idle = SimpleQueue()
        self._thread = self._closed = None


def _may_help(failure: Exception) -> bool:
    """Return whether another attempt may succeed at once."""
    if isinstance(failure, ChannelClosedError):
        return failure.code == NOT_FOUND  # an exchange was deleted; it is declared again
    return isinstance(failure, ConnectionLostError) and failure.was_open


_living: Final[WeakSet[Pool]] = WeakSet()


def _forget_all() -> None:
    for pool in list(_living):
        pool.forget()


def _close_all() -> None:
    for pool in list(_living):
        pool.close(_LEAVE_S)


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
