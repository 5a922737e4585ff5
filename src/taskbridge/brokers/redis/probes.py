"""Probes in queues on Redis, and signs.

Redis forgets no item of a list by itself. So beside each probe a hash holds what removes it, for whoever asks next.

| key | type | holds |
|---|---|---|
| `{ns}:probes` | hash | by the id of each probe: when it expires, and the commands that remove it, as JSON |
| `{ns}:sign:{name}` | string | nothing; it is there while the sign can be seen |
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from typing import Any, Final, cast

from taskbridge.brokers.base import RedisCommand, Wire
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connection import Request, Word
from taskbridge.message import Message

_SLACK_S: Final = 60.0
"""How much the clocks of those who ask may differ."""


class Probes:
    """The probes and signs of a namespace."""

    def __init__(self, client: Client, wire: Wire[Sequence[RedisCommand]], namespace: str) -> None:
        self._client = client
        self._wire = wire
        self._key = f"{namespace}:probes"
        self._sign = f"{namespace}:sign:"

    def ask(self, probes: Sequence[Message], *, timeout_s: float) -> None:
        """Publish probes, after removing those that have expired."""
        deadline = time.monotonic() + timeout_s
        self._remove_expired(timeout_s)
        for probe in probes:
            publishing = self._wire.encode(probe)
            note = json.dumps([probe.expires_at, _undoing(publishing)])
            request: Request = [*publishing, ("HSET", self._key, probe.id, note)]
            self._client.execute(request, timeout_s=deadline - time.monotonic())

    def withdraw(self, probes: Sequence[Message], signs: Sequence[str], *, timeout_s: float) -> None:
        """Remove these probes and signs."""
        ids = [probe.id for probe in probes]
        if not ids:
            return
        notes = self._client.execute([("HMGET", self._key, *ids)], timeout_s=timeout_s)
        self._undo({each: note for each, note in zip(ids, notes, strict=True) if note is not None}, timeout_s)
        self._client.execute([("DEL", *(self._sign + name for name in signs))], timeout_s=timeout_s)

    def _remove_expired(self, timeout_s: float) -> None:
        reply = self._client.execute([("HGETALL", self._key)], timeout_s=timeout_s)
        notes = dict(zip(reply[::2], reply[1::2], strict=True))
        now = time.time()
        self._undo({each: note for each, note in notes.items() if json.loads(note)[0] + _SLACK_S < now}, timeout_s)

    def _undo(self, notes: dict[Any, bytes], timeout_s: float) -> None:
        for each, note in notes.items():
            commands = cast("list[list[Word]]", json.loads(note)[1])
            self._client.execute([*commands, ("HDEL", self._key, each)], timeout_s=timeout_s)

    def leave_signs(self, names: Sequence[str], *, life_s: float, timeout_s: float) -> None:
        """Leave signs."""
        commands = [("SET", self._sign + name, "", "PX", round(life_s * 1000)) for name in names]
        self._client.execute(commands, timeout_s=timeout_s)

    def see_signs(self, names: Sequence[str], *, timeout_s: float) -> Collection[str]:
        """Return those of these signs that are there."""
        replies = self._client.execute([("MGET", *(self._sign + name for name in names))], timeout_s=timeout_s)
        return {name for name, reply in zip(names, replies, strict=True) if reply is not None}


def _undoing(publishing: Sequence[RedisCommand]) -> list[list[str]]:
    """Return the commands that remove what these have put in a list or a hash."""
    undoing: list[list[str]] = []
    for name, key, item, *_ in publishing:
        if name in ("LPUSH", "RPUSH"):
            undoing.append(["LREM", _text(key), "0", _text(item)])
        elif name == "HSET":
            undoing.append(["HDEL", _text(key), _text(item)])
    return undoing


def _text(word: Word) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
