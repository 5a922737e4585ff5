"""Writes to Redis that nobody waits for.

They go through one connection of the process whose replies are off (`CLIENT REPLY OFF`): such a write costs 5 us, where
one with a round trip costs 38 us, and it reaches the server even if the writer is killed right after it.
"""

from __future__ import annotations

import select
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import Final

from redis.exceptions import ResponseError

from taskbridge.brokers.redis.client import Link, connector, pack
from taskbridge.brokers.redis.places import TROUBLE, Place
from taskbridge.locks import Lock, PerProcess
from taskbridge.logs import logger
from taskbridge.settings import Settings

_log = logger("taskbridge.store")

_CONNECT_S: Final = 2.0

_PAUSE_S: Final = 1.0  # how long nothing is written after a failure
_PEER_IS_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
"""What tells that the server has closed a connection; the last is Linux's."""

_ESTABLISHED: Final = b"\x01"
"""The state of a connection that neither side has closed, as Linux says it first in its `tcp_info` (tcp(7))."""


class _Line:
    """A connection whose replies are off, if the server lets its user turn them off."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        link.deadline = monotonic() + timeout_s
        link.send(pack([("CLIENT", "REPLY", "ON")]))  # which is answered, OFF isn't
        try:
            link.read()
            self._has_replies = False
            link.send(pack([("CLIENT", "REPLY", "OFF")]))
        except ResponseError as exc:
            self._has_replies = True
            _log.info("each write to the store is answered, and costs more for that: %s", exc)
        self._option = link.raw.getsockopt
        # The interpreter's lock is kept for that question, and let go for poll(): other threads would take it.
        self._is_tcp = sys.platform == "linux" and link.raw.family != socket.AF_UNIX
        self._ending = select.poll()
        self._ending.register(link.raw.fileno(), _PEER_IS_GONE)  # no POLLIN: TLS reads after its handshake

    def is_sent(self, packed: bytes) -> bool:
        """Send what was packed, and return whether that went well as far as can be seen at once."""
        try:
            if self._is_closed():
                return False
            self._link.deadline = monotonic() + self._timeout_s
            while self._has_replies and self._link.can_read():  # the server would keep them else
                with suppress(ResponseError):
                    self._link.read()
            self._link.send(packed)
            return True
        except TROUBLE as exc:
            _log.warning("the store can't be written to: %s", type(exc).__name__)
            return False
        except BaseException:  # thrown into this thread: half a command may be sent
            self._link.close()
            raise

    def _is_closed(self) -> bool:
        """Return whether the server has closed it: what is sent then is lost without a trace."""
        if self._is_tcp:
            return bool(self._option(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _ESTABLISHED)
        return bool(self._ending.poll(0))

    def close(self) -> None:
        self._link.close()


class FireAndForget:
    """Sends commands to a Redis server and waits for no answer. Threads share it; a forked process makes its own."""

    def __init__(self, settings: Settings, place: Place) -> None:
        connect = connector(place)
        self._using = Lock()
        self._line = PerProcess(lambda: _Line(connect(_CONNECT_S), settings.send_timeout_s))
        self._silent_until = 0.0

    def send(self, packed: bytes) -> None:
        """Send a packed command and don't wait; if no new connection can be had, nothing is sent for a second."""
        with self._using:
            line = self._line.made
            if line is None or not line.is_sent(packed):
                self._send_anew(packed)

    def close(self) -> None:
        """Close the connection; the next write makes a new one."""
        with self._using:
            self._line.close()

    def _send_anew(self, packed: bytes) -> None:
        """Send a packed command on a new connection."""
        self._line.close()
        if monotonic() < self._silent_until:
            return
        try:
            if self._line.get().is_sent(packed):
                return
        except TROUBLE as exc:
            _log.warning("the store can't be written to: %s", type(exc).__name__)
        self._line.close()
        self._silent_until = monotonic() + _PAUSE_S
