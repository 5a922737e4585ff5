"""Who in this process watches which key, and the thread that wakes them."""

from __future__ import annotations

import select
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, inf
from time import monotonic
from typing import Any, ClassVar, Final

from taskbridge.background import Background
from taskbridge.exceptions import StoreUnavailable
from taskbridge.locks import Event, Lock
from taskbridge.logs import logger

_log = logger("taskbridge.store")

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0  # between two attempts to connect; it doubles from the shortest to the longest

Wake = Callable[[], None]


@dataclass(eq=False, slots=True)
class _Watch:
    """Somebody who watches a key."""

    wake: Wake  # what to call
    heard: Event = field(default_factory=Event)  # set once no write of the key is missed; only then is `wake` called


class Watches:
    """Who watches which key. Threads share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watches: dict[str, set[_Watch]] = {}

    def add(self, key: str, wake: Wake, *, gone: Callable[[str], None] | None = None) -> tuple[Wake, Event]:
        """Add what to call, and return what removes it, and what is set when it is heard of.

        `gone` is called when nobody watches the key any more.
        """
        watch = _Watch(wake)
        with self._lock:
            self._watches.setdefault(key, set()).add(watch)

        def stop() -> None:
            with self._lock:
                watches = self._watches.get(key, set())
                if watch not in watches:
                    return
                watches.remove(watch)
                if watches:
                    return
                del self._watches[key]
            if gone is not None:
                gone(key)

        return stop, watch.heard

    def keys(self) -> Collection[str]:
        """Return the keys that are watched."""
        with self._lock:
            return tuple(self._watches)

    def of(self, key: str) -> Collection[_Watch]:
        """Return who watches a key."""
        with self._lock:
            return tuple(self._watches.get(key, ()))

    def hear(self, keys: Iterable[str]) -> None:
        """Tell who watches keys that no write of them is missed any more."""
        for watch in (each for key in keys for each in self.of(key)):
            watch.heard.set()

    def wake(self, key: str) -> None:
        """Wake who watches a key; who has not been heard of yet is told that, and looks by itself."""
        for watch in self.of(key):
            if not watch.heard.is_set():
                watch.heard.set()
                continue
            try:
                watch.wake()
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
        self._concerned: deque[str] = deque()
        self._poked, self._poking = socket.socketpair()
        self._poked.setblocking(False)
        self._poking.setblocking(False)

    def watch(self, key: str, wake: Wake) -> Wake:
        """Call `wake` after each write of a key that tells; returns when nothing is missed any more."""
        stop, heard = self._watches.add(key, wake, gone=self._look_at)
        self._look_at(key)
        self.start()
        if not heard.wait(self._timeout_s) or self._stop.is_set():
            stop()
            raise StoreUnavailable("no answer in time")
        return stop

    def close(self) -> None:
        """End the thread, and its connection; nobody is woken any more."""
        self._stop.set()
        self._poke()
        self._watches.hear(self._watches.keys())
        self.stop()
        self._poked.close()
        self._poking.close()

    def run(self, stop: threading.Event) -> None:
        """Wake watches until `stop` is set, on one connection after another."""
        pause_s = _SHORTEST_PAUSE_S
        while not stop.is_set():
            connection: Any = None
            served_from = inf
            try:
                connection = self._connect()
                self._begin(connection)
                served_from = monotonic()
                self._serve(connection, stop)
            except Exception as exc:  # of any client library, or the system: all mean that the store is away
                if monotonic() - served_from >= _LONGEST_PAUSE_S:  # a refusal comes at once, and says nothing new
                    pause_s = _SHORTEST_PAUSE_S
                if not stop.is_set() and pause_s == _SHORTEST_PAUSE_S:  # once
                    _log.warning("waiting for results is interrupted: %s", type(exc).__name__)
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
            if self._concerned:
                self._follow(connection, {self._concerned.popleft() for _ in range(len(self._concerned))})

    def _look_at(self, key: str) -> None:
        """Have the thread look at a key that somebody watches from now on, or nobody any more."""
        self._concerned.append(key)
        self._poke()

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

    def _begin(self, connection: Any) -> None:
        """Have a new connection hear of all that is watched, and wake who may have missed something."""
        self._watches.wake_all()

    def _follow(self, connection: Any, keys: Collection[str]) -> None:
        """Have it hear of those of these keys that are watched, and of the others no more."""
        self._watches.hear(keys)

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
