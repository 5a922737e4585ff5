"""The connections of a process: opened on demand, kept for reuse, and opened anew in a forked child."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, TypeVar
from weakref import WeakSet

from pika import spec

from taskbridge.background import Background
from taskbridge.brokers.rabbitmq.channel import NOT_FOUND, Channel, Outcome
from taskbridge.brokers.rabbitmq.connection import ClientError, Deadline, TimedOutError, in_child
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.publication import EncodedPublication
from taskbridge.logs import logger

T = TypeVar("T")

_TRIES: Final = 12  # how often a call is tried if its connection is lost
_MOST: Final = 8
"""While there are this many connections, a thread waits for one for half of its time before it opens another."""

_KEEP_S: Final = 1.0
_IDLE_S: Final = 5.0  # a connection that was idle for this long is closed, unless it is the last one
_JOIN_S: Final = 1.0
_LEAVE_S: Final = 0.3

_log = logger("taskbridge.rabbitmq")


class _Place:
    """A place for a connection with one channel, which one thread at a time uses."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.used_at: float = 0.0


class Pool(Background):
    """Publishes and asks on connections to one server or cluster, which threads share.

    Each connection is used by one thread at a time. The pool's own thread keeps idle ones alive, from the first on.
    """

    def __init__(self, hosts: Hosts) -> None:
        super().__init__("rabbitmq", join_s=_JOIN_S)
        self._hosts = hosts
        self._keep_s = _KEEP_S
        self.forget()
        in_child.add(self)
        _living.add(self)

    def forget(self) -> None:
        """Start empty, as in a forked child: the parent uses the connections."""
        self._idle: SimpleQueue[_Place] = SimpleQueue()  # no lock in Python: a signal's handler may send
        self._places: WeakSet[_Place] = WeakSet()  # so that a thread that is interrupted anywhere leaves none behind

    def deliver(self, publications: Mapping[int, EncodedPublication], deadline: Deadline) -> Outcome:
        """Publish messages as `Channel.publish` does, on another connection if the first one was lost.

        A message is published again only if the server has not taken it.
        """
        outcome = Outcome()

        def publish(channel: Channel) -> None:
            try:
                channel.publish(publications, outcome, deadline)
            except ClientError as exc:
                # What is not found is an exchange that was deleted after this channel had declared it.
                exc.again = (exc.again or exc.code == NOT_FOUND) and not outcome.unsure
                raise

        try:
            self.use(publish, deadline)
        except ClientError as exc:
            outcome.problem = str(exc)
        return outcome

    def use(self, act: Callable[[Channel], T], deadline: Deadline) -> T:
        """Call a function with a channel, and again with another one if its connection was lost; return its result."""
        tries = _TRIES
        while True:
            tries -= 1
            try:
                return self._used(act, deadline)
            except ClientError as exc:
                if not exc.again or tries == 0 or deadline.passed:
                    raise

    def _used(self, act: Callable[[Channel], T], deadline: Deadline) -> T:
        """Call a function with an open channel; its connection is reused afterwards, unless its state is unknown."""
        place = self._place(deadline)
        channel = place.channel
        try:
            if channel is not None:
                channel.connection.read()  # notice a close now, not after publishing into the void
            if channel is None or channel.closed is not None:
                is_lost = channel is None or channel.connection.problem is not None
                channel = Channel(self._hosts.connect(deadline) if channel is None or is_lost else channel.connection)
                place.channel = channel
                channel.call(spec.Confirm.Select(), deadline)
            return act(channel)
        except ClientError as exc:
            if channel is not None and channel.connection.blocked is None and isinstance(exc, TimedOutError):
                channel.connection.lose(str(exc))  # if it is blocked, it is usable again when the alarm ends
                self._drop_idle(str(exc))
            raise
        except BaseException:  # a signal or a time limit: the next confirm might belong to this publication
            if channel is not None:
                channel.connection.lose(f"the connection to RabbitMQ at {channel.connection.where} was interrupted")
            raise
        finally:
            self._give_back(place)

    def _drop_idle(self, reason: str) -> None:
        """Give idle connections up: they may have died as silently, and each would cost another call its time."""
        for _ in range(self._idle.qsize()):
            with suppress(Empty):
                place = self._idle.get_nowait()  # so that nobody uses it
                if place.channel is not None:
                    place.channel.connection.lose(reason)
                self._idle.put(place)

    def _place(self, deadline: Deadline) -> _Place:
        with suppress(Empty):
            return self._idle.get_nowait()
        if len(self._places) >= _MOST:
            with suppress(Empty):
                return self._idle.get(timeout=deadline.slice_s / 2)
        place = _Place()
        self._places.add(place)
        return place

    def _give_back(self, place: _Place) -> None:
        place.used_at = time.monotonic()
        self._idle.put(place)
        self.start()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        try:
            super().start()
        except RuntimeError as exc:
            _log.debug("the interpreter is shutting down, idle connections are not kept alive: %s", exc)

    def run(self, stop: threading.Event) -> None:
        """Keep idle connections alive, and close those that are no longer needed."""
        while not stop.wait(self._keep_s):
            for _ in range(self._idle.qsize()):
                self._keep()

    def _keep(self) -> None:
        with suppress(Empty):
            place = self._idle.get_nowait()
            if place.channel is None:
                return
            connection = place.channel.connection
            connection.read()
            self._keep_s = min(self._keep_s, connection.read_s)
            if self._idle.qsize() and time.monotonic() - place.used_at > _IDLE_S:
                connection.close(_LEAVE_S)
            if connection.problem is None:
                self._idle.put(place)

    def close(self, timeout_s: float = 1.0) -> None:
        """Close the idle connections; the next use opens another."""
        deadline = Deadline(timeout_s)
        self.stop()
        with suppress(Empty):
            while True:
                channel = self._idle.get_nowait().channel
                if channel is not None:
                    channel.connection.close(deadline.left_s)


_living: Final[WeakSet[Pool]] = WeakSet()


def _close_all() -> None:
    for pool in list(_living):
        pool.close(_LEAVE_S)


atexit.register(_close_all)
