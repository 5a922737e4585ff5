"""The connections of a process: opened on demand, kept for reuse, and opened anew in a forked child."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakSet

from taskbridge import locks
from taskbridge.brokers.rabbitmq.channel import Outcome
from taskbridge.brokers.rabbitmq.connection import ClientError, TimedOutError, connect
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.publication import EncodedPublication
from taskbridge.brokers.rabbitmq.session import Session
from taskbridge.exceptions import BrokerUnavailable

T = TypeVar("T")

_TRIES: Final = 12
"""How often a call is tried if its connection is lost: the pool may hold that many that are dead."""

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
        self._made: WeakSet[Session] = WeakSet()
        self._lock = locks.Lock()
        self._idle: SimpleQueue[Session] = SimpleQueue()
        self._closed: threading.Event | None = None  # ends the thread, if there is one
        self._thread: threading.Thread | None = None
        _living.add(self)

    def deliver(self, publications: Mapping[int, EncodedPublication], deadline: Deadline) -> Outcome:
        """Publish messages as `Session.publish` does, on another connection if the first one was lost.

        A message is published again only if the server has not taken it.
        """
        outcome = Outcome()

        def publish(session: Session) -> None:
            accepted = outcome.accepted
            left = {number: publications[number] for number in publications if number not in accepted}
            session.publish(left if accepted else publications, outcome, deadline)

        try:
            self._tried(publish, deadline, may_repeat=lambda: not outcome.unsure)
        except ClientError as exc:
            outcome.problem = str(exc)
        return outcome

    def ask(self, act: Callable[[Session, Deadline], T], timeout_s: float) -> T:
        """Call a function with a connection, and again with another one if that was lost; return its result.

        Raises:
            BrokerUnavailable: The server didn't answer, or refused.
        """
        deadline = Deadline(timeout_s)
        try:
            return self._tried(lambda session: act(session, deadline), deadline)
        except ClientError as exc:
            raise BrokerUnavailable(str(exc)) from exc

    def _tried(
        self, act: Callable[[Session], T], deadline: Deadline, *, may_repeat: Callable[[], bool] = lambda: True
    ) -> T:
        tries = _TRIES
        while True:
            tries -= 1
            try:
                with self._session(deadline) as session:
                    return act(session)
            except ClientError as exc:
                if not exc.again or tries == 0 or deadline.passed or not may_repeat():
                    raise

    @contextmanager
    def _session(self, deadline: Deadline) -> Generator[Session]:
        """Take an open connection for the block; afterwards it is reused, unless its state is unknown."""
        session = self._taken(deadline)
        try:
            yield session
        except BaseException as exc:
            if isinstance(exc, TimedOutError):
                if session.blocked_by is None:  # else it is usable again when the alarm ends
                    session.lose(str(exc))
            elif not isinstance(exc, ClientError):
                # A signal or a time limit: the next confirm might belong to this publication.
                session.lose(f"the connection to RabbitMQ at {session.where} was interrupted")
            raise
        finally:
            self._give_back(session)

    def _taken(self, deadline: Deadline) -> Session:
        patience_s = 0.0 if len(self._open_sessions()) < _MOST else deadline.slice_s / 2
        try:
            while True:
                session = self._idle.get(timeout=patience_s)
                session.read()  # notice a close now, not after publishing into the void
                if session.problem is None:
                    return session
        except Empty:
            return connect(self._hosts, deadline, kind=self._begun)

    def _begun(self, parameters: Any, *, heartbeat_s: float | None) -> Session:
        session = Session(parameters, heartbeat_s=heartbeat_s)
        with self._lock:  # before it is open, so that threads that start together count each other's
            self._made.add(session)
        return session

    def _open_sessions(self) -> list[Session]:
        with self._lock:
            return [session for session in self._made if session.problem is None]

    def _give_back(self, session: Session) -> None:
        if session.problem is not None:
            return
        session.used_at = time.monotonic()
        if self._thread is None:
            self._start()
        self._idle.put(session)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            closed = self._closed = locks.Event()
            made = threading.Thread(target=self._keep, args=(closed,), name="taskbridge-rabbitmq", daemon=True)
            try:
                made.start()
                self._thread = made
            except RuntimeError as exc:  # the interpreter is shutting down
                _log.debug("idle connections to RabbitMQ are not kept alive: %s", exc)

    def _keep(self, closed: threading.Event) -> None:
        """Keep idle connections alive, and close those that are no longer needed."""
        while not closed.wait(min([_KEEP_S, *(session.read_s for session in self._open_sessions())])):
            for _ in range(self._idle.qsize()):
                try:
                    session = self._idle.get_nowait()
                except Empty:
                    break
                session.read()
                if self._idle.qsize() and time.monotonic() - session.used_at > _IDLE_S:
                    session.close(_LEAVE_S)
                elif session.problem is None:
                    self._idle.put(session)

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


_living: Final[WeakSet[Pool]] = WeakSet()


def _forget_all() -> None:
    for pool in list(_living):
        pool.forget()


def _close_all() -> None:
    for pool in list(_living):
        pool.close(_LEAVE_S)


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
