"""Wakes who watches a key: a channel for each, and one connection for all of a process's.

Redis answers in order. So a key is heard of when it is subscribed to, and nothing that was sent about it is unanswered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

from taskbridge.brokers.redis.client import Link, connector, pack
from taskbridge.stores.notifications import Notifications

_TOGETHER: Final = 500
"""To how many channels one command subscribes at most."""


class RedisNotifications(Notifications):
    """Listens on the channels of the keys that this process watches; each channel is a prefix and the key."""

    def __init__(self, timeout_s: float, url: str, prefix: str) -> None:
        super().__init__(timeout_s)
        self._prefix = prefix
        self._open = connector(url)
        self._concerned: deque[str] = deque()
        self._subscribed: set[str] = set()
        self._unanswered: dict[str, int] = {}

    def _concerns(self, key: str) -> None:
        self._concerned.append(key)
        self._poke()

    def _hears_of(self, key: str) -> bool:
        return self._is_connected and key in self._subscribed and key not in self._unanswered

    def _connect(self) -> Link:
        return self._open(self._timeout_s)

    def _begin(self, connection: Link) -> None:
        self._subscribed.clear()
        self._unanswered.clear()
        self._concerned.clear()
        self._change(connection, self._watches.keys())
        while self._unanswered:
            self._hear(connection)

    def _follow(self, connection: Link) -> None:
        if self._concerned:
            self._change(connection, [self._concerned.popleft() for _ in range(len(self._concerned))])

    def _change(self, connection: Link, keys: Iterable[str]) -> None:
        """Subscribe to the channels of those that somebody watches, and leave those of the others."""
        new, gone = list[str](), list[str]()
        for key in dict.fromkeys(keys):
            was_subscribed = key in self._subscribed
            self._subscribed.discard(key)  # before the look: who begins to watch it now waits for an answer
            if not self._watches.has(key):
                gone += [key] if was_subscribed else []
            elif not was_subscribed:
                new.append(key)
            else:
                with self._changed:
                    self._subscribed.add(key)
                    self._changed.notify_all()
        self._send(connection, "SUBSCRIBE", new)
        self._send(connection, "UNSUBSCRIBE", gone)
        self._subscribed.update(new)

    def _send(self, connection: Link, command: str, keys: list[str]) -> None:
        for key in keys:
            self._unanswered[key] = self._unanswered.get(key, 0) + 1
        connection.deadline = monotonic() + self._timeout_s
        for start in range(0, len(keys), _TOGETHER):
            connection.send(pack([(command, *(self._prefix + key for key in keys[start : start + _TOGETHER]))]))

    def _hear(self, connection: Link) -> None:
        connection.deadline = monotonic() + self._timeout_s
        self._take(connection.read())
        while connection.can_read():
            self._take(connection.read())

    def _ask(self, connection: Link) -> None:
        connection.deadline = monotonic() + self._timeout_s
        connection.send(pack([("PING",)]))
        while self._take(connection.read()) != b"pong":
            continue

    def _take(self, reply: Any) -> bytes:
        """Return what a reply is, after whom it concerns was woken."""
        if reply == b"PONG":  # else it is a list: while nothing is subscribed to
            return b"pong"
        kind: bytes
        kind, channel = reply[:2]
        key = channel.decode().removeprefix(self._prefix)
        if kind == b"message":
            self._watches.wake(key)
        elif kind in (b"subscribe", b"unsubscribe"):
            with self._changed:
                left = self._unanswered.pop(key) - 1
                if left:
                    self._unanswered[key] = left
                self._changed.notify_all()
        return kind
