"""A proxy in front of a broker, which can cut connections, refuse them, or stop answering."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final

from typing_extensions import Self

from taskbridge.contract.ports import free_port

_CHUNK: Final = 65536


class Proxy:
    """Passes connections on to a broker, on a port of its own of this machine.

    Args:
        place: The broker's host and port.

    Attributes:
        heard: What clients have sent so far, an item for each connection.
    """

    def __init__(self, place: tuple[str, int]) -> None:
        self._place = place
        self.port: int = free_port()
        self.heard: list[bytearray] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._answers = threading.Event()
        self._answers.set()

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._answers.set()
        self.cut()

    def cut(self) -> None:
        """End all connections, and refuse new ones until `restore`."""
        with self._lock:
            listener, self._listener = self._listener, None
            open_now, self._open = self._open | self._frozen, set()
            self._frozen = set()
        if listener is not None:
            _end(listener)
        for connection in open_now:
            _end(connection)

    def drop(self) -> None:
        """End all connections, as a firewall does with idle ones; new ones are accepted."""
        with self._lock:
            open_now, self._open = self._open, set()
        for connection in open_now:
            _end(connection)

    def freeze(self) -> None:
        """Pass nothing on any more on the connections there are, and don't end them; new ones work.

        So does a router that has forgotten connections, or a host that has died.
        """
        with self._lock:
            self._frozen |= self._open

    def stall(self) -> None:
        """Accept everything, pass nothing on, until `restore`."""
        self._answers.clear()

    def restore(self) -> None:
        """Work again."""
        self._answers.set()
        with self._lock:
            if self._listener is not None:
                return
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(64)
            self._listener = listener
        self._in_background(self._accept, listener)

    def _in_background(self, run: object, *args: object) -> None:
        threading.Thread(target=run, args=args, name="contract-proxy", daemon=True).start()  # type: ignore[arg-type]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:  # cut
                return
            self._in_background(self._join, client)

    def _join(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        self._answers.wait()
        try:
            broker = socket.create_connection(self._place, timeout=10)
        except OSError:
            return _end(client)
        broker.settimeout(None)
        heard = bytearray()
        with self._lock:
            self._open.add(broker)
            self.heard.append(heard)
        self._in_background(self._pass_on, client, broker, heard)
        self._pass_on(broker, client)
        return None

    def _pass_on(self, source: socket.socket, sink: socket.socket, heard: bytearray | None = None) -> None:
        with contextlib.suppress(OSError):  # the other end, or a cut, closed it
            while data := source.recv(_CHUNK):
                if heard is not None:
                    heard += data
                self._answers.wait()
                if source not in self._frozen:
                    sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
            is_frozen = source in self._frozen
        if is_frozen:
            return  # the other end hears of nothing
        _end(source)
        _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
