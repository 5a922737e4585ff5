"""Records in Redis: a hash for each message."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connection import Word
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores import transitions
from taskbridge.stores.form import from_plain, plain_of_new, to_plain
from taskbridge.stores.process import PerProcess
from taskbridge.stores.recording import Change, Decide, Runs, StoredRecords
from taskbridge.stores.records import CANCELLATIONS_AT_ONCE, FINAL
from taskbridge.stores.redis import scripts
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.notifications import RedisNotifications
from taskbridge.stores.transitions import UNENDED_KEPT_S, Kept, Run

_TOGETHER: Final = 100
"""How many records one script makes at most."""


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` with separators makes an encoder for each call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """A version of a record.

    Attributes:
        version: Its number.
        kept: The record; None if there is none.
        start: If it was not read but guessed: the start that must have made this version.
        is_guessed: Whether it was guessed.
    """

    version: int
    kept: Kept | None
    start: str = ""
    is_guessed: bool = False


class RedisRecords(StoredRecords):
    """Keeps records in a Redis database."""

    def __init__(self, settings: Settings, url: str, client: Client, unanswered: FireAndForget) -> None:
        super().__init__(settings)
        self._client = client
        self._unanswered = unanswered
        self._prefix = f"{settings.namespace}:record:"
        self._channel = f"{settings.namespace}:ended:"
        self._cancelled = f"{settings.namespace}:cancelled"
        ttl_s = settings.result_ttl_s
        self._waiting_ms = scripts.milliseconds(None if ttl_s is None else max(ttl_s, UNENDED_KEPT_S))
        self._started = PerProcess(Runs)
        self._notifications = PerProcess(lambda: RedisNotifications(settings, url))

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages, up to 100 in one script."""
        deadline = time.monotonic() + timeout_s
        for start in range(0, len(messages), _TOGETHER):
            part = messages[start : start + _TOGETHER]
            keys = [self._prefix + message.id for message, _ in part]
            args = [word for message, delay_s in part for word in self._created(message, delay_s)]
            self._client.run(scripts.CREATE_RECORDS, keys, args, timeout_s=deadline - time.monotonic())

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return a command that makes a record, with the script's text: a transaction can't ask whether it is known."""
        words = self._created(message, delay_s)
        return "EVAL", scripts.CREATE_RECORDS.text, 1, self._prefix + message.id, *words

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records that nobody has changed."""
        keys = [self._prefix + each for each in ids]
        deadline = time.monotonic() + timeout_s
        for start in range(0, len(keys), _TOGETHER):
            part = keys[start : start + _TOGETHER]
            self._client.run(scripts.FORGET_RECORDS, part, (), timeout_s=deadline - time.monotonic())

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts; waits for nothing."""
        runs, run = self._runs(), Run(worker=worker, at=at)
        runs.add(message, run)
        script = scripts.NOTE_START.text  # not by its name: nobody would hear that the server doesn't know it
        start = _start(message, run, runs.writer)
        self._unanswered.write("EVAL", script, 1, self._prefix + message.id, start, self._waiting_ms)

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a message's record became final, until it is told to stop."""
        return self._notifications.get().watch(message_id, wake)

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor."""
        after, limit = f"({cursor}" if cursor else "-inf", ("LIMIT", 0, CANCELLATIONS_AT_ONCE)
        command = ("ZRANGEBYSCORE", self._cancelled, after, "+inf", "WITHSCORES", *limit)
        found = self._client.execute([command], timeout_s=timeout_s)
        return found[-1].decode() if found else cursor, [life.decode() for life in found[::2]]

    def close(self) -> None:
        """Close the connections."""
        notifications = self._notifications.take()
        if notifications is not None:
            notifications.close()

    def _runs(self) -> Runs:
        return self._started.get()

    def _read(self, message_id: str, timeout_s: float) -> Kept | None:
        return self._look(message_id, time.monotonic() + timeout_s).kept

    def _end(self, message: Message, run: Run | None, decide: Decide, timeout_s: float) -> Change:
        guess = _guess(message, run, self._runs().writer)
        return self._changed(message.id, guess, decide, time.monotonic() + timeout_s)

    def _cancel(self, message_id: str, decide: Decide, timeout_s: float) -> Change:
        deadline = time.monotonic() + timeout_s
        return self._changed(message_id, self._look(message_id, deadline), decide, deadline, cancels=True)

    def _changed(
        self, message_id: str, seen: _Seen, decide: Decide, deadline: float, *, cancels: bool = False
    ) -> Change:
        """Replace a record by what is decided about it: in one round trip if it still is as it was seen or guessed."""
        while True:
            new = decide(seen.kept)
            if new is not None:
                now = self._write(message_id, seen, new, deadline, cancels=cancels)
            elif seen.is_guessed:
                now = self._look(message_id, deadline)
            else:
                now = None
            if now is None:
                return seen.kept, new
            seen = now

    def _write(self, message_id: str, seen: _Seen, new: Kept, deadline: float, *, cancels: bool) -> _Seen | None:
        """Write a record if it is as it was seen; return None then, and else what there is now."""
        now, cancelled = time.time(), seen.kept if cancels else None
        keys = [self._prefix + message_id, self._channel + message_id]
        if cancelled is not None:
            keys += [self._cancelled, f"{self._cancelled}:until"]
        found = scripts.write(
            self._client,
            keys,
            version=seen.version,
            start=seen.start,
            kept_s=self._kept_s(new, now),
            told=new.record.state if new.record.state in FINAL else "",
            cancelled="" if cancelled is None else transitions.life_of(cancelled.record),
            cancellation_kept_s=None if cancelled is None else self._cancellation_kept_s(cancelled, now),
            fields={"record": _packed(new), "result": new.record.result_json, "life": new.record.replays or None},
            timeout_s=deadline - time.monotonic(),
        )
        return None if found is None else _seen(message_id, found)

    def _look(self, message_id: str, deadline: float) -> _Seen:
        command = ("HGETALL", self._prefix + message_id)
        return _seen(message_id, self._client.execute([command], timeout_s=deadline - time.monotonic()))

    def _created(self, message: Message, delay_s: float) -> tuple[Word, ...]:
        kept_ms = self._waiting_ms
        if delay_s > 0 and isinstance(kept_ms, int):
            kept_ms += max(0, round((message.enqueued_at + delay_s - time.time()) * 1000))
        return kept_ms, message.replays, _encode(plain_of_new(message, delay_s))


def _guess(message: Message, run: Run | None, writer: str) -> _Seen:
    """Return the version that a record has if nothing was heard of its message but the start of this run.

    Then an end makes the same of it whatever there was before: a record of this life as it was made, one of an earlier
    life, or none. A record of a later life has a version from the beginning, so that it is never taken for this one.
    """
    if run is None:
        return _Seen(version=0, kept=None, is_guessed=True)
    return _Seen(version=1, kept=None, start=_start(message, run, writer), is_guessed=True)


def _start(message: Message, run: Run, writer: str) -> str:
    sent = [message.task, message.queue, message.enqueued_at, message.replays, message.attempt]
    return _encode([*sent, run.worker, run.at, writer])


def _seen(message_id: str, found: Sequence[bytes]) -> _Seen:
    """Return a record with all that has been noted of starts since it was written."""
    fields = scripts.fields_of(found)
    kept = None
    if "record" in fields:
        kept = from_plain(message_id, {**json.loads(fields["record"]), "result": fields.get("result")})
    noted = sorted((int(name[6:]), start) for name, start in fields.items() if name.startswith("start:"))
    for _, start in noted:
        kept = _with_start(message_id, kept, start) or kept
    return _Seen(version=int(fields.get("version", "0")), kept=kept)


def _with_start(message_id: str, kept: Kept | None, start: str) -> Kept | None:
    task, queue, enqueued_at, replays, attempt, worker, at, writer = json.loads(start)
    sent = Message(id=message_id, task=task, queue=queue, args_json="[]", kwargs_json="{}", enqueued_at=enqueued_at)
    message = replace(sent, replays=replays, attempt=attempt)
    return transitions.started(kept, message, Run(worker=worker, at=at), writer=writer)


def _packed(kept: Kept) -> str:
    plain = to_plain(kept)
    plain.pop("result", None)  # it may be long, and is JSON already
    return _encode(plain)
