"""What a worker holds of its engine's queues on Redis, and for how long (rules A2, A3 and A8).

One script takes messages and notes who holds them, so there is no instant at which a `kill -9` loses one. Each worker
process has a lease, which a thread renews whatever its tasks do; any worker gives back to their queues what others hold
whose leases are over. Times are the server's.

| key | type | holds |
|---|---|---|
| `{ns}.{engine}.leases` | sorted set | each worker, by when it renewed its lease, in ms |
| `{ns}.{engine}.held.{worker}` | hash | by tag, of each message that it holds: its list, a line feed, the list's item |
| `{ns}.{engine}.leases.odd` | list | a time in ms, a line feed, what can't go back to a list; each beat buries some |

A tag is a number that means one delivery. Ending one that is not held any more does nothing, so whatever is not
confirmed is sent again. The reply to a script that takes may be lost: each beat compares what Redis says is held with
what came, and gives back the rest.

How lists hold messages is the engine's: `lua/celery.lua` and `lua/dramatiq.lua` stand before all other scripts.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Final

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.brokers.base import Held
from taskbridge.brokers.redis.broker import burying
from taskbridge.brokers.redis.client import Script, Word, client_of
from taskbridge.brokers.redis.keys import Keys
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.logs import logger
from taskbridge.message import DeadLetter
from taskbridge.retry import ErrorInfo
from taskbridge.settings import Settings

_log = logger("taskbridge.leases")

_BEAT_S: Final = 5.0
"""How often a lease is renewed, and others are looked at, at least: rule A2 allows 10 s past the lease."""

_AWAY_S: Final = 0.5  # how often it is tried while Redis is away
_MINUTE_S: Final = 60.0

_AT_ONCE_S: Final = 1.0  # how long an acknowledgement may hold up its caller; after that, the thread goes on trying
_DIGITS: Final = 15  # how many digits a time in ms has at most
_TOGETHER: Final = 500  # how many messages one script settles


class Layout:
    """How an engine's lists hold messages, as scripts."""

    def __init__(self, engine: str) -> None:
        self.engine: Final = engine
        self.take: Final = Script(__file__, engine, "held", "take")
        self.beat: Final = Script(__file__, engine, "held", "beat")


CELERY: Final = Layout("celery")
DRAMATIQ: Final = Layout("dramatiq")

_LEAVE: Final = Script(__file__, "leave")

STRANGERS: Final = Script(__file__, "dramatiq", "strangers")  # looks after what stock Dramatiq clients leave behind


class Lists:
    """The lists of some queues, for whoever takes from them.

    `places` are of each queue the keys of its lists in order of priority, as many as of each other.
    """

    def __init__(self, places: Sequence[Sequence[str]]) -> None:
        self.queues: Final = len(places)
        self.keys: Final = tuple(key for level in zip(*places, strict=True) for key in level)
        self.turn = 0
        """With which queue to begin next, counted from 0."""


_NOTHING: Final = Lists(())


