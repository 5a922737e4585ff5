"""Ends a call to a database that takes too long: psycopg itself waits for a silent server for ever."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from taskbridge import locks

T = TypeVar("T")

_LOOK_S: Final = 0.05


class Deadlines:
    """Cuts connections whose calls are late: what waits on them then fails at once. Threads share it."""

    def __init__(self) -> None:
        self._lock = locks.Condition()
        self._calls: dict[int, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, descriptor: int, deadline: float) -> None:
        """Watch a connection's call; `deadline` is by the monotonic clock."""
        with self._lock:
            self._calls[descriptor] = threading.get_ident(), deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskbridge-deadlines", daemon=True)
                self._thread.start()
            elif len(self._calls) == 1:
                self._lock.notify()

    def remove_mine(self) -> None:
        """Watch this thread's calls no longer."""
        mine = threading.get_ident()
        with self._lock:
            for descriptor in [each for each, (thread, _) in self._calls.items() if thread == mine]:
                del self._calls[descriptor]

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._closed = True
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._calls and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                now = time.monotonic()
                for descriptor in [each for each, (_, deadline) in self._calls.items() if deadline <= now]:
                    cut(descriptor)  # under the lock: its number can't be another connection's yet
                    del self._calls[descriptor]
            time.sleep(_LOOK_S)


def cut(descriptor: int) -> None:
    """End a connection, so that whatever waits on it fails at once."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


class InTime(Generic[T]):
    """Makes something in a thread, so that no part of it outlasts a deadline; what comes too late is given away."""

    def __init__(self, make: Callable[[], T], discard: Callable[[T], None]) -> None:
        self._make = make
        self._discard = discard
        self._lock = locks.Lock()
        self._ended = locks.Event()
        self._given_up = False
        self._made: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="taskbridge-sql-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            self._made.append(self._make())
        except BaseException as exc:
            self._error = exc
        with self._lock:
            if self._given_up and self._made:
                self._discard(self._made.pop())
            self._ended.set()

    def wait(self, timeout_s: float) -> T:
        """Return what was made.

        Raises:
            TimeoutError: It wasn't in time.
            Exception: What making it raised.
        """
        self._ended.wait(max(0.0, timeout_s))
        with self._lock:
            if not self._ended.is_set():
                self._given_up = True
                raise TimeoutError("no connection in time")
        if self._error is not None:
            raise self._error
        return self._made.pop()
