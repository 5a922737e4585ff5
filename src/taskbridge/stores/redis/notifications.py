"""Wakes who watches a key: a channel for each, and one connection for all of a process's."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Any, Final

from taskbridge.brokers.redis.client import Link, connector, pack
from taskbridge.stores.notifications import Notifications

_TOGETHER: Final = 500
"""To how many channels one command subscribes at most."""


class RedisNotifications(Notifications):
    """Listens on the channels of the keys that this process watches; each channel is a prefix and the key.

    A subscription's answer wakes who watches the key: who was heard of before may have missed something meanwhile.
    """

    def __init__(self, timeout_s: float, url: str, prefix: str) -> None:
        super().__init__(timeout_s)
        self._prefix = prefix
        self._open = connector(url)
        self._subscribed: set[str] = set()
        self._unanswered: set[str] = set()  # of those, whose answer will wake: they are not heard of yet

    def _connect(self) -> Link:
        return self._open(self._timeout_s)

    def _begin(self, connection: Link) -> None:
        self._subscribed.clear()
        self._unanswered.clear()
        self._follow(connection, self._watches.keys())

    def _follow(self, connection: Link, keys: Collection[str]) -> None:
        watched = {key for key in keys if self._watches.of(key)}
        for key in watched & self._subscribed - self._unanswered:
            self._watches.hear(key)
        new, gone = watched - self._subscribed, self._subscribed.intersection(keys) - watched
        self._subscribed = (self._subscribed | new) - gone
        self._unanswered |= new
        connection.deadline = monotonic() + self._timeout_s
        for command, channels in (("SUBSCRIBE", sorted(new)), ("UNSUBSCRIBE", sorted(gone))):
            for start in range(0, len(channels), _TOGETHER):
                together = channels[start : start + _TOGETHER]
                connection.send(pack([(command, *(self._prefix + key for key in together))]))

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
        if kind == b"subscribe":
            self._unanswered.discard(key)
        if kind in (b"message", b"subscribe"):
            self._watches.wake(key)
        return kind
