"""The pump: takes parked messages that are due and puts them in their queues."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from taskbridge.brokers.base import Buried, RedisCommand, Wire, unpublished
from taskbridge.brokers.redis.client import Client, Script, Word
from taskbridge.brokers.redis.keys import Keys
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NewerFormError
from taskbridge.failures import text_of
from taskbridge.logs import logger
from taskbridge.message import loads

_log = logger("taskbridge.pump")

_LOOK: Final = Script(__file__, "look")
_SETTLE: Final = Script(__file__, "settle")
_BEAT: Final = Script(__file__, "beat")

_POLL_S: Final = 0.2
"""How long a single pump sleeps at most: what is parked meanwhile with a shorter delay is late by no more."""

_SHORTEST_SLEEP_S: Final = 0.005  # how long it sleeps at least, so that what falls due in a row is taken together

_LONGEST_SLEEP_S: Final = 0.5
"""How long one of many sleeps at most: if all others have died, what is due is late by no more (rule D2)."""

_TOGETHER: Final = 100
_TOGETHER_BYTES: Final = 1 << 18  # how much is taken at a time

_CLAIM_MS: Final = 400
"""How long what one pump has looked up is hidden from the others: if it dies with it in its hands, another must find it
in time (rule D2). One that takes longer to publish it finds that another has done so."""

_BEAT_S: Final = 1.5
_LIFE_MS: Final = 5000  # how often a pump says that it lives, and how long that is believed
_POSTPONED_MS: Final = 30_000  # how long a message waits that can't be published, or that only a newer release can read

_STRANGERS_PAUSE_S: Final = 0.8
"""How long a pump doesn't look at another engine's messages when it has seen all, and leaves some (rule D2)."""

_CALL_S: Final = 5.0
_LEAVE_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


@dataclass
class Pump:
    """One run of a pump, until `stop` is set."""

    client: Client
    wire: Wire[Sequence[RedisCommand]]
    keys: Keys
    knows: Callable[[str], bool]
    stop: threading.Event
    buried: Buried | None = None
    _id: str = field(default_factory=lambda: str(uuid4()), init=False)
    _orphans: list[Keys] = field(default_factory=list[Keys], init=False)  # of engines that have no pump
    # By engine, when the next look at its messages is, monotonic, and how many are passed over then.
    _next_look: dict[str, float] = field(default_factory=dict[str, float], init=False)
    _passed: Counter[str] = field(default_factory=Counter[str], init=False)
    _next_beat: float = field(default=0.0, init=False)
    _living: int = field(default=1, init=False)

    def run(self) -> None:
        """Publish what falls due; while Redis is away, try again and again."""
        pause_s = 0.0
        while not self.stop.is_set():
            try:
                sleep_s = self._round()
            except BrokerUnavailable as exc:
                if pause_s == 0 and not self.stop.is_set():
                    _log.warning("delayed messages wait until Redis is back: %s", exc.problem)
                sleep_s = pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, pause_s * 2))
            else:
                if pause_s > 0:
                    _log.warning("Redis is back, delayed messages are published again")
                pause_s = 0.0
            self.stop.wait(sleep_s)
        self._leave()

    def _round(self) -> float:
        if time.monotonic() >= self._next_beat:
            self._beat()
        return min([self._promote(keys) for keys in (self.keys, *self._orphans)])

    def _beat(self) -> None:
        """Say that this pump lives, and learn which other engines have none."""
        own, known = self.keys, {keys.engine for keys in self._orphans}
        beat = _BEAT((own.engines, own.pumps), own.namespace, own.engine, self._id, _LIFE_MS)
        self._living, *engines = self._run(beat)
        self._orphans = [Keys(own.namespace, engine.decode(errors="replace")) for engine in engines]
        for keys in self._orphans:
            if keys.engine not in known:
                _log.info("engine %s has no pump: delayed messages of known tasks are published here", keys.engine)
        self._next_beat = time.monotonic() + _BEAT_S

    def _leave(self) -> None:
        """Say that this pump is gone, so that another engine's may take over at once."""
        try:
            self.client.execute([("ZREM", self.keys.pumps, self._id)], timeout_s=_LEAVE_S)
        except BrokerUnavailable as exc:
            _log.info("this pump will be missed only after %d ms: %s", _LIFE_MS, exc.problem)

    # Promoting

    def _promote(self, keys: Keys) -> float:
        """Publish what is due of what an engine's bridges have parked, and return how long to sleep.

        Of another engine's, what is not known here stays, and would be found again each time: so the next look begins
        behind it, until the end is reached, and after that there is a pause.
        """
        early_s = self._next_look.get(keys.engine, 0.0) - time.monotonic()
        if early_s > 0:
            return early_s
        is_own = keys is self.keys
        passed = self._passed[keys.engine]
        look = _LOOK((keys.due, keys.messages), _CLAIM_MS if is_own else 0, passed, _TOGETHER, _TOGETHER_BYTES)
        wait_ms, *rest = self._run(look)
        decided: list[Word] = []
        left = 0
        for member, score, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            commands = self._commands(member.decode(errors="replace"), text, is_own)
            if commands is None:
                left += 1
                continue
            decided += member, score, len(commands)
            decided += [word for command in commands for word in (len(command), *command)]
        if decided:
            self._settle(keys, decided)
        wait_s = _sleep_s(wait_ms, self._living)
        if left:
            wait_s = _POLL_S if wait_ms == 0 else _STRANGERS_PAUSE_S
        self._passed[keys.engine] = passed + left if wait_ms == 0 else 0
        self._next_look[keys.engine] = time.monotonic() + wait_s
        return wait_s

    def _settle(self, keys: Keys, decided: Sequence[Word]) -> None:
        settled, *refused = self._run(_SETTLE((keys.due, keys.messages), _POSTPONED_MS, *decided))
        _log.debug("published %d delayed messages", settled)
        for member, error in zip(refused[::2], refused[1::2], strict=True):
            _log.error(
                "delayed message %s can't be published, tried again in 30 s: %s",
                member.decode(errors="replace"),
                error.decode(errors="replace"),
            )

    def _commands(self, member: str, text: bytes, is_own: bool) -> Sequence[Sequence[Word]] | None:
        """Return what is to be done with a due message, nothing to put it off, and None to leave it to its engine."""
        try:
            message = loads(text)
            return self.wire.encode(message) if is_own or self.knows(message.task) else None
        except Exception as exc:  # one message that can't be read or encoded must not keep all others waiting
            if isinstance(exc, DecodeError) and not is_own:
                return None
            if isinstance(exc, NewerFormError) or not is_own:
                _log.warning("delayed message %s can't be published here now: %s", member, text_of(exc))
                return ()
            letter = unpublished(text, exc, self.buried)
            dead = ("ZADD", self.keys.dead, round(letter.died_at * 1000), letter.id)
            return dead, ("HSET", self.keys.letters, letter.id, letter.dumps())

    def _run(self, command: RedisCommand) -> Any:
        return self.client.execute([command], timeout_s=_CALL_S, once=True)


def _sleep_s(wait_ms: int, living: int) -> float:
    """Return how long one of so many living pumps sleeps, this one included.

    Each sleeps the longer the more there are, for any of them promotes what is due: else a thousand idle workers would
    keep Redis busy, and all of them would wake for each message that falls due. `wait_ms` are the milliseconds until
    something is due; 0 if something is, -1 if nothing is parked.
    """
    if wait_ms == 0:
        return 0.0
    longest_s = min(_LONGEST_SLEEP_S, _POLL_S * living)
    if wait_ms < 0:
        return longest_s
    return min(longest_s, max(_SHORTEST_SLEEP_S * living, wait_ms / 1000))
