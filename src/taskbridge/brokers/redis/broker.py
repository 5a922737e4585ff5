"""What the bridge and the workers ask of Redis: publish, park, bury, count."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import chain, count, groupby, islice
from typing import Any, Final, NamedTuple

from taskbridge.brokers.base import Buried, Counts, Decide, Place, RedisCommand, Remark, Taken, Wire, place_of
from taskbridge.brokers.redis.client import Request, Script, Word, client_of
from taskbridge.brokers.redis.keys import Keys
from taskbridge.brokers.redis.pump import Pump
from taskbridge.exceptions import BrokerUnavailable, DecodeError, PartlyPublished
from taskbridge.logs import logger
from taskbridge.message import END_OF_TIME, RAW, DeadLetter, Message, loads_letter
from taskbridge.settings import Settings

_TOGETHER: Final = 100  # how many messages one command takes at most: while it works, the server does nothing else
_TOGETHER_BYTES: Final = 1 << 18  # how many bytes of messages one command takes, about
_KEYS_TOGETHER: Final = 200  # how many ids of dead letters one command returns, for a page
_LETTERS_TOGETHER: Final = 20  # how many dead letters, each of which may be as large as a message may
_PARK: Final = Script(__file__, "park")
_BURY: Final = Script(__file__, "bury")
_TAKE_DEAD: Final = Script(__file__, "take_dead")
_COUNT: Final = Script(__file__, "count")

_BEFORE_ITEMS: Final[dict[Word, int]] = {"LPUSH": 2, "RPUSH": 2, "SADD": 2, "HSET": 2, "EVALSHA": 7}
"""Commands that take any number of items, and how many words stand before these: two with the same words there are one
command with the items of both. The script is `_PARK`."""

_PROBE_SLACK_S: Final = 60.0
"""How much the clocks of those who ask may differ, where there is no store to tell the time."""

_log = logger("taskbridge.redis")


class RedisBroker:
    """Keeps messages in Redis; what its methods take, return and raise is said in `Broker`.

    Whatever takes no `timeout_s` has `send_timeout`.
    """

    def __init__(self, settings: Settings, wire: Wire[Sequence[RedisCommand]]) -> None:
        self._settings = settings
        self._wire = wire
        self._client = client_of(settings.url.broker_url, settings.namespace)
        self._keys = Keys(settings.namespace, wire.engine)
        self._dead_ttl_ms = _milliseconds(settings.dead_ttl_s)

    def publish(
        self, messages: Sequence[Message], *, along: Sequence[Sequence[RedisCommand]] = (), timeout_s: float
    ) -> None:
        """Publish messages, those of the same queue and priority up to 100 in one command.

        `along` has for each message commands, such as one that makes its record, in one transaction with it.
        """
        self._give([self._wire.encode(message) for message in messages], along, timeout_s)

    def park(
        self,
        messages: Sequence[tuple[Message, float]],
        *,
        along: Sequence[Sequence[RedisCommand]] = (),
        timeout_s: float,
    ) -> None:
        """Keep messages, each for so many seconds by the server's clock; the rest is as in `publish`."""
        self._give([(self._parking(message, delay_s),) for message, delay_s in messages], along, timeout_s)

    def _parking(self, message: Message, delay_s: float) -> RedisCommand:
        keys, delay_ms = self._keys, max(0, math.ceil(delay_s * 1000))
        names = keys.due, keys.messages, keys.engines
        return _PARK(names, keys.engine, message.attempt_key, delay_ms, message.dumps())

    def commands(self, message: Message, delay_s: float) -> Sequence[RedisCommand]:
        """Return what publishes a message, or parks it, within a commit of a store that shares the database."""
        if delay_s <= 0:
            return self._wire.encode(message)
        return (("PARK", *self._parking(message, delay_s)[3:]),)

    def _give(self, requests: Sequence[Request], along: Sequence[Sequence[RedisCommand]], timeout_s: float) -> None:
        """Have requests carried out, one a message, each in one transaction with the commands that go along."""
        if len(requests) == 1:
            request = (*along[0], *requests[0]) if along else requests[0]
            self._client.execute(request, timeout_s=timeout_s, replicas=self._settings.wait_replicas)
            return
        batches = batched(requests)
        merged = [batch.merged(requests, along) for batch in batches]
        outcomes = self._client.execute_all(merged, timeout_s=timeout_s, replicas=self._settings.wait_replicas)
        problems = [outcome for outcome in outcomes if isinstance(outcome, BrokerUnavailable)]
        if not problems:
            return
        worst = max(problems, key=lambda problem: problem.maybe_taken)
        accepted, unsure = set[int](), set[int]()
        for batch, outcome in zip(batches, outcomes, strict=True):
            if not isinstance(outcome, BrokerUnavailable):
                accepted.update(batch.indexes)
            elif outcome.maybe_taken:
                unsure.update(batch.indexes)
        raise PartlyPublished(worst, accepted=frozenset(accepted), unsure=frozenset(unsure)) from worst

    def bury(self, letter: DeadLetter, *, timeout_s: float) -> None:
        """Keep a dead letter; the same id again replaces the first."""
        self._client.execute([burying(self._keys, letter, self._settings.dead_ttl_s)], timeout_s=timeout_s)

    def pump(self, *, knows: Callable[[str], bool], stop: threading.Event, buried: Buried | None = None) -> None:
        Pump(self._client, self._wire, self._keys, knows=knows, stop=stop, buried=buried).run()

    def counts(self, queues: Sequence[str]) -> Counts:
        """Return how much waits in these queues, and how much is delayed and dead, all at one moment."""
        places = {queue: self._wire.places(queue) for queue in queues}
        keys = self._keys.engines, self._keys.dead, *chain.from_iterable(places.values())
        call = _COUNT(keys, self._keys.namespace, self._dead_ttl_ms)
        delayed, dead, *lengths = self._client.execute([call], timeout_s=self._settings.send_timeout_s)
        remaining = iter(lengths)
        waiting = {queue: sum(islice(remaining, len(places[queue]))) for queue in places}
        return Counts(waiting=waiting, delayed=delayed, dead=dead)

    def dead_letters(self, ids: Collection[str] | None = None) -> list[DeadLetter]:
        return [found.letter for part in self._dead_parts(ids, self._settings.send_timeout_s) for found in part]

    def dead_letters_from(self, place: Place | None, *, most: int | None) -> Generator[DeadLetter]:
        """Yield dead letters by when they died and by id, 20 read at a time, whatever is `most`."""
        place = place or (0.0, "")
        letters = (found.letter for part in self._dead_parts_since(place[0]) for found in part)
        for _, together in groupby(letters, key=lambda letter: _milliseconds(letter.died_at)):  # as Redis sorts them
            yield from (letter for letter in sorted(together, key=place_of) if place_of(letter) >= place)

    def take_dead(self, decide: Decide, *, ids: Collection[str] | None = None, timeout_s: float) -> list[str]:
        """Take dead letters out, up to 20 in one script, which also parks what is replayed."""
        taken: list[str] = []
        for part in self._dead_parts(ids, timeout_s):
            chosen = [(found, fate) for found in part if (fate := decide(found.letter)) is not None]
            taken += self._take(chosen, timeout_s) if chosen else ()
        return taken

    def _take(self, chosen: Sequence[tuple[_Dead, Taken]], timeout_s: float) -> list[str]:
        words: list[Word] = []
        for found, fate in chosen:
            replayed: tuple[Word, ...] = ("", "", 0)
            if fate.message is not None:
                replayed = fate.message.attempt_key, fate.message.dumps(), math.ceil(fate.delay_s * 1000)
            words += found.key, sha1(found.text, usedforsecurity=False).hexdigest(), *replayed
        keys = self._keys
        call = _TAKE_DEAD((keys.dead, keys.letters, keys.due, keys.messages, keys.engines), keys.engine, *words)
        answers = self._client.execute([call], timeout_s=timeout_s, replicas=self._settings.wait_replicas)
        return [found.letter.id for (found, _), answer in zip(chosen, answers, strict=True) if answer]

    def _dead_parts_since(self, died_at: float) -> Iterator[list[_Dead]]:
        """Yield the dead letters since a time, a part at a time: a page takes as many commands however many there are.

        If some are taken out meanwhile, as many others may be left out.
        """
        timeout_s = self._settings.send_timeout_s
        self._forget_old(timeout_s)
        for start in count(0, _KEYS_TOGETHER):
            since = "ZRANGEBYSCORE", self._keys.dead, _milliseconds(died_at), "+inf", "LIMIT", start, _KEYS_TOGETHER
            keys: list[bytes] = self._client.execute([since], timeout_s=timeout_s)
            for first in range(0, len(keys), _LETTERS_TOGETHER):
                yield list(self._read(keys[first : first + _LETTERS_TOGETHER], timeout_s))
            if len(keys) < _KEYS_TOGETHER:
                return

    def _forget_old(self, timeout_s: float) -> None:
        while self._client.execute([burying(self._keys, None, self._settings.dead_ttl_s)], timeout_s=timeout_s):
            pass  # there is more to forget

    def _dead_parts(self, ids: Collection[str] | None, timeout_s: float) -> Iterator[list[_Dead]]:
        """Yield the dead letters, or those of these ids, the oldest first, a part at a time."""
        self._forget_old(timeout_s)
        everything = ids is None or any(each.startswith(RAW) for each in ids)  # which are not those of the keys, always
        if everything or len(ids or ()) > _LETTERS_TOGETHER:  # for they come in their order, part by part
            keys: list[bytes] = self._client.execute([("ZRANGE", self._keys.dead, 0, -1)], timeout_s=timeout_s)
            if not everything:
                keys = [key for key in keys if key.decode(errors="replace") in (ids or ())]
        else:
            keys = [each.encode() for each in ids or ()]
        for start in range(0, len(keys), _LETTERS_TOGETHER):
            found = self._read(keys[start : start + _LETTERS_TOGETHER], timeout_s)
            part = [each for each in found if ids is None or each.letter.id in ids]
            yield part if everything else sorted(part, key=lambda each: each.letter.died_at)

    def _read(self, keys: Sequence[bytes], timeout_s: float) -> Iterator[_Dead]:
        texts = self._client.execute([("HMGET", self._keys.letters, *keys)], timeout_s=timeout_s)
        for key, text in zip(keys, texts, strict=True):
            if text is None:
                continue  # forgotten meanwhile
            try:
                letter = loads_letter(text)
            except DecodeError as exc:
                _log.warning("dead letter %s can't be read: %s", key.decode(errors="replace"), exc)
                died_at_ms = self._client.execute([("ZSCORE", self._keys.dead, key)], timeout_s=timeout_s)
                died_at = min(END_OF_TIME, max(0.0, float(died_at_ms or 0) / 1000))
                letter = DeadLetter(message=None, reason="undecodable", raw=text, died_at=died_at)
            yield _Dead(key=key, text=text, letter=letter)

    def ping(self, *, timeout_s: float) -> None:
        self._client.execute([("PING",)], timeout_s=timeout_s)

    # Probes: Redis forgets no item of a list by itself, so a hash holds what removes each, for whoever asks next

    def ask(self, probes: Sequence[Message], *, timeout_s: float) -> None:
        """Publish probes; they are removed by `withdraw`, or by an `ask` after they have expired."""
        deadline = time.monotonic() + timeout_s
        ids: list[bytes] = self._client.execute([("HKEYS", self._keys.probes)], timeout_s=timeout_s)
        asked_at = min((probe.enqueued_at for probe in probes), default=0.0)
        self._remove_probes(ids, timeout_s, before=asked_at - _PROBE_SLACK_S)
        for probe in probes:
            publishing = self._wire.encode(probe)
            removing = [_undoing(command) for command in publishing]
            note = ("HSET", self._keys.probes, probe.id, json.dumps([probe.expires_at, removing]))
            self._client.execute([*publishing, note], timeout_s=deadline - time.monotonic())

    def withdraw(self, probes: Sequence[Message], signs: Sequence[str], *, timeout_s: float) -> None:
        self._remove_probes([probe.id for probe in probes], timeout_s)
        if signs:
            self._client.execute([("DEL", *(self._keys.sign + name for name in signs))], timeout_s=timeout_s)

    def _remove_probes(self, ids: Sequence[Word], timeout_s: float, *, before: float = math.inf) -> None:
        """Remove probes, of these only those that have expired before a time."""
        notes = self._client.execute([("HMGET", self._keys.probes, *ids)], timeout_s=timeout_s) if ids else ()
        for each, note in zip(ids, notes, strict=True):
            expires_at, removing = (math.inf, ()) if note is None else _noted(note)
            if expires_at < before:
                self._client.execute([*removing, ("HDEL", self._keys.probes, each)], timeout_s=timeout_s)

    def leave_signs(self, names: Sequence[str], *, life_s: float, timeout_s: float) -> None:
        commands = [("SET", self._keys.sign + name, "", "PX", round(life_s * 1000)) for name in names]
        self._client.execute(commands, timeout_s=timeout_s)

    def see_signs(self, names: Sequence[str], *, timeout_s: float) -> Collection[str]:
        replies = self._client.execute([("MGET", *(self._keys.sign + name for name in names))], timeout_s=timeout_s)
        return {name for name, reply in zip(names, replies, strict=True) if reply is not None}

    # Whether the server is fit for messages

    def examine(self, queues: Sequence[str], *, management: str | None, timeout_s: float) -> Iterable[Remark]:
        from taskbridge.brokers.redis.examination import examine  # here, for nothing but a command needs it

        return examine(self._client, self._settings.namespace, timeout_s=timeout_s)

    def forget(self, queues: Sequence[str], *, timeout_s: float) -> None:
        keys, places = self._keys, chain.from_iterable(map(self._wire.places, queues))
        everything = "DEL", keys.due, keys.messages, keys.pumps, *places
        self._client.execute([("SREM", keys.engines, keys.engine), everything], timeout_s=timeout_s)

    def close(self) -> None:
        self._client.close()


