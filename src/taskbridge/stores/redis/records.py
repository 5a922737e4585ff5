"""Records in Redis: a hash for each message."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from taskbridge import locks
from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connecting import Word
from taskbridge.message import Message
from taskbridge.retry import ErrorInfo
from taskbridge.settings import Settings
from taskbridge.stores.records import CANCELLATIONS_AT_ONCE, AttemptRecord, Ending, Record, State
from taskbridge.stores.redis import scripts
from taskbridge.stores.redis.silent import Silent
from taskbridge.stores.redis.wakes import Wakes
from taskbridge.stores.runs import Runs
from taskbridge.stores.transitions import CANCELLATION_KEPT_S, UNENDED_KEPT_S, Run

_TOGETHER: Final = 100
"""For how many records one script works at most."""


class RedisRecords:
    """Keeps records in a Redis database."""

    def __init__(self, settings: Settings, url: str, client: Client, silent: Silent) -> None:
        self._settings = settings
        self._url = url
        self._client = client
        self._silent = silent
        self._prefix = f"{settings.namespace}:record:"
        ttl_s = settings.result_ttl_s
        self._final_ms = _milliseconds(ttl_s)
        self._waiting_ms = _milliseconds(None if ttl_s is None else max(ttl_s, UNENDED_KEPT_S))
        self._cancelled_ms = _milliseconds(None if ttl_s is None else max(ttl_s, CANCELLATION_KEPT_S))
        self._lock = locks.Lock()
        self._here: tuple[Runs, Wakes] | None = None

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages, up to 100 in one script."""
        deadline = time.monotonic() + timeout_s
        for start in range(0, len(messages), _TOGETHER):
            part = messages[start : start + _TOGETHER]
            keys = [self._prefix + message.id for message, _ in part]
            args = [word for message, delay_s in part for word in self._created(message, delay_s)]
            self._client.run(scripts.CREATE, keys, args, timeout_s=deadline - time.monotonic())

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return a command that makes a record, with the script's text: a transaction can't ask whether it is known."""
        return "EVAL", scripts.CREATE.text, 1, self._prefix + message.id, *self._created(message, delay_s)

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records that nobody has changed."""
        keys = [self._prefix + each for each in ids]
        deadline = time.monotonic() + timeout_s
        for start in range(0, len(keys), _TOGETHER):
            part = keys[start : start + _TOGETHER]
            self._client.run(scripts.FORGET, part, (), timeout_s=deadline - time.monotonic())

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts; waits for nothing."""
        runs, run = self._process()[0], Run(worker=worker, at=at)
        runs.add(message, run)
        script = scripts.STARTED.text  # not by its name: nobody would hear that the server doesn't know it
        args = (*_head(message, at), runs.writer, _start(run), self._waiting_ms)
        self._silent.write("EVAL", script, 1, self._prefix + message.id, *args)

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and wake who waits for a final record."""
        runs = self._process()[0]
        run = runs.get(message)
        args: tuple[Word, ...] = (
            *_head(message, ending.at),
            runs.writer,
            *(("", "") if run is None else (_start(run), repr(run.at))),
            ending.state,
            "" if ending.due_at is None else repr(ending.due_at),
            self._final_ms,
            self._kept(ending.due_at),
            json.dumps([ending.at, _pair(ending.error)]),
            _bytes(ending.reason),
            "" if ending.error is None else json.dumps(_pair(ending.error)),
            _bytes(ending.traceback),
            "" if ending.result_json is None else ending.result_json,
        )
        keys = (self._prefix + message.id, self._channel(message.id))
        state: Any = self._client.run(scripts.ENDED, keys, args, timeout_s=timeout_s).decode()
        runs.remove(message)
        return state or None

    def get(self, message_id: str, *, timeout_s: float) -> Record | None:
        """Return a record; None if there is none."""
        found = self._client.execute([("HGETALL", self._prefix + message_id)], timeout_s=timeout_s)
        return _record(message_id, found)

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever a message's record became final, until it is told to stop."""
        return self._process()[1].watch(message_id, wake)

    def cancel(self, message_id: str, *, at: float, timeout_s: float) -> Record | None:
        """Cancel a message unless it is final."""
        cancelled = f"{self._settings.namespace}:cancelled"
        keys = (self._prefix + message_id, cancelled, f"{cancelled}:until", self._channel(message_id))
        args = (repr(at), message_id, self._cancelled_ms, self._final_ms)
        return _record(message_id, self._client.run(scripts.CANCEL, keys, args, timeout_s=timeout_s))

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor."""
        key, after = f"{self._settings.namespace}:cancelled", f"({cursor}" if cursor else "-inf"
        limit = ("LIMIT", 0, CANCELLATIONS_AT_ONCE)
        found = self._client.execute([("ZRANGEBYSCORE", key, after, "+inf", "WITHSCORES", *limit)], timeout_s=timeout_s)
        lives = [life.decode() for life in found[::2]]
        return found[-1].decode() if found else cursor, lives

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            here, self._here = self._here, None
        if here is not None and here[0].pid == os.getpid():
            here[1].close()

    def _process(self) -> tuple[Runs, Wakes]:
        here = self._here
        if here is not None and here[0].pid == os.getpid():
            return here
        with self._lock:
            if self._here is None or self._here[0].pid != os.getpid():
                self._here = Runs(), Wakes(self._settings, self._url)
            return self._here

    def _created(self, message: Message, delay_s: float) -> tuple[Word, ...]:
        due_at = message.enqueued_at + delay_s if delay_s > 0 else None
        state = "queued" if due_at is None else "scheduled"
        return message.replays, self._kept(due_at), _meta(message), state, "" if due_at is None else repr(due_at)

    def _kept(self, due_at: float | None) -> Word:
        """Return how long a record is kept that isn't final, in ms."""
        if isinstance(self._waiting_ms, str) or due_at is None:
            return self._waiting_ms
        return self._waiting_ms + max(0, round((due_at - time.time()) * 1000))

    def _channel(self, message_id: str) -> str:
        return f"{self._settings.namespace}:ended:{message_id}"


