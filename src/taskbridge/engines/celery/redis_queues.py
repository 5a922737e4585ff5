"""The queues on Redis as Celery's channels use them, and how an idle worker learns that they are no longer empty.

No blocking command of Redis looks at several lists and takes nothing. So whether the lists are empty is asked on a
connection for which Redis tracks what was read (`CLIENT TRACKING`, Redis 6), and a thread listens on another one, to
which Redis sends the keys that have changed since. Where that is refused, the thread has the lists looked at ten times
a second. The same thread hears what is sent to Celery's control channels.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import random
from socket import SHUT_RDWR
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from redis.connection import parse_url
from redis.exceptions import ResponseError

from taskbridge import locks
from taskbridge.brokers.redis.client import TROUBLE, Link, client_of, connector, pack
from taskbridge.brokers.redis.scripts import Word
from taskbridge.engines.celery.wire import REDIS_STEPS, Taken, step_key
from taskbridge.engines.redis_leases import CELERY, Leases, Lists

if TYPE_CHECKING:
    from taskbridge.settings import Settings

_parse_url: Final[Any] = parse_url

_log = logging.getLogger("taskbridge.celery")

_TIMEOUT_S: Final = 5.0
"""How long Redis may take to answer; the worker's main loop waits for that."""

_LOOK_AGAIN_S: Final = 5.0
"""How long an idle worker trusts that it would have been told of a change."""

_POLL_S: Final = 0.1
"""How often an idle worker looks where Redis tells it nothing."""

_PAUSE_S: Final = 0.05
"""How long a worker rests at most after another one was faster, so that idle ones don't all run for each message."""

_INVALIDATIONS: Final = "__redis__:invalidate"
"""The channel on which Redis tells in RESP2 of keys that have changed."""


_STEPS: Final = sorted(REDIS_STEPS.values())


def lists_of(queue: str) -> list[str]:
    """Return the keys of the lists of a queue, in the order in which they are taken from."""
    return [step_key(queue, step) for step in _STEPS]


def step_of(priority: object) -> int:
    """Return the step of a message's priority, as kombu does (kombu/transport/redis.py, Channel.priority)."""
    number = priority if isinstance(priority, int) else 0
    return _STEPS[bisect(_STEPS, max(0, min(9, number))) - 1]


