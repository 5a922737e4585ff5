"""The queues on Redis as Celery's channels use them, and how an idle worker learns that they are no longer empty.

No blocking command of Redis looks at several lists and takes nothing. So whether the lists are empty is asked on a
connection for which Redis tracks what was read (`CLIENT TRACKING`, Redis 6), and Redis sends the keys that have changed
since to another one, which Celery's event loop reads. Where that is refused, the lists are looked at ten times a
second. On the second connection comes what is sent to Celery's control channels, too.

What only remote control and events need is left out where Redis doesn't permit it (`NOPERM`), with one warning.
Connecting again would not mend that, and tasks need none of it.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Callable, Sequence
from random import random
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from redis.connection import parse_url
from redis.exceptions import NoPermissionError, ResponseError

from taskbridge.background import in_time
from taskbridge.brokers.redis.client import TROUBLE, Link, Word, connector, pack
from taskbridge.engines.celery.wire import REDIS_STEPS, step_key
from taskbridge.engines.redis_leases import CELERY, Leases, Lists
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.settings import Settings

_parse_url: Final[Any] = parse_url

_log = logger("taskbridge.celery")

_TIMEOUT_S: Final = 5.0
"""How long Redis may take to answer; the worker's main loop waits for that."""

_CONNECT_S: Final = 2.0
"""How long it may take to connect a watch, which is not tried before Redis has answered otherwise."""

_LOOK_AGAIN_S: Final = 5.0
"""How long an idle worker trusts that it would have been told of a change."""

_POLL_S: Final = 0.1
"""How often an idle worker looks where Redis tells it nothing."""

_SAME_S: Final = 0.001
"""Two times that are no further apart than this are the same."""

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


class RedisQueues(Leases):
    """The queues of one bridge on Redis, and what this process has taken of them.

    Args:
        settings: The bridge's.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, CELERY)
        self._url = settings.url.broker_url
        self._topics = f"/{_parse_url(self._url).get('db', 0)}."
        self._events = f"{self._topics}{settings.namespace}.{CELERY.engine}.events"
        self._replies = f".reply.{settings.namespace}.{CELERY.engine}.pidbox"
        self._left_out: set[Word] = set()

    def lists_of(self, queues: Sequence[str]) -> Lists:
        """Return what `take` is given for these queues."""
        return Lists([lists_of(queue) for queue in queues])

    def make_watch(self, wake: Callable[[], None]) -> Watch:
        """Return a watch for a connection; `wake` ends the sleep of the event loop."""
        return Watch(self._url, wake, answers=lambda: not self.is_away)

    # As kombu's own transport for Redis does it

    def _command(self, *command: Word) -> Any:
        return self._client.execute([command], timeout_s=_TIMEOUT_S)

    def _permitted(self, *command: Word) -> Any:
        """Return the reply to a command that no task needs; None if Redis doesn't permit it."""
        try:
            return self._command(*command)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, NoPermissionError):
                raise
            if command[0] not in self._left_out:
                self._left_out.add(command[0])
                _log.warning("%s %s is not permitted and left out: %s", command[0], command[1], exc.problem)
            return None

    def check(self) -> None:
        """Do nothing, if Redis answers."""
        self._command("PING")

    def put(self, queue: str, priority: object, item: bytes) -> None:
        """Put a message in a queue, with a priority in Celery's words; an answer to remote control may be left out."""
        execute = self._permitted if queue.endswith(self._replies) else self._command
        execute("LPUSH", step_key(queue, step_of(priority)), item)

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue; kombu asks when it declares one, also one of remote control."""
        return sum(self._permitted("LLEN", key) or 0 for key in lists_of(queue))

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue, and return how much it was."""
        keys = lists_of(queue)
        commands: list[Sequence[Word]] = [*(("LLEN", key) for key in keys), ("DEL", *keys)]
        return sum(self._client.execute(commands, timeout_s=_TIMEOUT_S)[:-1])

    def topic(self, exchange: str, routing_key: str) -> str:
        """Return the channel of Redis's on which is published what is sent to an exchange of the kind `fanout`."""
        return f"{self._topics}{exchange}/{routing_key}" if routing_key else f"{self._topics}{exchange}"

    def publish(self, topic: str, item: bytes) -> None:
        """Send to whoever listens; an event may be left out."""
        execute = self._permitted if topic.startswith(self._events) else self._command
        execute("PUBLISH", topic, item)


