"""Wakes who watches a key: a channel for each, and one connection for all of a process's."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Any, Final

from redis.exceptions import NoPermissionError

from taskbridge.brokers.redis.client import Link, connector, pack
from taskbridge.brokers.redis.places import Place
from taskbridge.logs import logger
from taskbridge.stores.notifications import Notifications

_log = logger("taskbridge.store")

_LOOK_S: Final = 0.5  # how often those who wait look where nothing is told
_TOGETHER: Final = 500  # to how many channels one command subscribes at most


class RedisNotifications(Notifications):
    """Listens on the channels of the keys that this process watches; each channel is a prefix and the key.

    A subscription's answer wakes who watches the key: who was heard of before may have missed something meanwhile.
    Where Redis does not permit to subscribe, all are woken twice a second, and look for themselves.

    Attributes:
        refusal: Why Redis does not permit it; empty as long as nothing was refused.
    """

    def __init__(self, timeout_s: float, place: Place, prefix: str) -> None:
        super().__init__(timeout_s)
        self._prefix = prefix
        self._open = connector(place)
        self.refusal: str = ""
        self._subscribed: set[str] = set()
        self._unanswered: set[str] = set()  # of those, whose answer will wake: they are not heard of yet

    def _connect(self) -> Link:
        return self._open(self._timeout_s)

    def _begin(self, connection: Link) -> None:
        self._subscribed.clear()
        self._unanswered.clear()
        self._follow(connection, self._watches.keys())

    def _follow(self, connection: Link, keys: Collection[str]) -> None:
        if self.refusal:
            super()._follow(connection, keys)
            return
        watched = {key for key in keys if self._watches.of(key)}
        self._watches.hear(watched & self._subscribed - self._unanswered)
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
        self._read(connection)
        while connection.can_read():
            self._read(connection)

    def _ask(self, connection: Link) -> None:
        connection.deadline = monotonic() + self._timeout_s
        connection.send(pack([("PING",)]))
        while self._read(connection) != b"pong":
            continue
        if self.refusal:
            self._watches.wake_all()

    def _silence_s(self) -> float:
        return _LOOK_S if self.refusal else super()._silence_s()

    def _read(self, connection: Link) -> bytes:
        """Take the next reply; one that refuses a subscription is the last of them."""
        try:
            return self._take(connection.read())
        except NoPermissionError as exc:
            if not self.refusal:
                namespace = self._prefix.partition(":")[0]
                self.refusal = f"Redis does not permit SUBSCRIBE, so results are polled; permit &{namespace}*: {exc}"
                _log.warning("%s", self.refusal)
            super()._follow(connection, self._watches.keys())
            return b""

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