class RedisQueues:
    """The queues of one bridge on Redis.

    Args:
        settings: The bridge's.
        wake: Ends the event loop's sleep; called in a thread.

    Attributes:
        leases: What this process has taken.
    """

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        url = settings.url.broker_url
        self.leases: Final = Leases(settings, CELERY)
        self._lists: dict[tuple[str, ...], Lists] = {}
        self._client = client_of(url)
        self._topics = f"/{_parse_url(url).get('db', 0)}."
        self._in_loop = False
        self._watch = _Watch(url, wake)

    def _run(self, *command: Word) -> Any:
        return self._client.execute([command], timeout_s=_TIMEOUT_S)

    def check(self) -> None:
        """Do nothing, if Redis answers."""
        self._run("PING")

    # Taking

    @property
    def changes(self) -> int:
        """A number that changes when there may be something new to take or to hear."""
        return self._watch.changes

    def take(self, queues: Sequence[str], most: int) -> list[Taken]:
        """Take at most so many messages on lease, those of the highest priority first, and of the queues in turn."""
        lists = self._lists.get(tuple(queues))
        if lists is None:
            lists = Lists([lists_of(queue) for queue in queues])
            self._lists = {tuple(queues): lists}
        held = self.leases.take(lists, most, timeout_s=_TIMEOUT_S)
        if not held:
            self._watch.rests_until = monotonic() + _PAUSE_S * (0.2 + 0.8 * random())
        return [Taken(tag, queues[queue], item, suspect) for tag, queue, item, suspect in held]

    def is_empty(self, queues: Sequence[str]) -> bool:
        """Return whether these are empty; from then on, `changes` tells if they are no longer."""
        return self._watch.has_none([key for queue in queues for key in lists_of(queue)])

    def wait(self, changes: int, timeout_s: float) -> bool:
        """Wait until `changes` is another number; return whether it is."""
        return self._watch.wait(changes, timeout_s)

    def end(self, tag: str) -> None:
        """Acknowledge a message: in the event loop with the next that is taken, or at the end of its turn."""
        if self._in_loop:
            self.leases.end_soon(tag)
        else:
            self.leases.end(tag)

    def give_back(self, tag: str) -> None:
        """Return a message to its queue, as the next one to be taken."""
        self.leases.give_back(tag)

    def end_turn(self) -> None:
        """Acknowledge what was not acknowledged as others were taken."""
        self._in_loop = True
        self.leases.flush()

    # Other commands, as kombu's own transport for Redis gives them

    def put(self, queue: str, priority: object, item: bytes) -> None:
        """Put a message in a queue, given its priority in Celery's words."""
        self._run("LPUSH", step_key(queue, step_of(priority)), item)

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return sum(self._run("LLEN", key) for key in lists_of(queue))

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue, and return how much it was."""
        keys = lists_of(queue)
        commands: list[Sequence[Word]] = [*(("LLEN", key) for key in keys), ("DEL", *keys)]
        return sum(self._client.execute(commands, timeout_s=_TIMEOUT_S)[:-1])

    def _topic(self, exchange: str, routing_key: str) -> str:
        return f"{self._topics}{exchange}/{routing_key}" if routing_key else f"{self._topics}{exchange}"

    def publish(self, exchange: str, routing_key: str, item: bytes) -> None:
        """Send to whoever listens to an exchange."""
        self._run("PUBLISH", self._topic(exchange, routing_key), item)

    def listen(self, exchange: str, routing_key: str, heard: deque[Any], queue: str) -> None:
        """Have what is sent to an exchange appended to a deque, each with this queue's name."""
        self._watch.listen(self._topic(exchange, routing_key.replace("#", "*")), heard, queue)

    def stop_listening(self, heard: deque[Any], queue: str) -> None:
        """End that."""
        self._watch.stop_listening(heard, queue)

    def start(self) -> None:
        """Renew leases from now on, and give back those of workers that are gone."""
        self.leases.start()

    def stop(self) -> None:
        """Give back what is held, and end the threads."""
        self._in_loop = False
        self._watch.stop()
        self.leases.stop()


