"""The connections of a process: opened on demand, kept for reuse, and opened anew in a forked child."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakSet

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.brokers.rabbitmq.channel import Outcome, Session
from taskbridge.brokers.rabbitmq.connection import ClientError, TimedOutError, connect
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.publication import EncodedPublication
from taskbridge.exceptions import BrokerUnavailable

T = TypeVar("T")

_TRIES: Final = 12
"""How often a call is tried if its connection is lost: the pool may hold that many that are dead."""

_MOST: Final = 8
"""While this many connections are in use, a thread waits for one for half of its time before it opens another."""

_KEEP_S: Final = 1.0
_IDLE_S: Final = 5.0
"""A connection that was idle for this long is closed, unless it is the last one."""

_JOIN_S: Final = 1.0
_LEAVE_S: Final = 0.3

_log = logging.getLogger("taskbridge.rabbitmq")


class Pool(Background):
    """Publishes and asks on connections to one server, which threads share.

    Each connection is used by one thread at a time. The pool's own thread keeps idle ones alive, from the first on.

    Args:
        hosts: pika's parameters of each host; the first host that accepts a connection is used.
    """

    def __init__(self, hosts: Sequence[Any]) -> None:
        super().__init__("rabbitmq", join_s=_JOIN_S)
        self._hosts = hosts
        self._lock = locks.Lock()
        self._keep_s = _KEEP_S
        self.forget()
        _living.add(self)

    def deliver(self, publications: Mapping[int, EncodedPublication], deadline: Deadline) -> Outcome:
        """Publish messages as `Session.publish` does, on another connection if the first one was lost.

        A message is published again only if the server has not taken it.
        """
        outcome = Outcome()

        def publish(session: Session) -> None:
            left = publications
            if outcome.accepted:
                left = {number: each for number, each in publications.items() if number not in outcome.accepted}
            session.publish(left, outcome, deadline)

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
            raise BrokerUnavailable(str(exc), maybe_taken=exc.maybe_done) from exc

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
        permits, permit = self._permits, None
        with suppress(Empty):
            permit = permits.get(timeout=deadline.slice_s / 2)
        session: Session | None = None
        try:
            session = self._idle_one() or connect(self._hosts, deadline, kind=Session)
            yield session
        except TimedOutError as exc:
            if session is not None and session.blocked is None:  # else it is usable again when the alarm ends
                session.lose(str(exc))
            raise
        except ClientError:
            raise
        except BaseException:  # a signal or a time limit: the next confirm might belong to this publication
            if session is not None:
                session.lose(f"the connection to RabbitMQ at {session.where} was interrupted")
            raise
        finally:
            if session is not None and session.problem is None:
                self._give_back(session)
            if permit is not None:
                permits.put(permit)

    def _idle_one(self) -> Session | None:
        with suppress(Empty):
            while True:
                session = self._idle.get_nowait()
                session.read()  # notice a close now, not after publishing into the void
                if session.problem is None:
                    return session
        return None

    def _give_back(self, session: Session) -> None:
        session.used_at = time.monotonic()
        self._keep_s = min(self._keep_s, session.read_s)
        if self._thread is None:
            with self._lock:
                self.start()
        self._idle.put(session)

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        try:
            super().start()
        except RuntimeError as exc:
            _log.debug("the interpreter is shutting down, idle connections are not kept alive: %s", exc)
            self._thread = None

    def run(self, stop: threading.Event) -> None:
        """Keep idle connections alive, and close those that are no longer needed."""
        while not stop.wait(self._keep_s):
            for _ in range(self._idle.qsize()):
                session = self._idle_one()
                if session is None:
                    break
                if self._idle.qsize() and time.monotonic() - session.used_at > _IDLE_S:
                    session.close(_LEAVE_S)
                else:
                    self._idle.put(session)

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the idle connections; the next use opens another."""
        deadline = Deadline(timeout_s)
        self.stop()
        while session := self._idle_one():
            session.close(deadline.left_s)

    def forget(self) -> None:
        """Start empty, as in a forked child: the parent uses the connections, and the thread does not exist."""
        self._idle: SimpleQueue[Session] = SimpleQueue()
        self._permits: SimpleQueue[int] = SimpleQueue()  # no lock in Python: a signal's handler may send
        for number in range(_MOST):
            self._permits.put(number)
        self._thread = None


_living: Final[WeakSet[Pool]] = WeakSet()


def _forget_all() -> None:
    for pool in list(_living):
        pool.forget()


def _close_all() -> None:
    for pool in list(_living):
        pool.close(_LEAVE_S)


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
