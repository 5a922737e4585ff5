"""What a worker holds of its engine's queues on Redis, and for how long (rules A2, A3 and A8).

One script takes messages and notes who holds them, so there is no instant at which a `kill -9` loses one. Each worker
process has a lease, which a thread renews whatever its tasks do; any worker gives back to their queues what others hold
whose leases are over. Times are the server's.

| key | type | holds |
|---|---|---|
| `{ns}.{engine}.leases` | sorted set | each worker, by when it renewed its lease, in ms |
| `{ns}.{engine}.held.{worker}` | hash | by tag, of each message that it holds: its list, a line feed, the list's item |

A tag is a number that means one delivery. Ending one that is not held any more does nothing, so whatever is not
confirmed is sent again. The reply to a script that takes may be lost: each beat compares what Redis says is held with
what came, and gives back the rest.

How lists hold messages is the engine's: `lua/celery.lua` and `lua/dramatiq.lua` stand before all other scripts.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple

from taskbridge import locks
from taskbridge.brokers.redis.client import client_of
from taskbridge.brokers.redis.scripts import Call, Script, script
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.leases")

_BEAT_S: Final = 5.0
"""How often a lease is renewed, and others are looked at, at least: rule A2 allows 10 s past the lease."""

_AWAY_S: Final = 0.5
"""How often it is tried while Redis is away."""

_MINUTE_S: Final = 60.0

_AT_ONCE_S: Final = 1.0
"""How long an acknowledgement may hold up its caller; after that, the thread goes on trying."""

_TOGETHER: Final = 500
"""How many tags one script takes."""


class Layout:
    """How an engine's lists hold messages, as scripts that take, end and give back."""

    def __init__(self, engine: str) -> None:
        def of(name: str) -> Script:
            return script(__file__, engine, "held", name)

        self.engine: Final = engine
        self.take: Final = of("take")
        self.end: Final = of("end")
        self.give_back: Final = of("give_back")
        self.beat: Final = of("beat")
        self.leave: Final = of("leave")


CELERY: Final = Layout("celery")
DRAMATIQ: Final = Layout("dramatiq")

STRANGERS: Final = script(__file__, "dramatiq", "held", "strangers")
"""Looks after what stock Dramatiq clients leave behind."""


class Lists:
    """The lists of some queues, for whoever takes from them.

    Args:
        places: Of each queue the keys of its lists in order of priority, as many as of each other.
    """

    def __init__(self, places: Sequence[Sequence[str]]) -> None:
        self.queues: Final = len(places)
        self.keys: Final = tuple(key for level in zip(*places, strict=True) for key in level)
        self.turn = 0
        """With which queue to begin next, counted from 0."""


class Held(NamedTuple):
    """A message that was taken, and that this worker holds.

    Attributes:
        tag: Means this delivery.
        queue: From which of the `Lists`' queues it came, counted from 0.
        text: Its bytes; where a queue of Dramatiq's has an item that is no id, that item.
        suspect: Whether it may have been started before.
    """

    tag: str
    queue: int
    text: bytes
    suspect: bool


