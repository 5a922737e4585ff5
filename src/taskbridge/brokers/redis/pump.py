"""The pump: takes parked messages that are due and puts them in their queues."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import uuid4

from taskbridge.brokers.base import RedisCommand, Wire
from taskbridge.brokers.redis import scripts
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.scripts import Call, Keys, Word
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NewerFormError
from taskbridge.message import DeadLetter, Message, loads
from taskbridge.settings import Settings

_log = logging.getLogger("taskbridge.pump")

_POLL_S: Final = 0.2
"""How long a single pump sleeps at most: what is parked meanwhile with a shorter delay is late by no more."""

_SHORTEST_SLEEP_S: Final = 0.005
"""How long it sleeps at least, so that what falls due in a row is taken together."""

_LONGEST_SLEEP_S: Final = 0.5
"""How long one of many sleeps at most: if all others have died, what is due is late by no more (rule D2)."""

_TOGETHER: Final = 100
_TOGETHER_BYTES: Final = 1 << 18
"""How much is taken at a time."""

_CLAIM_MS: Final = 400
"""How long what one pump has looked up is hidden from the others: if it dies with it in its hands, another must find it
in time (rule D2). One that takes longer to publish it finds that another has done so."""

_BEAT_S: Final = 1.5
_LIFE_MS: Final = 5000
"""How often a pump says that it lives, and how long that is believed."""

_POSTPONED_MS: Final = 30_000
"""How long a message waits that only a newer release can read or publish."""

_STRANGERS_PAUSE_S: Final = 0.8
"""How long a pump doesn't look at another engine's messages when it has seen all, and doesn't know some."""

_CALL_S: Final = 5.0
_LEAVE_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class _Found(NamedTuple):
    """A parked message that is due, as it was looked up."""

    member: bytes
    score: bytes
    text: bytes | None

    def settled(self, action: str, *words: Word) -> Sequence[Word]:
        """Return the words for the script that does something with it."""
        return self.member, self.score, action, *words


@dataclass(slots=True)
class _Source:
    """What the bridges of an engine have parked: the pump's own, or one that has no pump.

    Attributes:
        keys: The engine's.
        offset: Where the next look begins.
        next_look: When that is, by the monotonic clock.
    """

    keys: Keys
    offset: int = 0
    next_look: float = 0.0