class Watch:
    """Tells one of kombu's connections of changes; only the thread that uses that connection calls it.

    It connects when it is first asked for something, and as often as need be.

    Args:
        url: Of the server.
        wake: Ends the sleep of the event loop.
        answers: Returns whether Redis answers, as far as is known from elsewhere.

    Attributes:
        changes: How often anything may have changed so far, or was heard.
        is_served: Whether an event loop serves the connection.
    """

    def __init__(self, url: str, wake: Callable[[], None], *, answers: Callable[[], bool]) -> None:
        self._connect = connector(url)
        self._wake = wake
        self._answers = answers
        self._loop: Any = None
        self._listener: Link | None = None
        self._tracker: Link | None = None
        self._is_told = True
        self._may_listen = True
        self._heard_at = 0.0
        self._rests_until = 0.0
        self._timer: Any = None
        self._looks_at = 0.0  # when that is over
        self._listening: dict[str, tuple[str, deque[tuple[str, bytes]]]] = {}
        self.changes: int = 0
        self.is_served: bool = False

    def is_quiet(self, queues: Sequence[str], *, in_vain: bool) -> bool:
        """Return whether queues are empty; from then on, `changes` tells if they are no longer.

        Args:
            queues: Their native names.
            in_vain: Whether there was nothing in them although there was a change.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        if in_vain:
            self._rests_until = monotonic() + _PAUSE_S * (0.2 + 0.8 * random())
        try:
            self._open()
            keys = [key for queue in queues for key in lists_of(queue)]
            is_quiet = self._tracker is None or not _call(self._tracker, "EXISTS", *keys)
        except TROUBLE as exc:
            self._lose()
            raise BrokerUnavailable(f"Redis does not tell of changes: {exc}") from exc
        if self._tracker is None:
            self.look_again(_POLL_S)
        elif not is_quiet:
            self._change()
        return is_quiet

    def listen(self, pattern: str, queue: str, heard: deque[tuple[str, bytes]]) -> None:
        """Have what is published on these channels appended to a deque, each with a queue's name.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        self._listening[queue] = pattern.replace("#", "*"), heard
        try:
            self._open()
            self._subscribe()
        except TROUBLE as exc:
            self._lose()
            raise BrokerUnavailable(f"Redis does not tell what is published: {exc}") from exc

    def stop_listening(self, queue: str) -> None:
        """End that; the subscription itself lasts as long as the connection."""
        self._listening.pop(queue, None)

    def look_again(self, in_s: float) -> None:
        """Count a change in so many seconds or sooner, in the event loop; elsewhere, nobody waits for long."""
        if self._loop is None:
            return
        now = monotonic()
        if self._timer is not None:
            if now < self._looks_at <= now + in_s + _SAME_S:
                return
            self._timer.cancel()
        self._looks_at = now + in_s
        self._timer = self._loop.call_later(in_s, self._look)
        self._wake()  # it sleeps until an earlier time than that, or a later one

    def _look(self) -> None:
        self._timer = None
        self._change()

    def _change(self) -> None:
        self.changes += 1
        self._wake()

    # In the event loop, and elsewhere

    def serve(self, loop: Any) -> None:
        """Have a loop read what Redis tells, until the watch is closed."""
        self._loop, self.is_served = loop, True
        loop.call_repeatedly(_LOOK_AGAIN_S, self._beat)
        if self._listener is not None:
            loop.add_reader(self._listener.fileno(), self._read)

    def _beat(self) -> None:
        """Look again, for a connection may be dead without a sign of it."""
        if self._loop is None:
            return
        try:
            self._open_if_it_answers()
            if self._listener is None or monotonic() - self._heard_at > 2 * _LOOK_AGAIN_S:
                raise TimeoutError("nothing was heard")
            _send(self._listener, "PING")
        except TROUBLE as exc:
            _log.debug("no connection to hear of changes on, trying again: %s", exc)
            self._lose()
        self.changes += 1

    def wait(self, changes: int, timeout_s: float) -> None:
        """Wait for another number of changes, where no loop does; it may be over before that."""
        if self.changes != changes:
            return
        try:
            self._open_if_it_answers()
            if self._tracker is None:
                timeout_s = min(timeout_s, _POLL_S)
            if self._listener is not None and self._listener.can_read(timeout_s):
                self._read()
        except TROUBLE:
            self._lose()
            sleep(min(timeout_s, _POLL_S))
        self.changes += 1

    def close(self) -> None:
        """Hear nothing any more."""
        self._lose()
        if self._timer is not None:
            self._timer.cancel()
        self._loop, self._timer, self.is_served = None, None, False

    # The connections

    def _open_if_it_answers(self) -> None:
        """Connect, unless it is connected; raises `TimeoutError` where that would be in vain."""
        if self._listener is None and not self._answers():
            raise TimeoutError("Redis does not answer")
        self._open()

    def _open(self) -> None:
        """Connect, unless it is connected."""
        if self._listener is not None:
            return
        self._listener = listener = self._connected()
        if self._is_told:
            try:
                own_id: int = _call(listener, "CLIENT", "ID")
                _call(listener, "SUBSCRIBE", _INVALIDATIONS)
                self._tracker = self._connected()
                _call(self._tracker, "CLIENT", "TRACKING", "ON", "REDIRECT", str(own_id))
            except ResponseError as exc:
                if "does not exist" in str(exc):  # the listener's id: it was cut just now
                    raise
                _log.warning("Redis does not tell of changes (CLIENT TRACKING); an idle worker asks it every 0.1 s")
                self._is_told = False
                self._lose()
                self._listener = listener = self._connected()
        self._subscribe()
        self._heard_at = monotonic()
        if self._loop is not None:
            self._loop.add_reader(listener.fileno(), self._read)

    def _connected(self) -> Link:
        """Connect, with all that belongs to it (looking the host up, TLS, AUTH), in time."""
        until = monotonic() + _CONNECT_S
        return in_time("redis-watch", lambda: self._connect(_CONNECT_S), Link.close, left_s=lambda: until - monotonic())

    def _subscribe(self) -> None:
        patterns = {pattern for pattern, _ in self._listening.values()}
        if patterns and self._may_listen and self._listener is not None:
            _send(self._listener, "PSUBSCRIBE", *patterns)

    def _lose(self) -> None:
        """Let go of both connections: what was asked on one is told on the other."""
        if self._listener is not None and self._loop is not None:
            self._loop.remove_reader(self._listener.fileno())
        for link in (self._listener, self._tracker):
            if link is not None:
                link.close()
        self._listener = self._tracker = None

    def _read(self) -> None:
        """Handle all that has come."""
        try:
            while self._listener is not None and self._listener.can_read():
                self._listener.deadline = monotonic() + _TIMEOUT_S
                self._on_reply(self._listener.read())
        except NoPermissionError as exc:  # it answers PSUBSCRIBE, and the connection is as good as before
            if self._may_listen:
                _log.warning("PSUBSCRIBE is not permitted, so remote control is left out: %s", exc)
            self._may_listen = False
            self._read()
        except TROUBLE as exc:
            _log.debug("the connection to hear of changes on is lost: %s", exc)
            self._lose()
            self.changes += 1

    def _on_reply(self, reply: Any) -> None:
        self._heard_at = monotonic()
        if reply[0] == b"pmessage":
            pattern = reply[1].decode()
            for queue, (each, heard) in self._listening.items():
                if each == pattern:
                    heard.append((queue, reply[3]))
            self.changes += 1
        elif reply[0] == b"message" and self._loop is not None and self._heard_at < self._rests_until:
            self.look_again(self._rests_until - self._heard_at)
        elif reply[0] == b"message":
            self.changes += 1


def _send(link: Link, *command: Word) -> None:
    link.deadline = monotonic() + _TIMEOUT_S
    link.send(pack([command]))


def _call(link: Link, *command: Word) -> Any:
    _send(link, *command)
    return link.read()
