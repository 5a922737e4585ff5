"""A private PostgreSQL server, as `tests.servers` has them for Redis and RabbitMQ."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from tests.programs import Origin
from tests.servers import PrivateServer, ServerFailed

_HOST: Final = "127.0.0.1"


class PrivatePostgreSQL(PrivateServer):
    """A private PostgreSQL server with an empty database, to which anybody on this machine may connect.

    Args:
        extra_args: Further arguments, such as `("-c", "max_connections=10")`.
        origin: Where its programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.
    """

    name: ClassVar[str] = "postgresql"

    def __init__(
        self, *, extra_args: Sequence[str] = (), origin: Origin | None = None, start_timeout_s: float = 300.0
    ) -> None:
        super().__init__(origin=origin, start_timeout_s=start_timeout_s)
        self._extra_args = tuple(extra_args)

    @property
    def url(self) -> str:
        """`postgresql://taskbridge@127.0.0.1:PORT/postgres`, for the setting `store`."""
        return f"postgresql://taskbridge@{_HOST}:{self.port}/postgres"

    def kill(self) -> None:
        """End the server at once, as a crash would; its next start recovers from its log."""
        self.resume()
        self._end_server(signal.SIGQUIT)  # what it calls immediate: SIGKILL would leave its shared memory behind

    def shut_down(self) -> None:
        """End the server without waiting for its clients."""
        self.resume()
        self._end_server(signal.SIGINT)

    def _program(self, name: str) -> str:
        # Debian puts none of them on the path.
        return self.origin.find(name, package="postgresql", folders=("/usr/lib/postgresql/*/bin",))

    def _command(self) -> list[str]:
        return [
            self._program("postgres"),
            *("-D", "data"),
            *("-p", str(self.port)),
            *("-c", f"listen_addresses={_HOST}"),
            *("-c", "unix_socket_directories="),
            *("-c", "fsync=off"),
            *("-c", "full_page_writes=off"),
            *("-c", "max_connections=200"),
            *("-c", "shared_buffers=32MB"),
            *self._extra_args,
        ]

    def _prepare(self) -> None:
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        identity = self._identity()
        if identity is not None:
            self.folder.chmod(0o711)
            os.chown(data, *identity)
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C")
        made = subprocess.run(
            **self._how([self._program("initdb"), *("-D", "data", "-U", "taskbridge", "--no-sync"), *options]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if made.returncode != 0:
            raise ServerFailed(self.name, "initdb failed", (made.stdout + made.stderr).decode(errors="replace"))

    def _environment(self) -> Mapping[str, str]:
        # Variables of the user's own would send this server to other files.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**inherited, "HOME": str(self.folder), "LC_ALL": "C"}

    def _identity(self) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        user = next((found for name in ("postgres", "nobody") if (found := _user(name)) is not None), None)
        if user is None:
            raise ServerFailed(self.name, "it refuses to run as root, and there is no user postgres or nobody", "")
        return user

    def _is_ready(self) -> bool:
        words = b"user\0taskbridge\0database\0postgres\0\0"
        with socket.create_connection((_HOST, self.port), timeout=2.0) as connection:
            connection.sendall(struct.pack("!II", 8 + len(words), 0x30000) + words)
            return connection.recv(1) == b"R"  # not an error, as while it starts

    def _signal(self, signal_number: int) -> None:
        """Send a signal to the server and its children, which are in sessions of their own."""
        if self._server is None or self._server.poll() is not None:
            return
        for pid in (self._server.pid, *_children(self._server.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal_number)


def _user(name: str) -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _children(parent: int) -> list[int]:
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(stat.parts[-2]))
    return children