class Pump:
    """One run of a pump, until `stop` is set."""

    def __init__(
        self,
        client: Client,
        wire: Wire[Sequence[RedisCommand]],
        settings: Settings,
        *,
        knows: Callable[[str], bool],
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._wire = wire
        self._knows = knows
        self._stop = stop
        self._id = str(uuid4())
        self._own = _Source(Keys(settings.namespace, wire.engine))
        self._orphans: dict[str, _Source] = {}
        self._next_beat = 0.0
        self._living = 1

    def run(self) -> None:
        """Publish what falls due; while Redis is away, try again and again."""
        pause_s = 0.0
        while not self._stop.is_set():
            try:
                sleep_s = self._round()
            except BrokerUnavailable as exc:
                if pause_s == 0 and not self._stop.is_set():
                    _log.warning("delayed messages wait until Redis is back: %s", exc.problem)
                sleep_s = pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, pause_s * 2))
            else:
                if pause_s > 0:
                    _log.warning("Redis is back, delayed messages are published again")
                pause_s = 0.0
            self._stop.wait(sleep_s)
        self._leave()

    def _round(self) -> float:
        """Publish what is due, and return how long to sleep."""
        if time.monotonic() >= self._next_beat:
            self._beat()
        return min([self._promote(each) for each in (self._own, *self._orphans.values())])

    def _beat(self) -> None:
        """Say that this pump lives, and learn which other engines have none."""
        self._living, *engines = self._run(scripts.beat(self._own.keys, pump=self._id, life_ms=_LIFE_MS))
        names = [engine.decode() for engine in engines]
        for name in set(names) - self._orphans.keys():
            _log.info("engine %s has no pump: its delayed messages are published here, if the task is known", name)
        namespace = self._own.keys.namespace
        self._orphans = {name: self._orphans.get(name) or _Source(Keys(namespace, name)) for name in names}
        self._next_beat = time.monotonic() + _BEAT_S

    def _leave(self) -> None:
        """Say that this pump is gone, so that another engine's may take over at once."""
        try:
            self._client.execute([("ZREM", self._own.keys.pumps, self._id)], timeout_s=_LEAVE_S)
        except BrokerUnavailable as exc:
            _log.info("this pump will be missed only after %d ms: %s", _LIFE_MS, exc.problem)

    # Promoting

    def _promote(self, source: _Source) -> float:
        """Publish what is due, and return how long to sleep.

        Of another engine's, what is not known here stays, and would be found again each time: so the next look begins
        behind it, until the end is reached, and after that there is a pause.
        """
        early_s = source.next_look - time.monotonic()
        if early_s > 0:
            return early_s
        claim_ms, decide = (_CLAIM_MS, self._decided) if source is self._own else (0, self._adopted)
        wait_ms, *rest = self._run(
            scripts.look(
                source.keys, claim_ms=claim_ms, offset=source.offset, most=_TOGETHER, most_bytes=_TOGETHER_BYTES
            )
        )
        found = [_Found(*row) for row in zip(rest[::3], rest[1::3], rest[2::3], strict=True)]
        decided = [words for each in found if (words := decide(each))]
        if decided:
            self._settle(source.keys, decided)
        left = len(found) - len(decided)
        wait_s = _sleep_s(wait_ms, self._living)
        if left:
            wait_s = _POLL_S if wait_ms == 0 else _STRANGERS_PAUSE_S
        source.offset = source.offset + left if wait_ms == 0 else 0
        source.next_look = time.monotonic() + wait_s
        return wait_s

    def _settle(self, keys: Keys, decided: list[Sequence[Word]]) -> None:
        """Do what was decided, in one step."""
        published, *refused = self._run(scripts.settle(keys, [word for words in decided for word in words]))
        _log.debug("published %d delayed messages", published)
        for member, error in zip(refused[::2], refused[1::2], strict=True):
            _log.error(
                "delayed message %s can't be published, tried again in 30 s: %s", member.decode(), error.decode()
            )

    def _decided(self, found: _Found) -> Sequence[Word]:
        """Decide about a due message of the own engine."""
        member = found.member.decode(errors="replace")
        if found.text is None:
            _log.warning("delayed message %s has no text (was the hash changed by hand?), forgotten", member)
            return found.settled("drop")
        try:
            return self._published(found, loads(found.text))
        except NewerFormError as exc:
            _log.warning("delayed message %s waits for a newer release: %s", member, exc)
            return found.settled("postpone", _POSTPONED_MS)
        except DecodeError as exc:
            _log.error("delayed message %s is dead, reason undecodable: %s", member, exc)
            letter = DeadLetter(message=None, reason="undecodable", raw=found.text, died_at=time.time())
            return found.settled("bury", letter.id, round(letter.died_at * 1000), letter.dumps())
        except Exception:  # one message that the wire can't encode must not keep all others waiting
            _log.exception("delayed message %s can't be published, tried again in 30 s", member)
            return found.settled("postpone", _POSTPONED_MS)

    def _adopted(self, found: _Found) -> Sequence[Word] | None:
        """Decide about a due message of another engine; None leaves it where it is."""
        try:
            message = None if found.text is None else loads(found.text)
            return self._published(found, message) if message and self._knows(message.task) else None
        except DecodeError:
            return None  # for its own engine to bury, or for a newer release

    def _published(self, found: _Found, message: Message) -> Sequence[Word]:
        commands = self._wire.encode(message)
        words = [word for command in commands for word in (len(command), *command)]
        return found.settled("publish", len(commands), *words)

    def _run(self, call: Call) -> Any:
        return self._client.run(call, timeout_s=_CALL_S, stop=self._stop)


def _sleep_s(wait_ms: int, living: int) -> float:
    """Return how long one of so many living pumps sleeps.

    Each sleeps the longer the more there are, for any of them promotes what is due: else a thousand idle workers would
    keep Redis busy, and all of them would wake for each message that falls due.

    Args:
        wait_ms: The milliseconds until something is due; 0 if something is, -1 if nothing is parked.
        living: How many pumps there are, this one included.
    """
    if wait_ms == 0:
        return 0.0
    longest_s = min(_LONGEST_SLEEP_S, _POLL_S * living)
    if wait_ms < 0:
        return longest_s
    return min(longest_s, max(_SHORTEST_SLEEP_S * living, wait_ms / 1000))
