"""Who in this process watches which key, and the thread that wakes them."""

from __future__ import annotations

import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from math import ceil, inf
from time import monotonic
from typing import Any, ClassVar, Final

from taskbridge.background import Background
from taskbridge.exceptions import StoreUnavailable
from taskbridge.locks import Condition, Lock
from taskbridge.logs import logger

_log = logger("taskbridge.store")

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
"""Between two attempts to connect; it doubles from the shortest to the longest."""

Wake = Callable[[], None]


class Watches:
    """A table of what to call, by key. Threads share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wakes: dict[str, dict[object, Wake]] = {}

    def add(self, key: str, wake: Wake, *, gone: Callable[[str], None] | None = None) -> Wake:
        """Add what to call, and return what removes it.

        Args:
            key: What is watched.
            wake: What to call.
            gone: Is called when nobody watches the key any more.
        """
        number = object()
        with self._lock:
            self._wakes.setdefault(key, {})[number] = wake

        def stop() -> None:
            with self._lock:
                wakes = self._wakes.get(key, {})
                if wakes.pop(number, None) is None or wakes:
                    return
                del self._wakes[key]
            if gone is not None:
                gone(key)

        return stop

    def keys(self) -> Collection[str]:
        """Return the keys that are watched."""
        with self._lock:
            return tuple(self._wakes)

    def has(self, key: str) -> bool:
        """Return whether anybody watches a key."""
        with self._lock:
            return key in self._wakes

    def wake(self, key: str) -> None:
        """Wake who watches a key."""
        with self._lock:
            wakes = tuple(self._wakes.get(key, {}).values())
        for wake in wakes:
            try:
                wake()
            except Exception:
                _log.exception("a wake for %s failed", key)

    def wake_all(self) -> None:
        """Wake everybody."""
        for key in self.keys():
            self.wake(key)


class Notifications(Background, ABC):
    """The watches of this process: one thread with one connection, from the first watch on.

    Only that thread uses the connection. Other threads poke it when something has changed for it to look at. After an
    outage it connects again and wakes everybody, for it may have missed something.
    """

    is_told: ClassVar[bool] = True
    """Whether the connection has something to read when a write tells; else it is only asked."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__("notifications", join_s=1.0)
        self._timeout_s = timeout_s
        self._watches = Watches()
        self._changed = Condition()
        self._is_connected = False
        self._poked, self._poking = socket.socketpair()
        self._poked.setblocking(False)
        self._poking.setblocking(False)

    def watch(self, key: str, wake: Wake) -> Wake:
        """Call `wake` after each write of a key that tells; returns when nothing is missed any more."""
        stop = self._watches.add(key, wake, gone=self._concerns)
        deadline = monotonic() + self._timeout_s
        self._concerns(key)
        with self._changed:
            self.start()
            while not self._hears_of(key):
                left_s = deadline - monotonic()
                if left_s <= 0 or self._stop.is_set():
                    break
                self._changed.wait(left_s)
            else:
                return stop
        stop()
        raise StoreUnavailable("no answer in time")

    def close(self) -> None:
        """End the thread, and its connection; nobody is woken any more."""
        self._stop.set()
        self._poke()
        with self._changed:
            self._changed.notify_all()
        self.stop()
        self._poked.close()
        self._poking.close()

    def run(self, stop: threading.Event) -> None:
        """Wake watches until `stop` is set, on one connection after another."""
        pause_s, was_away = _SHORTEST_PAUSE_S, False
        while not stop.is_set():
            connection: Any = None
            try:
                connection = self._connect()
                self._begin(connection)
                self._tell_connected(True)
                pause_s = _SHORTEST_PAUSE_S
                if was_away:
                    self._watches.wake_all()
                self._serve(connection, stop)
            except Exception as exc:  # of any client library, or the system: all mean that the store is away
                if not stop.is_set() and pause_s == _SHORTEST_PAUSE_S:  # once
                    _log.warning("waiting for results is interrupted: %s", type(exc).__name__)
            self._tell_connected(False)
            was_away = True
            if connection is not None:
                with suppress(Exception):  # it is of no use any more
                    connection.close()
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _serve(self, connection: Any, stop: threading.Event) -> None:
        heard_at = monotonic()
        while not stop.is_set():
            asks_at = heard_at + self._silence_s()
            if self._wait(connection, asks_at - monotonic()):
                self._hear(connection)
                heard_at = monotonic()
            elif monotonic() >= asks_at:
                self._ask(connection)
                heard_at = monotonic()
            self._follow(connection)

    def _tell_connected(self, is_connected: bool) -> None:
        with self._changed:
            self._is_connected = is_connected
            self._changed.notify_all()

    def _poke(self) -> None:
        with suppress(OSError):  # it has been poked often enough, or is closed
            self._poking.send(b"x")

    def _wait(self, connection: Any, wait_s: float) -> bool:
        """Wait until there is something to read, somebody pokes, or so long; return whether there is to read."""
        poll, poked = select.poll(), self._poked.fileno()
        poll.register(poked, select.POLLIN)
        if self.is_told:
            poll.register(connection, select.POLLIN)
        ready = {found for found, _ in poll.poll(None if wait_s == inf else ceil(max(0.0, wait_s) * 1000))}
        if poked in ready:
            with suppress(BlockingIOError):
                self._poked.recv(4096)
        return bool(ready - {poked})

    # What each store does in its own way

    def _concerns(self, key: str) -> None:
        """Have the thread look at a key that somebody watches from now on, or nobody any more."""
        self._poke()

    def _hears_of(self, key: str) -> bool:
        """Return whether nothing of a key is missed any more."""
        return self._is_connected

    def _begin(self, connection: Any) -> None:
        """Have the connection hear of all that is watched."""

    def _follow(self, connection: Any) -> None:
        """Have it hear of what is watched now, and of nothing else; called often."""

    def _silence_s(self) -> float:
        """Return after how many seconds without a word it is time to `_ask`."""
        return 4.0

    @abstractmethod
    def _connect(self) -> Any:
        """Return a connection; it has the methods `close` and, if it is told of writes, `fileno`."""

    def _hear(self, connection: Any) -> None:
        """Read what there is to read, and wake whom it concerns."""

    @abstractmethod
    def _ask(self, connection: Any) -> None:
        """Ask the server whether it is there, or whether anything has changed; raises if it is away."""