def _milliseconds(duration_s: float | None) -> int | str:
    return "" if duration_s is None else max(1, round(duration_s * 1000))


def _meta(message: Message) -> str:
    return json.dumps([message.task, message.queue, message.enqueued_at])


def _head(message: Message, at: float) -> tuple[Word, ...]:
    return message.replays, message.attempt, _meta(message), repr(at)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # a traceback may hold what is no character


def _start(run: Run) -> str:
    return json.dumps([run.worker, run.at])


def _pair(error: ErrorInfo | None) -> list[str] | None:
    return None if error is None else [error.type, error.message]


def _error(pair: Sequence[str]) -> ErrorInfo:
    return ErrorInfo(type=pair[0], message=pair[1])


def _record(message_id: str, found: Sequence[bytes]) -> Record | None:
    fields = {key.decode(): value.decode() for key, value in zip(found[::2], found[1::2], strict=True)}
    if "state" not in fields:
        return None
    task, queue, enqueued_at = json.loads(fields["m"])
    error = fields.get("error")
    state: Any = fields["state"]
    return Record(
        id=message_id,
        task=task,
        queue=queue,
        state=state,
        enqueued_at=enqueued_at,
        due_at=_number(fields, "due"),
        ended_at=_number(fields, "ended"),
        attempts=_attempts(fields),
        result_json=fields.get("result"),
        reason=fields.get("reason", ""),
        error=None if error is None else _error(json.loads(error)),
        traceback=fields.get("traceback", ""),
        replays=int(fields.get("replays", "0")),
        cancel_asked="asked" in fields,
    )


def _number(fields: Mapping[str, str], key: str) -> float | None:
    return float(fields[key]) if key in fields else None


def _attempts(fields: Mapping[str, str]) -> tuple[AttemptRecord, ...]:
    numbers = sorted(int(key[1:]) for key in fields if key[0] == "s" and key[1:].isdecimal())
    return tuple(_attempt(number, fields[f"s{number}"], fields.get(f"e{number}")) for number in numbers)


def _attempt(number: int, start: str, end: str | None) -> AttemptRecord:
    worker, started_at = json.loads(start)
    ended_at, error = (None, None) if end is None else json.loads(end)
    return AttemptRecord(
        number=number,
        worker=worker,
        started_at=started_at,
        ended_at=ended_at,
        error=None if error is None else _error(error),
    )
