"""Ports of 127.0.0.1 that nobody uses."""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress
from typing import Final

_HOST: Final = "127.0.0.1"

# Below the range from which Linux takes the local ports of outgoing connections (from 32768 on): a client that keeps
# trying to reconnect can otherwise take the port of a server that is down, by connecting to itself.
_PORTS: Final = range(20_000, 32_000)

_reserved: Final[set[int]] = set()
"""The ports that this process has."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now; no other call gets it while this process lives.

    A server binds its port seconds later, and again after each restart.
    """
    for port in random.SystemRandom().sample(_PORTS, k=200):
        if _is_free(port) and _reserve(port):
            return port
    raise OSError(f"none of 200 ports from {_PORTS.start} to {_PORTS.stop} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((_HOST, port))
            return True
    return False


def _reserve(port: int) -> bool:
    """Keep a port for this process; return False if another one, or an earlier call, has it.

    Linux has names of sockets that are no files, and that go with the process (unix(7), abstract sockets). Elsewhere
    other processes are not kept from it.
    """
    if port in _reserved:
        return False
    guard = socket.socket(socket.AF_UNIX)
    try:
        if sys.platform == "linux":
            guard.bind(f"\0taskbridge-port-{port}")
    except OSError:
        guard.close()
        return False
    guard.detach()  # so that it is open until the process ends
    _reserved.add(port)
    return True