class Leases(Background):
    """The messages that this process holds. Threads share it; only `take` and `beat` raise what Redis says.

    What becomes of a message is noted first, and carried out with the next script that takes, or at once by one that
    takes nothing. A second time that does nothing, so it is tried until Redis answers. `each_minute` is called in the
    thread, for what else the engine has to look after on Redis.
    """

    def __init__(self, settings: Settings, layout: Layout, *, each_minute: Callable[[], object] | None = None) -> None:
        super().__init__("leases", join_s=settings.send_timeout_s)
        prefix = f"{settings.namespace}.{layout.engine}"
        self.leases_key: Final = f"{prefix}.leases"
        self.held_prefix: Final = f"{prefix}.held."
        self._layout = layout
        self._client = client_of(settings.url.broker_url, settings.namespace)
        self._broker_keys, self._dead_ttl_s = Keys(settings.namespace, layout.engine), settings.dead_ttl_s
        self._lease_s = settings.lease_s
        self._timeout_s = settings.send_timeout_s
        self._each_minute = each_minute
        self._minute_at = 0.0
        self._lock = locks.Lock()
        self._next = 0
        self._settled: deque[tuple[str, str]] = deque()
        self._begin()
        self.is_away: bool = False  # whether Redis did not answer last; then only the thread tries to carry out at once
        self._renewed_at: float | None = None
        self._judges_from = 0.0

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.worker: str = secrets.token_hex(8)  # this process, among those that hold a lease
        self._keys = (self.leases_key, self.held_prefix + self.worker)
        self._underway: set[range] = set()
        self._held: set[str] = set()

    def _begin_if_forked(self) -> bool:
        """Begin anew in a forked child, which holds nothing; return whether this is one. Called under the lock."""
        is_forked = self._pid != os.getpid()
        if is_forked:
            self._begin()
            self._settled.clear()
        return is_forked

    def take(self, lists: Lists = _NOTHING, most: int = 0, *, timeout_s: float, once: bool = True) -> list[Held]:
        """Take up to so many messages, of the queues in turn, of each those of the highest priority first.

        What was noted is carried out before that. Unless `once` is false, no other Redis is waited for. Raises
        `BrokerUnavailable` if Redis does not answer; what it may have taken goes back once it does.
        """
        with self._lock:
            self._begin_if_forked()
            own_keys, worker = self._keys, self.worker
            settled = [self._settled.popleft() for _ in range(min(_TOGETHER, len(self._settled)))]
            tags = range(self._next, self._next + most)
            self._next = tags.stop
            self._underway.add(tags)
        words: list[Word] = [word for each in settled for word in each]
        keys, turn = (*own_keys, *lists.keys), lists.turn
        call = self._layout.take(keys, worker, tags.start, most, lists.queues, turn, *words)
        try:
            reply = self._client.execute([call], timeout_s=timeout_s, once=once)
        except BaseException:
            self.is_away = True
            with self._lock:
                self._underway.discard(tags)
                self._settled.extendleft(reversed(settled))
            raise
        self.is_away = False
        about, *texts = reply  # few items, for each takes redis-py a microsecond or two
        rows = zip(tags, map(int, about.split()), texts, strict=False)
        held = [Held(str(tag), number >> 1, text, bool(number & 1)) for tag, number, text in rows]
        if held:
            lists.turn = (held[-1].queue + 1) % lists.queues
        with self._lock:
            self._underway.discard(tags)
            self._held.difference_update([tag for tag, _ in settled])
            self._held.update([each.tag for each in held])
        return held

    # What becomes of messages

    def end(self, *tags: str, dead: bool = False) -> None:
        """End messages: they are done with; or `dead`, and Dramatiq keeps them among its own dead ones."""
        self._settled.extend([(tag, "dead" if dead else "end") for tag in tags])
        self.flush()

    def end_soon(self, *tags: str) -> None:
        """End messages together with the next `take`, or with the next `flush`."""
        self._settled.extend([(tag, "end") for tag in tags])

    def give_back(self, *tags: str, suspect: bool = True) -> None:
        """Return messages to their lists, as the next ones; the first is the first of them.

        If `suspect`, they may have been started, and whoever takes them is told.
        """
        self._settled.extend([(tag, "suspect" if suspect else "back") for tag in reversed(tags)])
        self.flush()

    def flush(self) -> None:
        """Carry out what was noted; if Redis does not answer, the thread does it later."""
        if self.is_away:
            return
        try:
            self._carry_out(_AT_ONCE_S)
        except BrokerUnavailable as exc:
            _log.warning("Redis does not answer, an acknowledgement has to wait: %s", exc.problem)

    def _carry_out(self, timeout_s: float, *, once: bool = True) -> None:
        while self._settled:
            self.take(timeout_s=timeout_s, once=once)

    # The thread

    def run(self, stop: threading.Event) -> None:
        """Renew the lease, and look after those of others, until `stop` is set; sooner again while Redis is away."""
        beat_s = min(_BEAT_S, self._lease_s / 4)
        pause_s = min(_AWAY_S, beat_s)
        warned = False
        while not stop.is_set():
            try:
                self.beat()
                warned = False
            except BrokerUnavailable as exc:
                if not warned:
                    _log.warning("Redis does not answer, the lease can't be renewed: %s", exc.problem)
                warned = self.is_away = True
                self._renewed_at = -math.inf
            except Exception:
                _log.exception("looking after leases failed, trying again")
            next_at = monotonic() + beat_s
            while not stop.wait(pause_s) and not self.is_away and monotonic() < next_at:
                pass

    def beat(self) -> None:
        """Carry out what had to wait, renew the lease, and give back what nobody holds; raises `BrokerUnavailable`."""
        with self._lock:
            self._begin_if_forked()
        self._carry_out(self._timeout_s)
        with self._lock:
            before, underway, known = self._next, list(self._underway), set(self._held)
        judges = self._may_judge()
        count, held, odd = self._renew(int(self._lease_s * 1000) if judges else 0)
        self.is_away = False
        if count:
            _log.warning("%d messages of workers that are gone are back in their queues", count)
        lost = [tag for tag in held if tag not in known and int(tag) < before]
        lost = [tag for tag in lost if not any(int(tag) in tags for tags in underway)]
        if lost:
            _log.warning("%d messages that were taken but never arrived go back to their queues", len(lost))
            self.give_back(*lost)  # as suspect, for a Redis that lost its last words may not know that they ended
        if judges and self._each_minute is not None and monotonic() >= self._minute_at:
            self._minute_at = monotonic() + _MINUTE_S
            self._each_minute()
        for raw in odd:  # last: what hinders that is to hinder nothing else
            self._bury(raw)

    def _renew(self, lease_ms: int, *, once: bool = True) -> tuple[int, list[str], list[bytes]]:
        """Renew the lease; return how much went back of others, which tags are held here, in order, and what is odd."""
        with self._lock:
            call = self._layout.beat(self._keys, self.worker, lease_ms, self.held_prefix)
        count, held, odd = self._client.execute([call], timeout_s=self._timeout_s, once=once)
        return count, sorted([tag.decode() for tag in held], key=int), odd

    def _bury(self, entry: bytes) -> None:
        """Bury what can't go back to its queue, so that it stops nobody (rule I1); others may do the same now."""
        at_ms, _, raw = entry.partition(b"\n")
        if not at_ms.isdigit() or len(at_ms) > _DIGITS:
            at_ms, raw = b"%d" % (time() * 1000), entry
        error = DecodeError("what a worker held names no list, or one whose key holds something else")
        _log.error("a message of %d bytes can't go back to its queue and is dead: %s", len(raw), error)
        info = ErrorInfo.of(error)
        letter = DeadLetter(message=None, reason="internal_error", error=info, died_at=int(at_ms) / 1000, raw=raw)
        self._client.execute([burying(self._broker_keys, letter, self._dead_ttl_s)], timeout_s=self._timeout_s)
        self._client.execute([("LREM", f"{self.leases_key}.odd", 1, entry)], timeout_s=self._timeout_s)

    def _may_judge(self) -> bool:
        """Return whether a worker whose lease is over is gone.

        After a time without Redis, or in which this process or the machine stood still, others may be about to renew
        theirs too: they have a lease's time to show that they live.
        """
        now = monotonic()
        if self._renewed_at is not None and now - self._renewed_at > self._lease_s / 2:
            self._judges_from = now + self._lease_s
        self._renewed_at = now
        return now >= self._judges_from

    def stop(self) -> None:
        """Stop the thread, and give back at once all that is still held; what follows is another worker's."""
        super().stop()
        with self._lock:
            if self._begin_if_forked():
                return
        try:
            self._carry_out(self._timeout_s, once=False)
            _, held, _ = self._renew(0, once=False)
            self._settled.extend([(tag, "suspect") for tag in reversed(held)])
            self._carry_out(self._timeout_s, once=False)
            self._client.execute([_LEAVE(self._keys, self.worker)], timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("Redis does not answer, what is left goes back when the lease is over: %s", exc.problem)
        with self._lock:
            self._begin()
