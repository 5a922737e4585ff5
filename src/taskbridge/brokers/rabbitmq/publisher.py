"""The connection of a process: made when it is needed, again when it is gone, and anew in a forked child."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

from taskbridge import locks
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.parcel import Parcels
from taskbridge.brokers.rabbitmq.session import FAILURES, Outcome, Session
from taskbridge.brokers.rabbitmq.waiting import Deadline
from taskbridge.exceptions import BrokerUnavailable

T = TypeVar("T")

_TRIES: Final = 3
_LEAVE_S: Final = 0.3


class Publisher:
    """Publishes, and asks, on one connection. Threads share it.

    Args:
        parameters: Where to connect, and as whom.
        heartbeat_s: The longest time between signs of life; what the server proposes if None.
    """

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        self._parameters = parameters
        self._heartbeat_s = heartbeat_s
        self._lock = locks.Lock()
        self._session: Session | None = None
        _living.add(self)

    def session(self, timeout_s: float) -> Session:
        """Return the session, or begin one; it may not be open yet, and then it has that long to connect.

        Raises:
            ConnectionLostError: The interpreter is at its end.
        """
        with self._lock:
            if self._session is None or self._session.connection.problem is not None:
                connection = Connection(self._parameters, timeout_s=timeout_s, heartbeat_s=self._heartbeat_s)
                try:
                    connection.start()
                    self._session = Session(connection)
                except BaseException:
                    connection.lose_interrupted()
                    raise
            return self._session

    def deliver(self, parcels: Parcels, deadline: Deadline) -> Outcome:
        """Publish parcels as `Session.deliver` does, on another connection if the one there was is gone.

        A parcel is published again only if it was not taken.
        """
        outcome = Outcome()
        began = time.monotonic()
        for _ in range(_TRIES):
            try:
                session = self.session(deadline.left_s)
            except ConnectionLostError as exc:
                outcome.problem = str(exc)
                break
            accepted = outcome.accepted
            left = [parcel for parcel in parcels if parcel.number not in accepted] if accepted else parcels
            outcome = session.deliver(left, deadline)
            outcome.accepted |= accepted
            if outcome.problem is None:
                break
            again = outcome.again or (not outcome.unsure and session.connection.was_lost_by_others(began))
            if not again or deadline.passed:
                break
        return outcome

    def ask(self, act: Callable[[Session, Deadline], T], timeout_s: float) -> T:
        """Return what an act on the session returns; it is done again if the connection there was is gone.

        Raises:
            BrokerUnavailable: The server didn't answer, or refused.
        """
        deadline = Deadline(timeout_s)
        began = time.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                session = self.session(deadline.left_s)
            except ConnectionLostError as exc:
                raise BrokerUnavailable(str(exc)) from exc
            try:
                session.connection.wait_open(deadline)
                session.connection.receive()
                return act(session, deadline)
            except FAILURES as exc:
                connection = session.connection
                again = isinstance(exc, ConnectionLostError) and (
                    connection.may_be_remade or connection.was_lost_by_others(began)
                )
                if not again or tries == _TRIES or deadline.passed:
                    raise BrokerUnavailable(str(exc)) from exc

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the connection; the next use makes another."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.connection.close(timeout_s)

    def forget(self) -> None:
        """Let go of everything in a forked child: its parent uses the connection, and its threads held the locks."""
        session, self._session = self._session, None
        self._lock = locks.Lock()
        if session is not None:
            session.connection.forget()


_living: Final[WeakSet[Publisher]] = WeakSet()


def _forget_all() -> None:
    for publisher in list(_living):
        publisher.forget()


def _close_all() -> None:
    for publisher in list(_living):
        publisher.close(_LEAVE_S)


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
