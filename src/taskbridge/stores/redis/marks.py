"""Attempt marks in Redis.

A mark is a key for a message's attempt; it holds the name of the worker that started it, or `ended`. A worker is
alive as long as its own key is there.

Marks are written so that nobody waits for them: see `taskbridge.stores.redis.silent`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connecting import Word, pack
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.base import Claim
from taskbridge.stores.marking import ENDED, STARTED_KEPT_S, Key, StoredMarks, Worker
from taskbridge.stores.redis.silent import Silent

_HEAD: Final = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b"
"""A command that sets a key: the length of the key, the key, and the three words after it, packed."""


def _tail(value: str, ttl_s: int) -> bytes:
    """Return the words of a command that sets a key to a value for so many seconds, from the value on, packed."""
    return pack([(value, "EX", ttl_s)]).partition(b"\r\n")[2]


_CLAIM: Final = """
local mark = redis.call('GET', KEYS[1])
if mark == 'ended' then return 'ended' end
local owner, lost = mark, false
if mark and string.sub(mark, -5) == '|lost' then owner, lost = string.sub(mark, 1, -6), true end
if owner and owner ~= ARGV[1] and redis.call('EXISTS', ARGV[2] .. owner) == 1 then return 'running' end
if owner == ARGV[1] and ARGV[4] == '1' then return 'running' end
if owner == ARGV[1] then return lost and 'lost' or 'run' end
redis.call('SET', KEYS[1], owner and ARGV[1] .. '|lost' or ARGV[1], 'EX', ARGV[3])
return owner and 'lost' or 'run'
"""


class RedisMarks(StoredMarks):
    """Keeps marks in a Redis database."""

    def __init__(self, settings: Settings, url: str, silent: Silent | None = None) -> None:
        super().__init__(settings)
        self._client = Client(url)
        self._silent = Silent(settings, url) if silent is None else silent
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
        self._silent.send(_HEAD % (len(key), key, tail))

    def _remove(self, keys: Collection[Key], timeout_s: float) -> None:
        self._ask(timeout_s, "DEL", *(f"{self._prefix}{life}:{attempt}" for life, attempt in keys))

    def _claim(self, worker: Worker, message: Message, timeout_s: float, *, is_running_here: bool) -> Claim:
        words = worker.name, self._alive_prefix, STARTED_KEPT_S, "1" if is_running_here else "0"
        answer: bytes = self._ask(timeout_s, "EVAL", _CLAIM, 1, self._key(message), *words)
        return Claim(answer.decode())

    def _owner(self, message: Message, timeout_s: float) -> str | None:
        owner: bytes | None = self._ask(timeout_s, "GET", self._key(message))
        return None if owner is None else owner.decode()

    def _say_alive(self, worker: Worker) -> None:
        life_ms = int(worker.life_s * 1000)
        timeout_s = min(self._settings.send_timeout_s, worker.life_s)
        self._ask(timeout_s, "SET", self._alive_prefix + worker.name, "1", "PX", life_ms)

    def _say_gone(self, worker: Worker) -> None:
        self._ask(self._settings.send_timeout_s, "DEL", self._alive_prefix + worker.name)

    def _tidy(self) -> None:
        return  # keys expire

    def _disconnect(self) -> None:
        self._silent.close()
        self._client.close()

    def _ask(self, timeout_s: float, *command: Word) -> Any:
        """Send a command and return the answer."""
        try:
            return self._client.execute([command], timeout_s=timeout_s)
        except BrokerUnavailable as exc:
            raise BrokerUnavailable(f"the store does not answer: {exc.problem}") from exc

    def _key(self, message: Message) -> str:
        return f"{self._prefix}{message.life}:{message.attempt}"
