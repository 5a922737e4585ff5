"""What this worker holds of Celery's queues on Redis, and for how long (rules A2, A3 and A8).

kombu pops a message and then writes down that it is unacknowledged; a worker that dies in between has lost it. Here one
script does both. Who takes a message has it on lease: the worker renews its leases in a thread, and any worker gives
back to its queue what nobody has renewed in time.

| key | type | holds |
|---|---|---|
| `{ns}.celery.unacked` | hash | by tag, `[item,"",queue]`: each message in a worker's hands, as kombu keeps it |
| `{ns}.celery.unacked_index` | sorted set | each tag, by when it was taken or renewed, in ms on the server's clock |

A tag is made as the message is taken, and means this one delivery, so that it can be acknowledged on any connection.
"""

from __future__ import annotations

import logging
import secrets
import threading
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.brokers.redis.client import client_of
from taskbridge.brokers.redis.connection import Word
from taskbridge.brokers.redis.scripts import script
from taskbridge.engines.celery import items
from taskbridge.engines.celery.stock import kombu_json
from taskbridge.engines.celery.wire import ENGINE, REDIS_STEPS, Taken, step_key
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.celery")

STEPS: Final = sorted(REDIS_STEPS.values())

_SWEEP_S: Final = 5.0
"""How often leases are looked after at least: rule A2 allows 10 s past the lease."""

_AT_ONCE_S: Final = 1.0
"""How long an acknowledgement may hold up the worker's main loop; after that, the thread goes on trying."""

_TOGETHER: Final = 500

TAKE: Final = script(__file__, "take")
_ACK: Final = script(__file__, "ack")
_RENEW: Final = script(__file__, "renew")
_OVERDUE: Final = script(__file__, "overdue")
_GIVE_BACK: Final = script(__file__, "give_back")
_CLAIM: Final = script(__file__, "claim")


def step_of(priority: object) -> int:
    """Return the step of a message's priority, as kombu does (kombu/transport/redis.py, Channel.priority)."""
    number = priority if isinstance(priority, int) else 0
    return STEPS[bisect(STEPS, max(0, min(9, number))) - 1]


def returned(value: bytes) -> tuple[str, bytes]:
    """Return the list and the item with which a held message goes back to its queue, marked as redelivered.

    Args:
        value: What is kept of it under its tag.

    Raises:
        DecodeError: It is not one that kombu or Celery wrote.
    """
    try:
        payload, _, queue = kombu_json.loads(value.decode())
    except (ValueError, TypeError, RecursionError) as exc:
        raise DecodeError(f"not a Celery message: {exc!r}") from exc
    item = items.redelivered(payload)
    return step_key(queue, step_of(payload["properties"].get("priority"))), item


def raw_item(value: bytes) -> bytes:
    """Return the bytes of a message as they came, from what is kept of it under its tag."""
    return value[1:].rpartition(b',"","')[0]


class _Lists:
    """The lists of the queues that are consumed, by priority and, within one, by queue.

    Args:
        queues: The native names.
        others: The keys of what else the script that takes works on.

    Attributes:
        start: With which queue to begin next, counted from 0, so that all have their turn.
    """

    def __init__(self, queues: tuple[str, ...], others: tuple[str, ...]) -> None:
        self.queues: Final = queues
        self.keys: Final = (*(step_key(queue, step) for step in STEPS for queue in queues), *others)
        self.start = 0

    def served(self, number: int) -> str:
        """Note that a message was taken from a list, counted from 1, and return its queue."""
        index = (number - 1) % len(self.queues)
        self.start = (index + 1) % len(self.queues)
        return self.queues[index]


