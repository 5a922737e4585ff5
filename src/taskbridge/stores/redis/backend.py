"""What a store in Redis keeps, under which keys.

| key | type | holds |
|---|---|---|
| `{ns}:record:{id}` | string | a record |
| `{ns}:mark:{life}:{attempt}` | string | the worker that started an attempt, or `ended` |
| `{ns}:mark:{life}:{attempt}:taken` | string | how often a message was taken before its attempt was started |
| `{ns}:alive:{worker}` | string | is there as long as the worker counts as alive |
| `{ns}:schedule:{name}` | string | what is known of a schedule |
| `{ns}:schedules` | string | which schedules the code has, and when they are due |
| `{ns}:planned:{part}` | string | schedules that were put at run time, by name |
| `{ns}:planned` | string | the versions of these parts |
| `{ns}:told:{key}` | channel | tells who watches one of these that it was written: of a record, that it became final |
| `{ns}:cancelled` | sorted set | the life of each cancelled message, by a growing number made of the server's time |
| `{ns}:cancelled:until` | sorted set | the same, by the millisecond at which it is forgotten |

One script replaces any of the strings if its first line is as it was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis.client import Request, Script, Word, client_of, pack
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable
from taskbridge.locks import PerProcess
from taskbridge.settings import Settings
from taskbridge.stores.backend import Backend, Write
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.notifications import RedisNotifications

_SWAP: Final = Script(__file__, "swap")
_SINCE: Final = Script(__file__, "since")

_ODD_BYTES: Final = "surrogateescape"  # how bytes come through that somebody else has written, and that are no text


class RedisBackend(Backend):
    """Keeps texts in a Redis database."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._client = client_of(url)
        self._unanswered = FireAndForget(settings, url)
        self._prefix = f"{settings.namespace}:"
        self._channels = f"{self._prefix}told:"
        self._cancelled = f"{self._prefix}cancelled"
        self._notifications = PerProcess(lambda: RedisNotifications(settings.send_timeout_s, url, self._channels))
        self._tails: dict[float, bytes] = {}

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        """Return texts."""
        if not keys:
            return []
        [found] = self._ask(timeout_s, [("MGET", *(self._prefix + key for key in keys))])
        return [None if text is None else text.decode(errors=_ODD_BYTES) for text in found]

    def create(self, entries: Sequence[tuple[str, str, float | None]], *, timeout_s: float) -> None:
        """Keep texts, unless there is one."""
        self._ask(timeout_s, *([self.creating(*each)] for each in entries))

    def creating(self, key: str, text: str, kept_s: float | None) -> RedisCommand:
        """Return a command that keeps a text unless there is one."""
        life = () if kept_s is None else ("PX", _milliseconds(kept_s))
        return "SET", self._prefix + key, text, "NX", *life

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        """Replace texts, each if it is as it was seen."""
        done = self._ask(timeout_s, *([self._swapping(each)] for each in writes))
        return [each == 1 for each in done]

    def _swapping(self, write: Write) -> RedisCommand:
        """Return the command that does a write."""
        keys: tuple[str, ...] = self._prefix + write.key, self._channels + write.key
        text, kept = "" if write.text is None else write.text, _milliseconds(write.kept_s)
        args: tuple[Word, ...] = write.seen.encode(errors=_ODD_BYTES), text, kept, int(write.tells)
        if write.cancels:
            keys += self._cancelled, f"{self._cancelled}:until"
            args += write.cancels, _milliseconds(write.cancellation_kept_s)
        return _SWAP(keys, *args)

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        """Keep a text."""
        self._ask(timeout_s, [("SET", self._prefix + key, text, "PX", _milliseconds(kept_s))])

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        """Keep a text; nobody waits for that."""
        tail = self._tails.get(kept_s)  # there are two: of starts, and of ends
        if tail is None:
            tail = self._tails[kept_s] = pack([("PX", _milliseconds(kept_s))]).partition(b"\r\n")[2]
        name, value = (self._prefix + key).encode(), text.encode()
        words = len(name), name, len(value), value, tail
        self._unanswered.send(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % words)

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        """Remove texts."""
        self._ask(timeout_s, [("DEL", *(self._prefix + key for key in keys))])

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor."""
        after = f"({cursor}" if cursor else "-inf"
        [found] = self._ask(timeout_s, [_SINCE([self._cancelled], after, most)])
        return found[-1].decode() if found else cursor, [life.decode(errors="replace") for life in found[::2]]

    def watch(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each write of a key that tells."""
        return self._notifications.get().watch(key, wake)

    def ping(self, *, timeout_s: float) -> None:
        """Return if Redis answers."""
        self._ask(timeout_s, [("PING",)])

    def time(self, *, timeout_s: float) -> float:
        """Return the server's time."""
        [(seconds, microseconds)] = self._ask(timeout_s, [("TIME",)])
        return int(seconds) + int(microseconds) / 1e6

    def close(self) -> None:
        """Close the connections."""
        self._notifications.close()
        self._unanswered.close()
        self._client.close()

    def _ask(self, timeout_s: float, *requests: Request) -> list[Any]:
        """Carry requests out, pipelined, and return the replies; raises if one of them was not carried out."""
        replies = self._client.execute_all(requests, timeout_s=timeout_s)
        for reply in replies:
            if isinstance(reply, BrokerUnavailable):  # the store is named, for it may be beside another broker
                raise StoreUnavailable(reply.problem) from reply.__cause__
        return replies


def _milliseconds(duration_s: float | None) -> int | str:
    """Return a duration as Redis takes it: at least 1; empty is for ever."""
    return "" if duration_s is None else max(1, round(duration_s * 1000))