connect = RedisBroker
"""Makes a Redis broker, which connects when it is first used; raises `SettingsError` if redis-py can't read the URL."""


class _Dead(NamedTuple):
    """A dead letter as it was read: its key, its text, and what that says."""

    key: bytes
    text: bytes
    letter: DeadLetter


@dataclass(slots=True)
class Batch:
    """Messages whose requests are merged into one, which carries out all of them or none."""

    starts: Request  # of each command the words that all of them have
    indexes: list[int] = field(default_factory=list[int])  # of the messages
    size: int = 0  # their bytes, about

    def merged(self, requests: Sequence[Request], along: Sequence[Sequence[RedisCommand]]) -> list[Sequence[Word]]:
        """Return the one request, with the commands that go along with these messages before the others."""
        commands: list[Sequence[Word]] = [each for index in self.indexes if along for each in along[index]]
        for place, start in enumerate(self.starts):
            items = [word for index in self.indexes for word in requests[index][place][len(start) :]]
            commands.append((*start, *items))
        return commands


def batched(requests: Sequence[Request]) -> list[Batch]:
    """Return batches that do what these requests, one a message, would do, in few commands; lists keep their order."""
    batches: list[Batch] = []
    growing: dict[Any, Batch] = {}
    for index, request in enumerate(requests):
        starts = tuple([command[: _BEFORE_ITEMS.get(command[0], 2)] for command in request])
        batch = growing.get(starts)
        if batch is None:
            batch = Batch(starts)
            batches.append(batch)
            if all(command[0] in _BEFORE_ITEMS for command in request):
                growing[starts] = batch
        batch.indexes.append(index)
        for command in request:
            last = command[-1]  # where engines put the body
            batch.size += len(last) if isinstance(last, (str, bytes)) else 0
        if len(batch.indexes) >= _TOGETHER or batch.size >= _TOGETHER_BYTES:
            growing.pop(starts, None)
    return batches


def burying(keys: Keys, letter: DeadLetter | None, dead_ttl_s: float) -> RedisCommand:
    """Return a command that buries a letter, if given, and forgets old ones; it replies whether some are left."""
    words = () if letter is None else (letter.id, _milliseconds(letter.died_at), letter.dumps())
    return _BURY((keys.dead, keys.letters), _milliseconds(dead_ttl_s), *words)


def _milliseconds(duration_s: float) -> int:
    return round(duration_s * 1000)


def _noted(note: bytes) -> tuple[float, Sequence[Sequence[Word]]]:
    """Return when a probe expires, and the commands that remove it; nothing of a note that says anything else."""
    with suppress(Exception):
        expires_at, commands = json.loads(note)
        if expires_at >= 0 and {command[0] for command in commands} <= {"HDEL", "LREM"}:
            return expires_at, [[word.encode() for word in command] for command in commands]
    return -math.inf, ()


def _undoing(command: RedisCommand) -> list[str]:
    """Return the command that takes away again what one has put in a list or a hash."""
    name, key, item = (word.decode() if isinstance(word, bytes) else str(word) for word in command[:3])
    return ["HDEL", key, item] if name == "HSET" else ["LREM", key, "0", item]
