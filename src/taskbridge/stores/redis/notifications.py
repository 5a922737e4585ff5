"""Notifies who waits for a record: a channel for each message, and one connection for all of a process's.

What becomes of a message that somebody waits for, in the order in which the server answers:

| state | when | and then |
|---|---|---|
| (none) | nobody waits for it | a watch begins: SUBSCRIBE is sent |
| asked | SUBSCRIBE was sent | the server confirms it: heard |
| heard | nothing is missed any more | the last watch ends: UNSUBSCRIBE is sent |
| leaving | UNSUBSCRIBE was sent | the server confirms it: none, and if somebody waits again, asked |
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, Final

from taskbridge.brokers.redis.client import Link, connector, pack
from taskbridge.settings import Settings
from taskbridge.stores.notifications import Notifications

_TOGETHER: Final = 500
"""To how many channels one command subscribes at most."""

_LOOK_S: Final = 4.0
"""After this long without a word the server is asked whether it is there; after twice as long it isn't."""


class _State(Enum):
    ASKED = auto()
    HEARD = auto()
    LEAVING = auto()


class RedisNotifications(Notifications):
    """Listens on the channels of the messages that this process waits for."""

    def __init__(self, settings: Settings, url: str) -> None:
        super().__init__(settings)
        self._prefix = f"{settings.namespace}:ended:"
        self._open = connector(url)
        self._concerned: deque[str] = deque()
        self._states: dict[str, _State] = {}
        self._missed: set[str] = set()

    def _concerns(self, message_id: str) -> None:
        self._concerned.append(message_id)
        self._poke()

    def _hears_of(self, message_id: str) -> bool:
        return self._states.get(message_id) is _State.HEARD

    def _connect(self) -> Link:
        return self._open(self._timeout_s)

    def _serve(self, connection: Link) -> None:
        self._states.clear()
        self._concerned.clear()
        ids = self._watches.ids()
        self._missed = set(ids) if self._was_away else set()
        self._look_at(connection, ids)
        asked, asks_at = False, time.monotonic() + _LOOK_S
        while not self._closed.is_set():
            if connection.can_read() or self._wait(connection.raw.fileno(), asks_at - time.monotonic()):
                connection.deadline = time.monotonic() + self._timeout_s
                self._take(connection, connection.read())
                asked, asks_at = False, time.monotonic() + _LOOK_S
            elif time.monotonic() >= asks_at:
                if asked:
                    raise TimeoutError
                asked, asks_at = True, time.monotonic() + _LOOK_S
                self._send(connection, "PING")  # allowed here; the answer is a list, as all are
            if self._concerned:
                self._look_at(connection, [self._concerned.popleft() for _ in range(len(self._concerned))])

    def _look_at(self, connection: Link, ids: Iterable[str]) -> None:
        """Subscribe to the channels of those that somebody waits for, and leave those of the others."""
        new, gone = list[str](), list[str]()
        for message_id in dict.fromkeys(ids):
            state = self._states.get(message_id)
            if self._watches.has(message_id):
                if state is None:
                    self._states[message_id] = _State.ASKED
                    new.append(message_id)
            elif state in (_State.ASKED, _State.HEARD):
                self._states[message_id] = _State.LEAVING
                gone.append(message_id)
        for command, concerned in (("SUBSCRIBE", new), ("UNSUBSCRIBE", gone)):
            for start in range(0, len(concerned), _TOGETHER):
                channels = [self._prefix + each for each in concerned[start : start + _TOGETHER]]
                self._send(connection, command, *channels)

    def _send(self, connection: Link, *command: str) -> None:
        connection.deadline = time.monotonic() + self._timeout_s
        connection.send(pack([command]))

    def _take(self, connection: Link, reply: Any) -> None:
        kind, message_id = reply[0], (reply[1] or b"").decode().removeprefix(self._prefix)
        if kind == b"message":
            self._watches.wake(message_id)
        elif kind == b"subscribe" and self._states.get(message_id) is _State.ASKED:
            with self._changed:
                self._states[message_id] = _State.HEARD
                self._changed.notify_all()
            if message_id in self._missed:
                self._missed.discard(message_id)
                self._watches.wake(message_id)
        elif kind == b"unsubscribe":
            self._states.pop(message_id, None)
            self._look_at(connection, [message_id])
