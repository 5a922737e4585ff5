"""Who in this process waits for which record, and the thread that notifies them when it becomes final."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from math import ceil
from typing import Any, Final

from taskbridge.exceptions import BrokerUnavailable
from taskbridge.locks import Condition, Event, Lock
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.store")

_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
"""Between two attempts to connect; it doubles from the shortest to the longest."""
_CLOSING_S: Final = 1.0
"""How long closing waits for the thread, which holds a connection."""

Wake = Callable[[], None]


class Watches:
    """A table of what to call, by message id. Threads share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wakes: dict[str, dict[object, Wake]] = {}

    def add(self, message_id: str, wake: Wake, *, gone: Callable[[str], None] | None = None) -> Wake:
        """Add what to call, and return what removes it.

        Args:
            message_id: What is waited for.
            wake: What to call.
            gone: Is called when nobody waits for the message any more.
        """
        key = object()
        with self._lock:
            self._wakes.setdefault(message_id, {})[key] = wake

        def stop() -> None:
            with self._lock:
                wakes = self._wakes.get(message_id, {})
                if wakes.pop(key, None) is None or wakes:
                    return
                del self._wakes[message_id]
            if gone is not None:
                gone(message_id)

        return stop

    def ids(self) -> Collection[str]:
        """Return the ids that are waited for."""
        with self._lock:
            return tuple(self._wakes)

    def has(self, message_id: str) -> bool:
        """Return whether anybody waits for a message."""
        with self._lock:
            return message_id in self._wakes

    def wake(self, message_id: str) -> None:
        """Wake who waits for a message."""
        with self._lock:
            wakes = tuple(self._wakes.get(message_id, {}).values())
        for wake in wakes:
            try:
                wake()
            except Exception:
                _log.exception("a wake for message %s failed", message_id)

    def wake_all(self) -> None:
        """Wake everybody."""
        for message_id in self.ids():
            self.wake(message_id)


class Notifications(ABC):
    """The watches of this process: one thread with one connection, from the first watch on.

    Only that thread uses the connection. Other threads poke it when something has changed for it to look at. After an
    outage it connects again and wakes everybody, for it may have missed something.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout_s = settings.send_timeout_s
        self._watches = Watches()
        self._changed = Condition()
        self._closed = Event()
        self._is_connected = False
        self._was_away = False
        self._thread: threading.Thread | None = None
        self._poked, self._poking = socket.socketpair()
        self._poked.setblocking(False)
        self._poking.setblocking(False)

    def watch(self, message_id: str, wake: Wake) -> Wake:
        """Call `wake` whenever a record became final; returns when nothing is missed any more."""
        stop = self._watches.add(message_id, wake, gone=self._concerns)
        deadline = time.monotonic() + self._timeout_s
        self._concerns(message_id)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskbridge-notifications", daemon=True)
                self._thread.start()
            while not self._hears_of(message_id):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closed.is_set():
                    break
                self._changed.wait(left_s)
            else:
                return stop
        stop()
        raise BrokerUnavailable("the store does not answer")

    def wake_here(self, message_id: str) -> None:
        """Wake who waits in this process for a record that it has written itself."""
        self._watches.wake(message_id)

    def close(self) -> None:
        """End the thread, and its connection; nobody is woken any more."""
        self._closed.set()
        self._poke()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSING_S)
        self._poked.close()
        self._poking.close()

    def _run(self) -> None:
        pause_s = _SHORTEST_PAUSE_S
        while not self._closed.is_set():
            connection: Any = None
            try:
                connection = self._connect()
                self._tell_connected(True)
                pause_s = _SHORTEST_PAUSE_S
                self._serve(connection)
            except Exception as exc:  # of any client library, or the system: all mean that the store is away
                if not self._closed.is_set() and pause_s == _SHORTEST_PAUSE_S:  # once
                    _log.warning("waiting for results is interrupted: %s", type(exc).__name__)
            self._tell_connected(False)
            if connection is not None:
                with suppress(Exception):  # it is of no use any more
                    connection.close()
            self._was_away = True
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _tell_connected(self, is_connected: bool) -> None:
        with self._changed:
            self._is_connected = is_connected
            self._changed.notify_all()

    def _poke(self) -> None:
        with suppress(OSError):  # it has been poked often enough, or is closed
            self._poking.send(b"x")

    def _wait(self, descriptor: int | None = None, wait_s: float | None = None) -> bool:
        """Wait until there is something to read, somebody pokes, or so long; return whether there is to read.

        Args:
            descriptor: Where there may be something to read; None is nowhere.
            wait_s: For how long; None is as long as it takes.
        """
        poll = select.poll()
        poll.register(self._poked, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        ready = [found for found, _ in poll.poll(None if wait_s is None else ceil(max(0.0, wait_s) * 1000))]
        if self._poked.fileno() in ready:
            with suppress(BlockingIOError):
                self._poked.recv(4096)
        return descriptor in ready

    # What each store does in its own way

    def _concerns(self, message_id: str) -> None:
        """Have the thread look at a message that somebody waits for from now on, or nobody any more."""
        self._poke()

    def _hears_of(self, message_id: str) -> bool:
        """Return whether nothing of a message is missed any more."""
        return self._is_connected

    @abstractmethod
    def _connect(self) -> Any:
        """Return a connection; it has a method `close`."""

    @abstractmethod
    def _serve(self, connection: Any) -> None:
        """Wake watches until this is closed; raises if the connection is lost.

        Wakes everybody first if this `_was_away`: what became final meanwhile was missed.
        """
