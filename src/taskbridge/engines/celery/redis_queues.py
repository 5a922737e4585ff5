"""The queues on Redis as Celery's channels use them, and how an idle worker learns that they are no longer empty.

No blocking command of Redis looks at several lists and takes nothing. So whether the lists are empty is asked on a
connection for which Redis tracks what was read (`CLIENT TRACKING`, Redis 6). On it comes that a key has changed since,
and what is sent to Celery's control channels, and Celery's event loop reads it. Where tracking is refused, the lists
are looked at ten times a second.

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

from redis.exceptions import NoPermissionError, ResponseError

from taskbridge.background import in_time
from taskbridge.brokers.redis.client import Link, Word, connector, pack
from taskbridge.brokers.redis.places import TROUBLE, Place
from taskbridge.engines.celery.wire import REDIS_STEPS, lists_of, step_key
from taskbridge.engines.redis_leases import CELERY, Leases, Lists
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.settings import Settings

_log = logger("taskbridge.celery")

_TIMEOUT_S: Final = 5.0  # how long Redis may take to answer; the worker's main loop waits for that

_CONNECT_S: Final = 2.0
"""How long it may take to connect a watch, which is not tried before Redis has answered otherwise."""

_LOOK_AGAIN_S: Final = 5.0  # how long an idle worker trusts that it would have been told of a change

_PING_S: Final = 1.0
"""How often it says something on its connection, which a server may close otherwise (Redis' own setting `timeout`)."""

_POLL_S: Final = 0.1  # how often an idle worker looks where Redis tells it nothing

_PAUSE_S: Final = 0.05
"""How long a worker rests at most after another one was faster, so that idle ones don't all run for each message."""

_STEPS: Final = sorted(REDIS_STEPS.values())


def step_of(priority: object) -> int:
    """Return the step of a message's priority, as kombu does (kombu/transport/redis.py, Channel.priority)."""
    number = priority if isinstance(priority, int) else 0
    return _STEPS[bisect(_STEPS, max(0, min(9, number))) - 1]


class RedisQueues(Leases):
    """The queues of one bridge on Redis, and what this process has taken of them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, CELERY)
        self._topics = f"/{self._client.place.options['db']}."
        self._events = f"{self._topics}{settings.namespace}.{CELERY.engine}.events"
        self._leaves_events_out = False

    def lists_of(self, queues: Sequence[str]) -> Lists:
        """Return what `take` is given for these queues."""
        return Lists([lists_of(queue) for queue in queues])

    def make_watch(self, wake: Callable[[], None]) -> Watch:
        """Return a watch for a connection; `wake` ends the sleep of the event loop."""
        return Watch(self._client.place, wake, answers=lambda: not self.is_away)

    # As kombu's own transport for Redis does it

    def _command(self, *command: Word) -> Any:
        return self._client.execute([command], timeout_s=_TIMEOUT_S, once=True)

    def check(self) -> None:
        """Do nothing, if Redis answers."""
        self._command("PING")

    def put(self, queue: str, priority: object, item: bytes) -> None:
        """Put a message in a queue, with a priority in Celery's words."""
        self._command("LPUSH", step_key(queue, step_of(priority)), item)

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue; kombu asks when it declares one."""
        return sum(self._command("LLEN", key) for key in lists_of(queue))

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue, and return how much it was."""
        keys = lists_of(queue)
        commands: list[Sequence[Word]] = [*(("LLEN", key) for key in keys), ("DEL", *keys)]
        return sum(self._client.execute(commands, timeout_s=_TIMEOUT_S)[:-1])

    def topic(self, exchange: str, routing_key: str) -> str:
        """Return the channel of Redis's on which is published what is sent to an exchange of the kind `fanout`."""
        return f"{self._topics}{exchange}/{routing_key}" if routing_key else f"{self._topics}{exchange}"

    def publish(self, topic: str, item: bytes) -> None:
        """Send to whoever listens; an event is left out where Redis does not permit it."""
        try:
            self._command("PUBLISH", topic, item)
        except BrokerUnavailable as exc:
            if not topic.startswith(self._events) or not isinstance(exc.__cause__, NoPermissionError):
                raise
            if not self._leaves_events_out:
                self._leaves_events_out = True
                _log.warning("PUBLISH %s is not permitted and left out: %s", topic, exc.problem)


class Watch:
    """Tells one of kombu's connections of changes; only the thread that uses that connection calls it.

    It connects when it is first asked for something, and as often as need be. `wake` ends the sleep of the event loop;
    `answers` returns whether Redis answers, as far as is known from elsewhere.
    """

    def __init__(self, place: Place, wake: Callable[[], None], *, answers: Callable[[], bool]) -> None:
        self._place = place
        self._wake = wake
        self._answers = answers
        self._loop: Any = None
        self._link: Any = None
        self._is_told = True
        self._may_listen = True
        self._heard_at = 0.0
        self._look_at = 0.0
        self._rests_until = 0.0
        self._looks_at = 0.0
        self._listening: dict[str, tuple[str, deque[tuple[str, bytes]]]] = {}
        self.changes: int = 0  # how often anything may have changed so far, or was heard
        self.is_served: bool = False  # whether an event loop serves the connection

    def is_quiet(self, queues: Sequence[str], *, in_vain: bool) -> bool:
        """Return whether queues, by native names, are empty; from then on, `changes` tells if they are no longer.

        `in_vain` is whether there was nothing in them although there was a change. Raises `BrokerUnavailable`.
        """
        if in_vain:
            self._rests_until = monotonic() + _PAUSE_S * (0.2 + 0.8 * random())
        try:
            self._open()
            keys = [key for queue in queues for key in lists_of(queue)]
            is_quiet = not self._is_told or not self._ask("EXISTS", *keys)
        except TROUBLE as exc:
            self._lose()
            raise BrokerUnavailable(f"Redis does not tell of changes: {exc}") from exc
        if not self._is_told:
            self.look_again(monotonic() + _POLL_S)
        elif not is_quiet:
            self._change()
        return is_quiet

    def listen(self, pattern: str, queue: str, heard: deque[tuple[str, bytes]]) -> None:
        """Have what is published on these channels appended to a deque, each with a queue's name.

        Raises `BrokerUnavailable` if Redis does not answer.
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

    def look_again(self, at: float) -> None:
        """Count a change at this time or sooner, in the event loop; elsewhere, nobody waits for long."""
        now = monotonic()
        if self._loop is None or now < self._looks_at <= at:
            return
        self._looks_at = at
        self._loop.call_later(at - now, self._change)
        self._wake()  # it sleeps until an earlier time than that, or a later one

    def _change(self) -> None:
        self.changes += 1
        self._wake()

    # In the event loop, and elsewhere

    def serve(self, loop: Any) -> None:
        """Have a loop read what Redis tells, until the watch is closed."""
        self._loop, self.is_served = loop, True
        loop.call_repeatedly(_PING_S, self._beat)
        if self._link is not None:
            loop.add_reader(self._link.fileno(), self._read)

    def _beat(self) -> None:
        """Ping, and look again now and then, for a connection may be dead without a sign of it."""
        if self._loop is None:
            return
        link = self._link
        try:
            self._open_if_it_answers()
            if monotonic() - self._heard_at > 2 * _LOOK_AGAIN_S:
                raise TimeoutError("nothing was heard")
            self._send("PING")
        except TROUBLE as exc:
            _log.debug("no connection to hear of changes on, trying again: %s", exc)
            self._lose()
        if self._link is not link or monotonic() >= self._look_at:
            self._look_at = monotonic() + _LOOK_AGAIN_S
            self.changes += 1

    def wait(self, changes: int, timeout_s: float) -> None:
        """Wait for another number of changes, where no loop does; it may be over before that."""
        if self.changes != changes:
            return
        try:
            self._open_if_it_answers()
            if self._can_read(timeout_s if self._is_told else min(timeout_s, _POLL_S)):
                self._read()
        except TROUBLE:
            self._lose()
            sleep(min(timeout_s, _POLL_S))
        self.changes += 1

    def close(self) -> None:
        """Hear nothing any more."""
        self._lose()
        self._loop, self.is_served = None, False

    # The connection

    def _open_if_it_answers(self) -> None:
        """Connect, unless it is connected; raises `TimeoutError` where that would be in vain."""
        if self._link is None and not self._answers():
            raise TimeoutError("Redis does not answer")
        self._open()

    def _open(self) -> None:
        """Connect, unless it is connected to where the queues are."""
        if self._link is not None:
            if self._place.found in (None, self._link.address):
                return
            self._lose()
        try:
            self._link = self._connected()
            if self._is_told:
                self._ask("CLIENT", "TRACKING", "ON")
        except ResponseError as exc:  # to HELLO, perhaps, which redis-py sends first
            if not self._is_told or self._place.passes(exc):
                raise
            _log.warning("Redis does not tell of changes (CLIENT TRACKING); an idle worker asks it every 0.1 s")
            self._lose()
            self._is_told = False
            self._link = self._connected()
        self._heard_at = monotonic()
        self._subscribe()
        if self._loop is not None:
            self._loop.add_reader(self._link.fileno(), self._read)

    def _connected(self) -> Link:
        """Connect, with all that belongs to it (looking the host up, TLS, AUTH), in time."""
        until = monotonic() + _CONNECT_S
        connect = connector(self._place, protocol=3 if self._is_told else 2)
        return in_time("redis-watch", lambda: connect(_CONNECT_S), Link.close, left_s=lambda: until - monotonic())

    def _subscribe(self) -> None:
        try:
            for pattern in {pattern for pattern, _ in self._listening.values() if self._may_listen}:
                self._ask("PSUBSCRIBE", pattern)
        except NoPermissionError as exc:  # the connection is as good as before
            _log.warning("PSUBSCRIBE is not permitted, so remote control is left out: %s", exc)
            self._may_listen = False

    def _lose(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(link.fileno())
        link.close()

    def _send(self, *command: Word) -> None:
        self._link.deadline = monotonic() + _TIMEOUT_S
        self._link.send(pack([command]))

    def _ask(self, *command: Word) -> Any:
        """Return the reply to a command; what Redis tells before that is noted."""
        self._send(*command)
        while (reply := self._next()) is None:
            pass
        return reply

    def _can_read(self, wait_s: float = 0.0) -> bool:
        return bool(self._link.owner.can_read(0) or self._link.has_come(wait_s))

    def _read(self) -> None:
        try:
            while self._link is not None and self._can_read():
                self._link.deadline = monotonic() + _TIMEOUT_S
                self._next()
        except TROUBLE as exc:
            _log.debug("the connection to hear of changes on is lost: %s", exc)
            self._lose()
            self.changes += 1

    def _next(self) -> Any:
        """Read what came next; return None if it answers nothing that is waited for."""
        reply = self._link.owner.read_response(disable_decoding=True, disconnect_on_error=False, push_request=True)
        self._heard_at = monotonic()
        match reply:
            case None | [b"invalidate", *_]:  # redis-py returns None where nobody handles it
                if self._loop is not None and self._heard_at < self._rests_until:
                    self.look_again(self._rests_until)
                else:
                    self.changes += 1
            case [b"pmessage", pattern, _, data]:
                for queue, (each, heard) in self._listening.items():
                    if each == pattern.decode():
                        heard.append((queue, data))
                self.changes += 1
            case b"PONG" | [b"pong", *_]:
                pass
            case _:
                return reply
        return None
