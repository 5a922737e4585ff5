"""Writes to Redis that nobody waits for.

They go through connections of their own whose replies are off (`CLIENT REPLY OFF`): such a write costs 5 us, where one
with a round trip costs 38 us, and it reaches the server even if the writer is killed right after it. Each thread that
writes has its own: threads that wait for one another's writes take more time than the writes.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import Final

from redis.exceptions import ResponseError

from taskbridge import locks
from taskbridge.brokers.redis.connection import TROUBLE, Link, connector, pack
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.store")

_CONNECT_S: Final = 2.0

_PAUSE_S: Final = 1.0
"""How long nothing is written after a failure."""

_PEER_IS_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
"""What tells that the server has closed a connection; the last is Linux's."""

_ESTABLISHED: Final = b"\x01"
"""The state of a connection that neither side has closed, as Linux says it first in its `tcp_info` (tcp(7))."""

_REPLIES_ON: Final = pack([("CLIENT", "REPLY", "ON")])
_REPLIES_OFF: Final = pack([("CLIENT", "REPLY", "OFF")])


class _Line:
    """A connection whose replies are off; closed when its thread has ended."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._has_replies = not self._turn_replies_off()
        # The interpreter's lock is kept for that question, and let go for poll(): other threads would take it.
        self._is_tcp = sys.platform == "linux" and link.socket.family != socket.AF_UNIX
        self._option = link.socket.getsockopt
        self._ending = select.poll()
        # No POLLIN: TLS has something to read after its handshake.
        self._ending.register(link.socket.fileno(), _PEER_IS_GONE)

    def _turn_replies_off(self) -> bool:
        """Have the server send no replies; return whether it lets users like this one do that."""
        self._link.send(_REPLIES_ON)  # which is answered, the other isn't
        try:
            self._link.read()
        except ResponseError as exc:
            _log.info("each write to the store is answered, and costs more for that: %s", exc)
            return False
        self._link.send(_REPLIES_OFF)
        return True

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed it: what is sent then is lost without a trace."""
        if self._is_tcp:
            state: bytes = self._option(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state != _ESTABLISHED
        return bool(self._ending.poll(0))

    def send(self, request: bytes) -> None:
        """Send a request.

        Raises:
            redis.RedisError, OSError: The connection is broken.
        """
        self._link.socket.deadline = monotonic() + self._timeout_s
        while self._has_replies and self._link.can_read():  # else the server would keep what it answers
            with suppress(ResponseError):
                self._link.read()
        self._link.send(request)

    def __del__(self) -> None:
        self._link.close()


class Silent:
    """Sends commands to a Redis server and waits for no answer. Threads share it; a forked process makes its own."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._connect = connector(url)
        self._timeout_s = settings.send_timeout_s
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._local = locks.Local()
        self._silent_until = 0.0

    def write(self, *command: str | bytes | int | float) -> None:
        """Send a command and don't wait; see `send`."""
        self.send(pack([command]))

    def send(self, request: bytes) -> None:
        """Send a packed command and don't wait; if no new connection can be had, nothing is sent for a second."""
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._start_over()
        if monotonic() < self._silent_until:
            return
        link: _Line | None = getattr(self._local, "link", None)
        if link is not None and not link.is_closed and self._sent(link, request):
            return
        if not self._sent(None, request):
            self._silent_until = monotonic() + _PAUSE_S

    def _sent(self, link: _Line | None, request: bytes) -> bool:
        """Send a request on this thread's connection, or on a new one, and return whether that went well."""
        try:
            if link is None:
                link = self._local.link = _Line(self._connect(_CONNECT_S), self._timeout_s)
            link.send(request)
        except TROUBLE as exc:
            _log.warning("the store can't be written to: %s", type(exc).__name__)
            self._local.link = None
            return False
        return True

    def close(self) -> None:
        """Let go of the connections, if they are this process's; the next write makes a new one."""
        if self._pid == os.getpid():
            self._local.link = None
            self._local = locks.Local()
