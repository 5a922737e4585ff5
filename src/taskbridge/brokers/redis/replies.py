"""What Redis answers: reads it from a connection, and tells its errors apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_RECEIVED: Final = 1 << 16
"""How many bytes are received at a time, at most."""

_MOST_SHOWN: Final = 60

_DEEPEST: Final = 8
"""How deep arrays may lie in one another; those of the commands and scripts here do so three times."""

_FULL: Final = "ERR max number of clients reached"
"""What the server says to a connection that it closes at once."""

_CREDENTIALS: Final = frozenset({"NOAUTH", "WRONGPASS", "DENIED"})
_BREAKING: Final = _CREDENTIALS | {"LOADING"}
_DEMOTED: Final = frozenset({"READONLY", "MASTERDOWN"})
_CLUSTER: Final = frozenset({"ASK", "MOVED", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"})


class RedisTrouble(Exception):
    """A connection can't be used any longer, or an error came as a reply."""


class OutOfTime(RedisTrouble):
    """There was no answer in time."""


class NotRedis(RedisTrouble):
    """What came is no reply of the protocol's second version."""


class ReplyError(RedisTrouble):
    """An error came as a reply: the command was not carried out.

    Attributes:
        code: Its first word, such as `WRONGTYPE`.
        text: The rest.
    """

    def __init__(self, line: str) -> None:
        line = line.partition(", with args beginning with")[0]  # which may be a password
        super().__init__(line)
        code, _, text = line.partition(" ")
        self.code: str = code
        self.text: str = text

    @property
    def breaks(self) -> bool:
        """Whether the connection is of no further use: it has no rights, or the server is not ready."""
        return self.code in _BREAKING

    @property
    def is_of_demoted(self) -> bool:
        """Whether it is what a server says that was the primary: new connections may lead to the new one."""
        return self.code in _DEMOTED

    @property
    def problem(self) -> str:
        """What is wrong, without where in a script it arose."""
        text = self.text if self.code == "ERR" or self.code in _KNOWN else str(self)
        text = text.partition(" script: ")[0]
        return _KNOWN.get(self.code, "Redis refuses: {}").format(text)


_KNOWN: Final = {
    "LOADING": "Redis is loading its data",
    "OOM": "Redis is out of memory: {}",
    "READONLY": "this Redis is a read-only replica: {}",
    "MASTERDOWN": "this Redis is a replica without its primary: {}",
    "NOPERM": "Redis refuses: {}",
    "NOSCRIPT": "Redis refuses: {}",
    "EXECABORT": "Redis refuses: {}",
    **dict.fromkeys(_CREDENTIALS, "Redis refuses the credentials: {}"),
    **dict.fromkeys(_CLUSTER, "Redis Cluster is not supported: {}"),
}
"""What error replies mean, by their code (redis.io, "Redis serialization protocol specification", simple errors)."""


def _size(digits: bytes) -> int:
    if not digits.isdigit():
        raise ValueError
    return int(digits)


class Replies:
    """Reads the replies on a socket, in version 2 of the protocol; redis-py's own way takes five times as long."""

    __slots__ = ("_at", "_data", "_receive")

    def __init__(self, socket: Any) -> None:
        self._receive: Callable[[int], bytes] = socket.recv
        self._data = b""
        self._at = 0

    @property
    def has_more(self) -> bool:
        """Whether a part of the next reply has been received."""
        return self._at < len(self._data)

    def read(self) -> Any:
        """Return a reply; an error in an array is an item of it.

        Raises:
            ReplyError: The reply is an error.
            RedisTrouble, OSError: The connection can't be used any longer.
        """
        reply = self._reply()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def _reply(self, depth: int = 0) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        try:
            if kind == b"$":
                return None if rest == b"-1" else self._bytes(_size(rest))
            if kind == b":":
                return int(rest)
            if kind == b"*" and depth < _DEEPEST:
                return None if rest == b"-1" else [self._reply(depth + 1) for _ in range(_size(rest))]
        except ValueError:
            kind = b""
        text = line.decode(errors="replace")
        if kind != b"-":
            raise NotRedis(f"what answers is not Redis, it says {text[:_MOST_SHOWN]!r}")
        if text[1:] == _FULL:
            raise RedisTrouble(text[1:])
        return ReplyError(text[1:])

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            self.receive()
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _bytes(self, size: int) -> bytes:
        while len(self._data) - self._at < size + 2:
            self.receive()
        found = self._data[self._at : self._at + size]
        self._at += size + 2
        return found

    def receive(self) -> None:
        """Receive a part of the next reply."""
        received = self._receive(_RECEIVED)
        if not received:
            raise RedisTrouble("the server has closed the connection")
        self._data = self._data[self._at :] + received
        self._at = 0