class Leases:
    """The messages that this process holds. The main loop takes and acknowledges, a thread looks after the rest.

    Args:
        settings: The bridge's.
        undecodable: Called in the thread with a tag and bytes that can't be read; it buries them and ends the lease.
    """

    def __init__(self, settings: Settings, undecodable: Callable[[str, bytes, Exception], None]) -> None:
        prefix = f"{settings.namespace}.{ENGINE}"
        self.unacked_key: Final = f"{prefix}.unacked"
        self.index_key: Final = f"{prefix}.unacked_index"
        self.pace_key: Final = f"{prefix}.pace"
        self._client = client_of(settings.url.broker_url)
        self._undecodable = undecodable
        self._lease_s = settings.lease_s
        self._timeout_s = settings.send_timeout_s
        self._worker = secrets.token_hex(8)
        self._number = 0
        self._lists = _Lists((), ())
        self._held: set[str] = set()
        self._ending: dict[str, None] = {}
        self._overdue_work: deque[tuple[bool, str]] = deque()
        self._lock = locks.Lock()
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None
        self._was_away = False
        self._renewed_at: float | None = None
        self._judges_from = 0.0

    # The main loop

    def take(self, queues: Sequence[str], most: int) -> list[Taken]:
        """Take at most so many messages, and acknowledge what waits for that.

        The highest priorities come first, and within one the queues in turn.

        Args:
            queues: Their native names.
            most: At least 1.

        Raises:
            BrokerUnavailable: Redis does not answer; what it may have taken goes back.
        """
        if self._lists.queues != tuple(queues):
            self._lists = _Lists(tuple(queues), (self.unacked_key, self.index_key))
        lists, ending = self._lists, self._to_end()
        self._number += 1
        base = f"{self._worker}:{self._number}"
        args: tuple[Word, ...] = (base, most, len(queues), lists.start, *ending)
        try:
            found = self._client.run(TAKE, lists.keys, args, timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            if exc.maybe_taken:
                self._overdue_work.extend((False, f"{base}.{number}") for number in range(most))
            raise
        self._ended(ending)
        tags = [f"{base}.{number}" for number in range(len(found) // 2)]
        with self._lock:
            self._held.update(tags)
        return [
            Taken(tag, lists.served(index), item)
            for tag, index, item in zip(tags, found[::2], found[1::2], strict=True)
        ]

    def end(self, tag: str) -> None:
        """Acknowledge a message: it is done with."""
        self._soon(True, tag)

    def end_soon(self, tag: str) -> None:
        """Acknowledge a message with the next one that is taken, or with the next `flush`."""
        with self._lock:
            self._ending[tag] = None

    def _to_end(self) -> list[str]:
        """Return what is to be acknowledged, until `_ended` is told that it was."""
        with self._lock:
            return list(islice(self._ending, _TOGETHER))

    def _ended(self, tags: Iterable[str]) -> None:
        with self._lock:
            for tag in tags:
                self._ending.pop(tag, None)
                self._held.discard(tag)

    def flush(self) -> None:
        """Acknowledge what is to be; if Redis does not answer, the thread goes on trying."""
        while tags := self._to_end():
            try:
                self._client.run(_ACK, (self.unacked_key, self.index_key), tags, timeout_s=_AT_ONCE_S)
            except BrokerUnavailable as exc:
                _log.warning("Redis does not answer, %d acknowledgements have to wait: %s", len(tags), exc.problem)
                self._overdue_work.extend((True, tag) for tag in tags)
                with self._lock:
                    for tag in tags:
                        self._ending.pop(tag, None)
            else:
                self._ended(tags)

    def give_back(self, tag: str) -> None:
        """Return a message to its queue, as the next one to be taken."""
        self._soon(False, tag)

    def _soon(self, done: bool, tag: str) -> None:
        if not self._overdue_work:
            try:
                self._carry_out(done, tag, _AT_ONCE_S)
            except BrokerUnavailable as exc:
                _log.warning("Redis does not answer, an acknowledgement has to wait: %s", exc.problem)
            else:
                return
        self._overdue_work.append((done, tag))

    def _carry_out(self, done: bool, tag: str, timeout_s: float) -> None:
        if done:
            self._client.run(_ACK, (self.unacked_key, self.index_key), (tag,), timeout_s=timeout_s)
        else:
            self._return([tag], 0, timeout_s)
        with self._lock:
            self._held.discard(tag)

    def _return(self, tags: Iterable[str], lease_ms: int, timeout_s: float) -> int:
        count = 0
        for tag in tags:
            value = self._client.execute([("HGET", self.unacked_key, tag)], timeout_s=timeout_s)
            if value is None:
                self._client.execute([("ZREM", self.index_key, tag)], timeout_s=timeout_s)
                continue
            try:
                key, item = returned(value)
            except DecodeError as exc:
                self._bury(tag, raw_item(value), exc, lease_ms)
                continue
            keys = (self.unacked_key, self.index_key, key)
            count += self._client.run(_GIVE_BACK, keys, (tag, item, lease_ms), timeout_s=timeout_s)
        return count

    def _bury(self, tag: str, raw: bytes, error: Exception, lease_ms: int) -> None:
        """Have bytes buried that can't be read; of several workers that find them, one does it."""
        if self._client.run(_CLAIM, (self.index_key,), (tag, lease_ms), timeout_s=self._timeout_s):
            with self._lock:
                self._held.add(tag)
            self._undecodable(tag, raw, error)

    # The thread

    def start(self) -> None:
        """Start to look after leases, this worker's and overdue ones of others; starting twice does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="taskbridge-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.look_after()
                self._was_away = False
            except BrokerUnavailable as exc:
                if not self._was_away:
                    _log.warning("Redis does not answer, leases can't be renewed: %s", exc.problem)
                self._was_away = True
            except Exception:
                _log.exception("looking after leases failed, trying again")
            if self._stop.wait(min(_SWEEP_S, self._lease_s / 4)):
                return

    def look_after(self) -> None:
        """Carry out what had to wait, renew what is held here, and give back what others have let go.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        self.flush()
        self._catch_up()
        with self._lock:
            held = list(self._held)
        for start in range(0, len(held), _TOGETHER):
            part = held[start : start + _TOGETHER]
            self._client.run(_RENEW, (self.index_key,), part, timeout_s=self._timeout_s)
        if not self._may_judge():
            return
        lease_ms = int(self._lease_s * 1000)
        overdue: Sequence[bytes] = self._client.run(
            _OVERDUE, (self.index_key,), (lease_ms, _TOGETHER), timeout_s=self._timeout_s
        )
        count = self._return([tag.decode() for tag in overdue], lease_ms, self._timeout_s)
        if count:
            _log.warning("%d messages of workers that are gone go back to their queues", count)

    def _may_judge(self) -> bool:
        """Note that all here is renewed, and return whether what is overdue belongs to workers that are gone.

        After a time without Redis, or in which this process or the machine stood still, others may be about to renew
        theirs too: who looks gone then may be alive, and has a lease's time to show it.
        """
        now = monotonic()
        if self._was_away or (self._renewed_at is not None and now - self._renewed_at > self._lease_s / 2):
            self._judges_from = now + self._lease_s
        self._renewed_at = now
        return now >= self._judges_from

    def _catch_up(self) -> None:
        while self._overdue_work:
            done, tag = self._overdue_work[0]
            self._carry_out(done, tag, self._timeout_s)
            self._overdue_work.popleft()

    def stop(self) -> None:
        """Stop the thread, and give back at once all that is still held."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s)
            self._thread = None
        try:
            self.flush()
            self._catch_up()
            with self._lock:
                held = list(self._held)
            for tag in held:
                self._carry_out(False, tag, self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("Redis does not answer, what is left goes back when its lease is over: %s", exc.problem)
        self._client.close()