class _Watch:
    """Tells of changes. Its thread starts when it is first asked for something, and connects as often as need be.

    Args:
        url: Of the server.
        wake: Called with each change.

    Attributes:
        changes: How often anything may have changed so far.
        rests_until: Until when changes are told late, by the monotonic clock.
    """

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self._connect = connector(url)
        self._wake = wake
        self._changed = locks.Condition()
        self._starting = locks.Lock()
        self._tracking = locks.Lock()
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None
        self._listener: Link | None = None
        self._tracker: Link | None = None
        self._listening: list[tuple[str, deque[Any], str]] = []
        self._pid = os.getpid()
        self._is_told = True
        self.changes: int = 0
        self.rests_until: float = 0.0

    def has_none(self, keys: Sequence[str]) -> bool:
        """Return whether none of these keys exists; if one may from now on, that is a change."""
        self._start()
        with self._tracking:
            if self._tracker is None:  # then there is a change each tenth of a second
                return True
            try:
                found: int = _call(self._tracker, "EXISTS", *keys)
            except TROUBLE:
                self._tracker.close()
                self._tracker = None
                return True
        if found:
            self._tell()
        return not found

    def wait(self, changes: int, timeout_s: float) -> bool:
        """Wait until there were not just so many changes; return whether that is so."""
        self._start()
        with self._changed:
            return self._changed.wait_for(lambda: self.changes != changes, timeout_s)

    def listen(self, pattern: str, heard: deque[Any], queue: str) -> None:
        """Have what is published on these channels appended to a deque, each with a queue's name."""
        self._listening.append((pattern, heard, queue))
        self._start()
        listener = self._listener
        if listener is not None:
            try:
                _send(listener, "PSUBSCRIBE", pattern)
            except TROUBLE:
                _shut_down(listener)  # the thread connects again, and subscribes then

    def stop_listening(self, heard: deque[Any], queue: str) -> None:
        """End that; the subscription itself lasts as long as the connection."""
        self._listening = [each for each in self._listening if each[1] is not heard or each[2] != queue]

    # The thread

    def _start(self) -> None:
        with self._starting:
            if self._pid != os.getpid():  # a forked child has no thread, and these connections are its parent's
                self._pid, self._thread, self._listener, self._tracker = os.getpid(), None, None, None
                self._listening = []
            if self._thread is None:
                self._stop = locks.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="taskbridge-watch", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Stop the thread, without waiting for it."""
        with self._starting:
            self._stop.set()
            self._thread = None
            if self._listener is not None:
                _shut_down(self._listener)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._serve(stop)
            except TROUBLE as exc:
                _log.debug("no connection to hear of changes on, trying again: %s", exc)
            except Exception:  # without this thread, an idle worker would take nothing any more
                _log.exception("hearing of changes failed, trying again")
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()
            with self._tracking:
                tracker, self._tracker = self._tracker, None
                if tracker is not None:
                    tracker.close()
            self._tell()
            stop.wait(_POLL_S)

    def _serve(self, stop: threading.Event) -> None:
        listener = self._connect(_TIMEOUT_S)
        own_id = self._id_of(listener)
        self._listener = listener
        _send(listener, "SUBSCRIBE", _INVALIDATIONS)
        patterns = {pattern for pattern, _, _ in self._listening}
        if patterns:
            _send(listener, "PSUBSCRIBE", *patterns)
        self._tracker = self._make_tracker(own_id)
        self._tell()
        heard_at = monotonic()
        while not stop.is_set():
            if listener.can_read(_LOOK_AGAIN_S if self._tracker else _POLL_S):
                listener.deadline = monotonic() + _TIMEOUT_S
                self._on_reply(listener.read())
                heard_at = monotonic()
                continue
            self._tell()
            if self._tracker is None and self._is_told:  # it was lost
                return
            silent_s = monotonic() - heard_at
            if silent_s > 2 * _LOOK_AGAIN_S:
                raise TimeoutError
            if silent_s > _LOOK_AGAIN_S - _POLL_S:
                _send(listener, "PING")

    def _id_of(self, listener: Link) -> int:
        try:
            own_id: int = _call(listener, "CLIENT", "ID")
        except ResponseError:
            self._is_not_told()
            return 0
        return own_id

    def _is_not_told(self) -> None:
        if self._is_told:
            _log.warning("this Redis does not tell of changes (CLIENT TRACKING); an idle worker asks it every 0.1 s")
        self._is_told = False

    def _make_tracker(self, listener_id: int) -> Link | None:
        if not self._is_told:
            return None
        tracker = self._connect(_TIMEOUT_S)
        try:
            _call(tracker, "CLIENT", "TRACKING", "ON", "REDIRECT", str(listener_id))
        except ResponseError:
            self._is_not_told()
            tracker.close()
            return None
        return tracker

    def _on_reply(self, reply: Any) -> None:
        if reply[0] == b"pmessage":
            pattern = reply[1].decode()
            for each, heard, queue in self._listening:
                if each == pattern:
                    heard.append((queue, reply[3]))
        elif reply[0] == b"message":
            sleep(max(0.0, self.rests_until - monotonic()))
        else:
            return
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self.changes += 1
            self._changed.notify_all()
        self._wake()


def _shut_down(link: Link) -> None:
    """Have whoever reads from a connection find it closed."""
    with suppress(OSError):
        link.raw.shutdown(SHUT_RDWR)


def _send(link: Link, *command: Word) -> None:
    link.deadline = monotonic() + _TIMEOUT_S
    link.send(pack([command]))


def _call(link: Link, *command: Word) -> Any:
    _send(link, *command)
    return link.read()
