"""Writes to Redis that nobody waits for.

They go through a connection of their own whose replies are off (`CLIENT REPLY OFF`): such a write costs 5 us, where one
with a round trip costs 38 us, and it reaches the server even if the writer is killed right after it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from time import monotonic
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError

from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.store")

_PAUSE_S: Final = 1.0
"""How long nothing is written after a failure."""

_PEER_IS_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
"""What tells that the server has closed a connection; the last is Linux's."""


class Silent:
    """Sends commands to a Redis server and waits for no answer. Threads share it; a forked process makes its own."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._client: Any = Redis.from_url(url, socket_timeout=settings.send_timeout_s, socket_connect_timeout=2.0)
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Any = None
        self._ending: Any = None
        self._silent_until = 0.0

    def write(self, *command: object) -> None:
        """Send a command and don't wait; if no new connection can be had, nothing is written for a second."""
        if self._pid != os.getpid():  # forked: the socket is the parent's
            self._start_over()
        with self._lock:
            if monotonic() < self._silent_until:
                return
            if self._connection is not None and self._ending.poll(0):  # else the first write would be lost untold
                self._connection = None
            is_new = self._connection is None
            if self._sent(command) or (not is_new and self._sent(command)):
                return
            self._silent_until = monotonic() + _PAUSE_S

    def _sent(self, command: tuple[object, ...]) -> bool:
        try:
            if self._connection is None:
                self._connection = self._connected()
            self._connection.send_command(*command)
        except (RedisError, OSError) as exc:
            _log.warning("the store can't be written to: %s", type(exc).__name__)
            self._connection = None
            return False
        return True

    def _connected(self) -> Any:
        connection = self._client.connection_pool.make_connection()
        connection.connect()
        connection.send_command("CLIENT", "REPLY", "OFF")
        self._ending = select.poll()
        # No POLLIN: TLS has something to read after its handshake.
        self._ending.register(connection._sock, _PEER_IS_GONE)
        return connection

    def close(self) -> None:
        """Close the connection, if it is this process's; the next write makes a new one."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._connection is not None:
                self._connection.disconnect()
                self._connection = None