class Leases:
    """The messages that this process holds. Threads share it; only `take` and `beat` raise what Redis says.

    Args:
        settings: The bridge's.
        layout: The engine's.
        each_minute: Called in the thread, for what else the engine has to look after on Redis.

    Attributes:
        worker: This process, among those that hold a lease.
    """

    def __init__(self, settings: Settings, layout: Layout, *, each_minute: Callable[[], object] | None = None) -> None:
        prefix = f"{settings.namespace}.{layout.engine}"
        self.leases_key: Final = f"{prefix}.leases"
        self.held_prefix: Final = f"{prefix}.held."
        self._layout = layout
        self._client = client_of(settings.url.broker_url)
        self._lease_s = settings.lease_s
        self._timeout_s = settings.send_timeout_s
        self._each_minute = each_minute
        self._minute_at = 0.0
        self._lock = locks.Lock()
        self._next = 0
        self._ending: deque[str] = deque()
        self._unsent: deque[tuple[Call, Sequence[str]]] = deque()
        self._begin()
        self._stop = locks.Event()
        self._wake = locks.Event()
        self._thread: threading.Thread | None = None
        self._was_away = False
        self._renewed_at: float | None = None
        self._judges_from = 0.0

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.worker: str = secrets.token_hex(8)
        self._keys = (self.leases_key, self.held_prefix + self.worker)
        self._takings: dict[int, int] = {}
        self._held: set[str] = set()

    def _begin_in_child(self) -> None:
        """Be another worker: a forked child holds nothing, and has no thread."""
        self._begin()
        self._ending.clear()
        self._unsent.clear()
        self._thread = None

    # Taking

    def take(self, lists: Lists, most: int, *, timeout_s: float) -> list[Held]:
        """Take up to so many messages: the highest priorities, and of the queues in turn; end what `end_soon` noted.

        Raises:
            BrokerUnavailable: Redis does not answer; what it may have taken goes back once it does.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._begin_in_child()
            ending = [self._ending.popleft() for _ in range(min(_TOGETHER, len(self._ending)))]
            first = self._next
            self._next += most
            self._takings[first] = self._next
        keys, turn = (*self._keys, *lists.keys), lists.turn
        call = self._layout.take(keys, self.worker, first, most, lists.queues, turn, *ending)
        try:
            reply = self._client.run(call, timeout_s=timeout_s)
        except BaseException:
            with self._lock:
                self._takings.pop(first, None)
                self._ending.extendleft(reversed(ending))
            self._wake.set()
            raise
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        held = [Held(str(first + n), queue, text, bool(suspect)) for n, (queue, text, suspect) in enumerate(rows)]
        if held:
            lists.turn = (held[-1].queue + 1) % lists.queues
        with self._lock:
            self._takings.pop(first, None)
            self._held.difference_update(ending)
            self._held.update([each.tag for each in held])
        return held

    # Ending and giving back

    def end(self, *tags: str, dead: bool = False) -> None:
        """End messages: they are done with.

        Args:
            *tags: Of the messages.
            dead: Whether Dramatiq keeps them among its own dead ones.
        """
        self._send(self._layout.end, dead, tags)

    def end_soon(self, *tags: str) -> None:
        """End messages together with the next `take`, or with the next `flush`."""
        self._ending.extend(tags)

    def flush(self) -> None:
        """End what `end_soon` noted."""
        while self._ending:
            with self._lock:
                tags = [self._ending.popleft() for _ in range(min(_TOGETHER, len(self._ending)))]
            self._send(self._layout.end, False, tags)

    def give_back(self, *tags: str, suspect: bool = True) -> None:
        """Return messages to their lists, as the next ones; the first is the first of them.

        Args:
            *tags: Of the messages.
            suspect: Whether they may have been started; whoever takes them is told.
        """
        self._send(self._layout.give_back, suspect, tags)

    def _send(self, script: Script, flag: bool, tags: Sequence[str]) -> None:
        """Run a script, or have the thread do it if Redis does not answer."""
        if not tags:
            return
        waiting = script(self._keys[1:], int(flag), *tags), tags
        self._unsent.append(waiting)
        if self._is_next(waiting):  # else whoever runs those before it runs this too
            try:
                self._catch_up(_AT_ONCE_S)
            except BrokerUnavailable as exc:
                _log.warning("Redis does not answer, an acknowledgement has to wait: %s", exc.problem)
                self._wake.set()

    def _is_next(self, waiting: tuple[Call, Sequence[str]]) -> bool:
        try:
            return self._unsent[0] is waiting
        except IndexError:
            return False

    def _catch_up(self, timeout_s: float) -> None:
        """Run the scripts that wait, each as often as it takes: a second time they do nothing."""
        while True:
            try:
                call, tags = waiting = self._unsent[0]
            except IndexError:
                return
            self._client.run(call, timeout_s=timeout_s)
            with suppress(ValueError):  # another thread has run it too
                self._unsent.remove(waiting)
            with self._lock:
                self._held.difference_update(tags)

    # The thread

    def start(self) -> None:
        """Start to keep the lease, and to look after those of others; starting twice does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="taskbridge-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        beat_s = min(_BEAT_S, self._lease_s / 4)
        while True:
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.beat()
                self._was_away = False
            except BrokerUnavailable as exc:
                if not self._was_away:
                    _log.warning("Redis does not answer, the lease can't be renewed: %s", exc.problem)
                self._was_away = True
                self._stop.wait(min(_AWAY_S, beat_s))
                continue
            except Exception:
                _log.exception("looking after leases failed, trying again")
            self._wake.wait(beat_s)

    def beat(self) -> None:
        """Carry out what had to wait, renew the lease, and give back what nobody holds any more.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        self.flush()
        self._catch_up(self._timeout_s)
        with self._lock:
            before, underway, known = self._next, list(self._takings.items()), set(self._held)
        judges = self._may_judge()
        lease_ms = int(self._lease_s * 1000) if judges else 0
        call = self._layout.beat(self._keys, self.worker, lease_ms, self.held_prefix)
        count, held = self._client.run(call, timeout_s=self._timeout_s)
        if count:
            _log.warning("%d messages of workers that are gone are back in their queues", count)
        lost = [tag.decode() for tag in held if tag.decode() not in known and int(tag) < before]
        lost = [tag for tag in lost if not any(first <= int(tag) < end for first, end in underway)]
        if lost:
            _log.warning("%d messages that were taken but never arrived go back to their queues", len(lost))
            self.give_back(*sorted(lost, key=int), suspect=False)
        if judges and self._each_minute is not None and monotonic() >= self._minute_at:
            self._minute_at = monotonic() + _MINUTE_S
            self._each_minute()

    def _may_judge(self) -> bool:
        """Return whether a worker whose lease is over is gone.

        After a time without Redis, or in which this process or the machine stood still, others may be about to renew
        theirs too: they have a lease's time to show that they live.
        """
        now = monotonic()
        if self._was_away or (self._renewed_at is not None and now - self._renewed_at > self._lease_s / 2):
            self._judges_from = now + self._lease_s
        self._renewed_at = now
        return now >= self._judges_from

    def stop(self, keep: Collection[str] = ()) -> None:
        """Stop the thread, and give back at once all that is still held; what follows is another worker's.

        Args:
            keep: The tags of messages that count as lost with this worker: they go back when its lease is over.
        """
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s)
            self._thread = None
        try:
            self.flush()
            self._catch_up(self._timeout_s)
            self._client.run(self._layout.leave(self._keys, self.worker, *keep), timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("Redis does not answer, what is left goes back when the lease is over: %s", exc.problem)
        self._begin()
