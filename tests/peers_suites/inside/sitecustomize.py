"""Loaded by every Python process of a suite: what it sends to the usual ports goes to private servers.

The suites connect to 127.0.0.1 at the usual ports of Redis and RabbitMQ and delete what they find there, so without
this they would delete what a machine's own servers hold. `PEERS_PORTS` says which port stands for which:
`6379:20001,5672:20002`.
"""

from __future__ import annotations

import os
import socket
from typing import Any

_HERE = ("127.0.0.1", "localhost", "::1")
_PORTS = {
    int(usual): int(private)
    for usual, _, private in (pair.partition(":") for pair in os.environ.get("PEERS_PORTS", "").split(",") if pair)
}


def _private(address: Any) -> Any:
    if not isinstance(address, tuple):  # of a Unix socket
        return address
    parts: tuple[Any, ...] = address
    host, port, *rest = parts
    return (host, _PORTS.get(port, port) if host in _HERE else port, *rest)


def _redirect(name: str) -> None:
    connect: Any = getattr(socket.socket, name)

    def redirected(self: socket.socket, address: Any) -> Any:
        return connect(self, _private(address))

    setattr(socket.socket, name, redirected)


for _name in ("connect", "connect_ex"):
    _redirect(_name)
