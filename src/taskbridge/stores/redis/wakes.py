"""Wakes whoever waits for a record: a channel for each, and one connection for all that this process waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from taskbridge import locks
from taskbridge.brokers.redis.connection import TROUBLE, Link, connector, pack
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import Settings
from taskbridge.stores.watches import Watches

_log = logging.getLogger("taskbridge.store")

_TOGETHER: Final = 500
"""To how many channels one command subscribes at most."""

_LOOK_S: Final = 4.0
"""After this long without a word the server is asked whether it is there; after twice as long it isn't."""

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


_TROUBLE: Final = (*TROUBLE, AttributeError)
"""What making or using a connection may raise; the last if it is closed while it is read."""


class _Line:
    """A connection on which messages come unasked."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s

    def send(self, *command: str) -> None:
        self._limit()
        self._link.send(pack([command]))

    def read(self) -> Any:
        self._limit()
        return self._link.read()

    def has_more(self) -> bool:
        """Return whether there is something to read; what has arrived may be OpenSSL's own affair."""
        return self._link.can_read()

    def wait(self, wait_s: float) -> None:
        """Wait until something arrives, while others may write."""
        self._link.socket.can_read(wait_s)

    def close(self) -> None:
        self._link.close()

    def _limit(self) -> None:
        self._link.socket.deadline = time.monotonic() + self._timeout_s


class Wakes:
    """The watches of this process. Its thread connects again after an outage, and then wakes everybody."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._prefix = f"{settings.namespace}:ended:"
        self._timeout_s = settings.send_timeout_s
        self._connect = connector(url)
        self._watches = Watches()
        self._changed = locks.Condition()
        self._using = locks.Lock()  # of the connection: OpenSSL takes one thread at a time; after `_changed`
        self._connection: _Line | None = None
        self._asked: Counter[str] = Counter()
        self._wanted: set[str] = set()  # for these SUBSCRIBE was sent, and no UNSUBSCRIBE after it
        self._heard: set[str] = set()
        self._to_wake: set[str] = set()
        self._closed = locks.Event()
        self._thread: threading.Thread | None = None

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a record became final; returns when nothing is missed any more."""
        stop, _ = self._watches.add(message_id, wake, gone=self._gone)
        try:
            self._listen(message_id)
        except BaseException:
            stop()
            raise
        return stop

    def close(self) -> None:
        """Close the connection; nobody is woken any more."""
        self._closed.set()
        with self._changed:
            self._drop()

    def _listen(self, message_id: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            self._start()
            if message_id not in self._wanted:
                self._ask("SUBSCRIBE", [message_id])
            while message_id not in self._heard:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closed.is_set():
                    raise BrokerUnavailable("the store does not answer")
                self._changed.wait(left_s)

    def _gone(self, message_id: str) -> None:
        with self._changed:
            if self._watches.has(message_id):  # somebody else began to wait meanwhile
                return
            self._heard.discard(message_id)
            self._wanted.discard(message_id)
            if self._connection is not None:
                self._send("UNSUBSCRIBE", self._prefix + message_id)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskbridge-wakes", daemon=True)
            self._thread.start()

    def _ask(self, command: str, ids: Collection[str]) -> None:
        if self._connection is None:
            return  # the thread asks for all as soon as it has connected
        self._asked.update(ids)
        self._wanted.update(ids)
        self._send(command, *(self._prefix + each for each in ids))

    def _send(self, *command: str) -> None:
        try:
            with self._using:
                if self._connection is not None:
                    self._connection.send(*command)
        except TROUBLE:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._wanted.clear()
        self._heard.clear()
        self._asked.clear()
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        pause_s, is_first = _SHORTEST_PAUSE_S, True
        while not self._closed.is_set():
            connection: _Line | None = None
            try:
                connection = _Line(self._connect(self._timeout_s), self._timeout_s)
                self._begin(connection, is_first)
                is_first, pause_s = False, _SHORTEST_PAUSE_S
                self._read(connection)
            except _TROUBLE as exc:
                if not self._closed.is_set() and pause_s == _SHORTEST_PAUSE_S:  # once
                    _log.warning("waiting for results is interrupted: %s", type(exc).__name__)
            with self._changed:
                self._drop()
            if connection is not None:
                connection.close()
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _begin(self, connection: _Line, is_first: bool) -> None:
        with self._changed:
            self._connection = connection
            ids = list(self._watches.ids())
            self._to_wake = set() if is_first else set(ids)
            for start in range(0, len(ids), _TOGETHER):
                self._ask("SUBSCRIBE", ids[start : start + _TOGETHER])

    def _read(self, connection: _Line) -> None:
        asked, asks_at = False, time.monotonic() + _LOOK_S
        while self._connection is connection and not self._closed.is_set():
            if self._has_reply(connection, max(0.0, asks_at - time.monotonic())):
                asked, asks_at = False, time.monotonic() + _LOOK_S
                with self._using:
                    reply = connection.read()
                self._take(reply)
            elif time.monotonic() >= asks_at:
                if asked:
                    raise TimeoutError
                asked, asks_at = True, time.monotonic() + _LOOK_S
                with self._changed:
                    self._send("PING")  # allowed here; the answer is a list, as all are

    def _has_reply(self, connection: _Line, wait_s: float) -> bool:
        """Return whether there is something to read, and wait for that, while others may write."""
        with self._using:
            if connection.has_more():
                return True
        connection.wait(wait_s)
        with self._using:
            return connection.has_more()

    def _take(self, reply: Any) -> None:
        kind, channel = reply[0], reply[1]
        if kind not in (b"message", b"subscribe"):
            return
        message_id = channel.decode().removeprefix(self._prefix)
        if kind == b"message":
            self._watches.wake(message_id)
            return
        with self._changed:
            self._asked[message_id] -= 1
            if self._asked[message_id] > 0:
                return  # this answers an earlier request, which was taken back
            del self._asked[message_id]
            if message_id not in self._wanted:
                return
            self._heard.add(message_id)
            self._changed.notify_all()
            was_away = message_id in self._to_wake
            self._to_wake.discard(message_id)
        if was_away:
            self._watches.wake(message_id)
