"""What a store in Redis keeps, under which keys.

| key | type | holds |
|---|---|---|
| `{ns}:record:{id}` | string | a record, see below |
| `{ns}:ended:{id}` | channel | tells that a record became final |
| `{ns}:cancelled` | sorted set | the life of each cancelled message, by a growing number made of the server's time |
| `{ns}:cancelled:until` | sorted set | the same, by the millisecond at which it is forgotten |
| `{ns}:mark:{life}:{attempt}` | string | the worker that started an attempt, or `ended` |
| `{ns}:alive:{worker}` | string | is there as long as the worker counts as alive |
| `{ns}:schedule:{name}` | string | what is known of a schedule, as JSON |

A record is two or three lines: its version (0 is as it was made), its row as JSON, and what its task returned, which
may be long and is JSON already. One script replaces any of the strings if its first line is as it was seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from redis.exceptions import NoScriptError

from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis.client import client_of, pack
from taskbridge.brokers.redis.scripts import Call, Word, script
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import Settings
from taskbridge.stores.backend import Backend, Write
from taskbridge.stores.process import PerProcess
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.notifications import RedisNotifications
from taskbridge.stores.states import Row

_SWAP: Final = script(__file__, "swap")

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` with separators makes an encoder for each call."""


class RedisBackend(Backend):
    """Keeps rows and texts in a Redis database."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._client = client_of(url)
        self._unanswered = FireAndForget(settings, url)
        self._prefix = f"{settings.namespace}:"
        self._records = f"{self._prefix}record:"
        self._channels = f"{self._prefix}ended:"
        self._cancelled = f"{self._prefix}cancelled"
        self._notifications = PerProcess(lambda: RedisNotifications(settings, url))
        self._tails: dict[tuple[str, float], bytes] = {}

    # Rows

    def create(self, rows: Sequence[tuple[str, Row, float | None]], *, timeout_s: float) -> None:
        """Keep rows, unless there is one."""
        self._execute_all([[self.creating(*each)] for each in rows], timeout_s)

    def creating(self, message_id: str, row: Row, kept_s: float | None) -> RedisCommand:
        """Return a command that keeps a row unless there is one."""
        life = () if kept_s is None else ("PX", _milliseconds(kept_s))
        return "SET", self._records + message_id, "0\n" + _encode(row), "NX", *life

    def read(self, message_id: str, *, timeout_s: float) -> Row | None:
        """Return a row."""
        found: bytes | None = self._client.execute([("GET", self._records + message_id)], timeout_s=timeout_s)
        if found is None:
            return None
        version, text, *result = found.decode().split("\n", 2)
        row: Row = json.loads(text)
        if version != "0":
            row["version"] = int(version)
        if result:
            row["result"] = result[0]
        return row

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        """Replace rows, each if it is as it was seen."""
        if len(writes) == 1:
            return [self._client.run(self._swap_of(writes[0]), timeout_s=timeout_s) == 1]
        deadline = time.monotonic() + timeout_s
        calls = [(len(call.keys), *call.keys, *call.args) for call in map(self._swap_of, writes)]
        try:
            done = self._execute_all([[("EVALSHA", _SWAP.sha, *call)] for call in calls], timeout_s)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, NoScriptError):
                raise
            texts: list[Sequence[Sequence[Word]]] = [[("EVAL", _SWAP.text, *call)] for call in calls]
            done = self._execute_all(texts, deadline - time.monotonic())
        return [each == 1 for each in done]

    def _swap_of(self, write: Write) -> Call:
        """Return the script that does a write."""
        keys: tuple[str, ...] = (self._records + write.id, self._channels + write.id)
        row, told = write.row, ""
        text = "" if row is None else _packed(row)
        if row is not None and write.tells:
            told = row["state"]
        args: tuple[Word, ...] = (write.seen, text, _milliseconds(write.kept_s), told)
        if write.cancels:
            keys += self._cancelled, f"{self._cancelled}:until"
            args += write.cancels, _milliseconds(write.cancellation_kept_s)
        return _SWAP(keys, *args)

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor."""
        after = f"({cursor}" if cursor else "-inf"
        command = ("ZRANGEBYSCORE", self._cancelled, after, "+inf", "WITHSCORES", "LIMIT", 0, most)
        found = self._client.execute([command], timeout_s=timeout_s)
        return found[-1].decode() if found else cursor, [life.decode() for life in found[::2]]

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each write that tells of a message."""
        return self._notifications.get().watch(message_id, wake)

    # Texts

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        """Return texts."""
        if not keys:
            return []
        found: list[bytes | None] = self._ask(timeout_s, ("MGET", *(self._prefix + key for key in keys)))
        return [None if text is None else text.decode() for text in found]

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        """Keep a text."""
        self._ask(timeout_s, ("SET", self._prefix + key, text, "PX", _milliseconds(kept_s)))

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        """Keep a text; nobody waits for that."""
        tail = self._tails.get((text, kept_s))  # there are two: this worker's name, and that an attempt has ended
        if tail is None:
            tail = self._tails[text, kept_s] = pack([(text, "PX", _milliseconds(kept_s))]).partition(b"\r\n")[2]
        name = (self._prefix + key).encode()
        self._unanswered.send(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b" % (len(name), name, tail))

    def add(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> str | None:
        """Keep a text unless there is one."""
        name = self._prefix + key
        added: Any
        found: bytes
        added, found = self._ask(timeout_s, ("SET", name, text, "NX", "PX", _milliseconds(kept_s)), ("GET", name))
        return None if added is not None else found.decode()

    def swap(self, key: str, seen: str | None, text: str, *, kept_s: float | None, timeout_s: float) -> bool:
        """Replace a text if it is as it was seen."""
        args = ("0" if seen is None else seen, text, _milliseconds(kept_s))
        with _as_the_store():
            return bool(self._client.run(_SWAP((self._prefix + key,), *args), timeout_s=timeout_s))

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        """Remove texts."""
        self._ask(timeout_s, ("DEL", *(self._prefix + key for key in keys)))

    # All

    def ping(self, *, timeout_s: float) -> None:
        """Return if Redis answers."""
        self._client.execute([("PING",)], timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        notifications = self._notifications.take()
        if notifications is not None:
            notifications.close()
        self._unanswered.close()
        self._client.close()

    def _ask(self, timeout_s: float, *commands: Sequence[Word]) -> Any:
        """Carry commands out, several in a transaction, and return the answer, or the list of answers."""
        with _as_the_store():
            return self._client.execute(commands, timeout_s=timeout_s)

    def _execute_all(self, requests: Sequence[Sequence[Sequence[Word]]], timeout_s: float) -> list[Any]:
        """Carry requests out, pipelined, and return the replies; raises if one of them was not carried out."""
        outcomes = self._client.execute_all(requests, timeout_s=timeout_s)
        for outcome in outcomes:
            if isinstance(outcome, BrokerUnavailable):
                raise outcome
        return outcomes


def _packed(row: Row) -> str:
    plain, result = dict(cast("dict[str, Any]", row)), row.get("result")
    version = plain.pop("version", 0)
    if result is None:
        return f"{version}\n{_encode(plain)}"
    del plain["result"]
    return f"{version}\n{_encode(plain)}\n{result}"


def _milliseconds(duration_s: float | None) -> int | str:
    """Return a duration as Redis takes it: at least 1; empty is for ever."""
    return "" if duration_s is None else max(1, round(duration_s * 1000))


@contextmanager
def _as_the_store() -> Generator[None]:
    """Name the store in an error, for what is marked may be a message of another broker."""
    try:
        yield
    except BrokerUnavailable as exc:
        raise BrokerUnavailable(f"the store does not answer: {exc.problem}") from exc
