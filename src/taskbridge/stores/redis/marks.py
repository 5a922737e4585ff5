"""Attempt marks in Redis.

They are written so that nobody waits for them: see `taskbridge.stores.redis.fire_and_forget`.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connection import Word, pack
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.marking import ENDED, STARTED_KEPT_S, Key, StoredMarks, Worker
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.scripts import TAKE_OVER_MARK

_HEAD: Final = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b"
"""A command that sets a key: the length of the key, the key, and the three words after it, packed."""


def _tail(value: str, ttl_s: int) -> bytes:
    """Return the words of a command that sets a key to a value for so many seconds, from the value on, packed."""
    return pack([(value, "EX", ttl_s)]).partition(b"\r\n")[2]


class RedisMarks(StoredMarks):
    """Keeps marks in a Redis database."""

    def __init__(self, settings: Settings, client: Client, unanswered: FireAndForget) -> None:
        super().__init__(settings)
        self._client = client
        self._unanswered = unanswered
        self._prefix = f"{settings.namespace}:mark:"
        self._alive_prefix = f"{settings.namespace}:alive:"
        self._ended_tail = _tail(ENDED, self._ended_kept_s)
        self._started_tail: tuple[str, bytes] = "", b""

    def _write_started(self, worker: Worker, message: Message) -> None:
        name, tail = self._started_tail
        if name != worker.name:
            tail = _tail(worker.name, STARTED_KEPT_S)
            self._started_tail = worker.name, tail
        self._write(message, tail)

    def _write_ended(self, message: Message) -> None:
        self._write(message, self._ended_tail)

    def _write(self, message: Message, tail: bytes) -> None:
        """Set a message's mark and don't wait; the words after the key are packed already."""
        key = self._key(message).encode()
        self._unanswered.send(_HEAD % (len(key), key, tail))

    def _remove(self, keys: Collection[Key], timeout_s: float) -> None:
        self._ask(timeout_s, ("DEL", *(f"{self._prefix}{life}:{attempt}" for life, attempt in keys)))

    def _make(self, worker: Worker, message: Message, timeout_s: float) -> str | None:
        key = self._key(message)
        made: Any
        made, mark = self._ask(timeout_s, ("SET", key, worker.name, "NX", "EX", STARTED_KEPT_S), ("GET", key))
        return None if made is not None else mark.decode()

    def _take_over(self, message: Message, owner: str, new_owner: str, timeout_s: float) -> bool:
        args = (owner, new_owner, STARTED_KEPT_S)
        with _as_the_store():
            taken = self._client.run(TAKE_OVER_MARK, (self._key(message),), args, timeout_s=timeout_s)
        return bool(taken)

    def _is_alive(self, name: str, timeout_s: float) -> bool:
        return bool(self._ask(timeout_s, ("EXISTS", self._alive_prefix + name)))

    def _owner(self, message: Message, timeout_s: float) -> str | None:
        owner: bytes | None = self._ask(timeout_s, ("GET", self._key(message)))
        return None if owner is None else owner.decode()

    def _say_alive(self, worker: Worker) -> None:
        life_ms = int(worker.life_s * 1000)
        timeout_s = min(self._settings.send_timeout_s, worker.life_s)
        self._ask(timeout_s, ("SET", self._alive_prefix + worker.name, "1", "PX", life_ms))

    def _say_gone(self, worker: Worker) -> None:
        self._ask(self._settings.send_timeout_s, ("DEL", self._alive_prefix + worker.name))

    def _ask(self, timeout_s: float, *commands: Sequence[Word]) -> Any:
        """Carry commands out, several in a transaction, and return the answer, or the list of answers."""
        with _as_the_store():
            return self._client.execute(commands, timeout_s=timeout_s)

    def _key(self, message: Message) -> str:
        return f"{self._prefix}{message.life}:{message.attempt}"


@contextmanager
def _as_the_store() -> Generator[None]:
    """Name the store in an error, for what is marked may be a message of another broker."""
    try:
        yield
    except BrokerUnavailable as exc:
        raise BrokerUnavailable(f"the store does not answer: {exc.problem}") from exc
