"""What a store in Redis keeps, under which keys.

| key | type | holds |
|---|---|---|
| `{ns}:record:{id}` | string | a record |
| `{ns}:mark:{life}:{attempt}` | string | the worker that started an attempt, or `ended` |
| `{ns}:mark:{life}:{attempt}:taken` | string | how often a message was taken before its attempt was started |
| `{ns}:alive:{worker}` | string | is there as long as the worker counts as alive |
| `{ns}:schedule:{name}` | string | what is known of a schedule |
| `{ns}:schedules` | string | which schedules the code has, and when they are due |
| `{ns}:planned:{part}` | string | schedules that were put at run time, by name |
| `{ns}:planned` | string | the versions of these parts |
| `{ns}:told:{key}` | channel | tells who watches one of these that it was written: of a record, that it became final |
| `{ns}:cancelled` | sorted set | the life of each cancelled message, by a growing number made of the server's time |
| `{ns}:cancelled:until` | sorted set | the same, by the millisecond at which it is forgotten |
| `{ns}:unique:{task}:{hash}` | string | which message holds a unique key |
| `{ns}:outbox` | sorted set | the id of each entry of the outbox, by the millisecond at which it is due |
| `{ns}:outbox:entries` | hash | the text of each |
| `{ns}:flow:{id}:group:{stage}` | hash | how many members have `ended`, how they have if badly, and `sent`, `until` |
| `{ns}:flow:{id}:group:{stage}:ended` | bitmap | which members have ended |
| `{ns}:flow:{id}:group:{stage}:{page}` | hash | what is kept of the ends of a hundred members, by their index |
| `{ns}:vitals`, `{ns}:vitals:past`, `{ns}:vital:{process}` | string | what worker processes tell of themselves |
| `{ns}:listing:state:{state}` | sorted set | with `listing`: the ids of messages, by when they came to it, or are due |
| `{ns}:listing:queue:{queue}` | sorted set | the same of those that wait in a queue |

One script replaces any of the strings if its first line is as it was seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, repeat
from random import randrange
from time import monotonic
from typing import Any, Final

from taskbridge.brokers.base import RedisCommand, Remark
from taskbridge.brokers.redis import keys as broker_keys
from taskbridge.brokers.redis.client import Request, Script, Word, client_of, pack
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable
from taskbridge.locks import PerProcess
from taskbridge.logs import logger
from taskbridge.message import is_id
from taskbridge.settings import Settings
from taskbridge.stores.backend import (
    ABSENT,
    COUNTED,
    LISTED,
    Backend,
    Commit,
    Counted,
    Counts,
    Listed,
    ListKind,
    Page,
    PartlyCommitted,
    Rank,
    Tally,
    Write,
)
from taskbridge.stores.base import Store
from taskbridge.stores.redis.fire_and_forget import FireAndForget
from taskbridge.stores.redis.notifications import RedisNotifications

_log = logger("taskbridge.store")

_SWAP: Final = Script(__file__, "write", "swap")
_MAKE: Final = Script(__file__, "make")
_MAKE_MANY: Final = Script(__file__, "make_many")
_COMMIT: Final = Script(__file__, "write", "group", "uncount", "commit")
_TALLY: Final = Script(__file__, "write", "group", "tally")
_NOTE_SENT: Final = Script(__file__, "note_sent")
_END_GROUPS: Final = Script(__file__, "group", "end_groups")
_TRY: Final = Script(__file__, "try")
_SINCE: Final = Script(__file__, "since")
_LOOK: Final = Script(broker_keys.__file__, "look")

_MOST_BYTES: Final = 1 << 20  # how many bytes of entries are read, or of messages given to one script, about
_MOST_WORDS: Final = 3900  # how many are given to one script: it unpacks up to twice as many, and Lua less than 8,000
_PAGE: Final = 100  # of how many members the ends are in one hash: see group.lua
_WAYS: Final[Mapping[str, Counted]] = {"": "done", **{each: each for each in COUNTED}}
_PUSHES: Final = ("LPUSH", "RPUSH", "HSET")  # commands of a key and any number of items
_TRIMS_AFTER: Final = 100  # how many messages are listed between two times that lists are shortened
_SAME_TIME: Final = 100  # how many of the time of the page before are read with a page at once
_LEFT: Final = 2  # what the script replies of a commit that has to be done alone
_SOON_S: Final = 2.0
"""Where the server may change: how long a write may take that nobody waits for, and the pause after one that failed."""

_ODD_BYTES: Final = "surrogateescape"  # how bytes come through that somebody else has written, and that are no text


class RedisBackend(Backend):
    """Keeps texts in a Redis database."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._client = client_of(url, settings.namespace)
        self._replicas = settings.wait_replicas
        self._unanswered = FireAndForget(settings, self._client.place)
        self._prefix = f"{settings.namespace}:"
        self._channels = f"{self._prefix}told:"
        self._cancelled = f"{self._prefix}cancelled"
        self._outbox = f"{self._prefix}outbox", f"{self._prefix}outbox:entries"
        self._lists = f"{self._prefix}listing:"
        self._untrimmed, self._grown = randrange(_TRIMS_AFTER), set[str]()  # some processes end before they list many
        place, wait_s = self._client.place, settings.send_timeout_s
        self._notifications = PerProcess(lambda: RedisNotifications(wait_s, place, self._channels))
        self._silent_until = 0.0
        self._tails: dict[float, bytes] = {}

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        if not keys:
            return []
        [found] = self._ask(timeout_s, [("MGET", *(self._prefix + key for key in keys))])
        return [None if text is None else text.decode(errors=_ODD_BYTES) for text in found]

    def create(self, entries: Sequence[tuple[str, str, float | None]], *, timeout_s: float) -> None:
        self._ask(timeout_s, *([self.creating(*each)] for each in entries))

    def creating(self, key: str, text: str, kept_s: float | None) -> RedisCommand:
        life = () if kept_s is None else ("PX", _milliseconds(kept_s))
        return "SET", self._prefix + key, text, "NX", *life

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        replicas = self._replicas if any(each.cancels for each in writes) else 0
        done = self._ask(timeout_s, *([self._swapping(each)] for each in writes), replicas=replicas)
        return [each == 1 for each in done]

    def _swapping(self, write: Write) -> RedisCommand:
        """Return the command that does a write."""
        keys: tuple[str, ...] = self._prefix + write.key, self._channels + write.key
        args = _words(write)
        if write.cancels:
            keys += self._cancelled, f"{self._cancelled}:until"
        return _SWAP(keys, *(args if write.cancels else args[:4]))

    def commit(self, commits: Sequence[Commit], *, timeout_s: float) -> list[bool]:
        if len(commits) == 1:
            return [self._ask(timeout_s, [self._committing(commits[0])], replicas=self._replicas)[0] == 1]
        deadline, outcomes = monotonic() + timeout_s, list[Any]()
        calls = self._together(commits)
        replies = self._client.execute_all([[call] for call, _ in calls], timeout_s=timeout_s, replicas=self._replicas)
        for (_, count), reply in zip(calls, replies, strict=True):
            outcomes += map(int, reply.decode()) if isinstance(reply, bytes) else [reply] * count
        left = {index: [self._committing(commits[index])] for index, each in enumerate(outcomes) if each == _LEFT}
        left_s = deadline - monotonic()
        replies = self._client.execute_all([*left.values()], timeout_s=left_s, replicas=self._replicas)
        for index, reply in zip(left, replies, strict=True):
            outcomes[index] = reply
        problems = [each for each in outcomes if isinstance(each, BrokerUnavailable)]
        if problems:
            worst = max(problems, key=lambda each: each.maybe_taken)
            done = [None if isinstance(each, BrokerUnavailable) else each == 1 for each in outcomes]
            raise PartlyCommitted(worst, done) from worst.__cause__
        return [each == 1 for each in outcomes]

    def _committing(self, commit: Commit) -> RedisCommand:
        """Return the command that does a commit; most make texts and send a message, for which a few words suffice."""
        return self._committing_as(commit, _shape(commit))

    def _committing_as(self, commit: Commit, shape: list[Any] | None) -> RedisCommand:
        if shape is None:
            fixed = (*self._outbox, self._cancelled, f"{self._cancelled}:until")
            return _COMMIT(fixed, self._prefix, self._channels, *_words_of(commit))
        words: list[Word] = []
        for write in commit.writes:
            words += write.text or "", _milliseconds(write.kept_s)
        for command in commit.commands:
            words.append(len(command))
            words += command
        return _MAKE([self._prefix + write.key for write in commit.writes], *words)

    def _together(self, commits: Sequence[Commit]) -> list[tuple[RedisCommand, int]]:
        """Return commands that do commits, in order, and how many each does; one does many that are alike."""
        calls: list[tuple[RedisCommand, int]] = []
        for shape, run in groupby(commits, _shape):
            if shape is None:
                calls += [(self._committing_as(each, None), 1) for each in run]
                continue
            for alike, words in _chunks(run):
                if len(alike) == 1:
                    calls.append((self._committing_as(alike[0], shape), 1))
                    continue
                keys = [self._prefix + write.key for commit in alike for write in commit.writes]
                are_distinct = int(len({*keys}) == len(keys))
                head = are_distinct, len(shape[0]), *map(_milliseconds, shape[0]), *shape[1:]
                calls.append((_MAKE_MANY(keys, *head, *words), len(alike)))
        return calls

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        look = _LOOK(self._outbox, _milliseconds(lease_s), 0, most, _MOST_BYTES)
        [(_, *found)] = self._ask(timeout_s, [look])
        texts = (each.decode(errors=_ODD_BYTES) for each in found)
        return [(key, text) for key, _, text in zip(texts, texts, texts, strict=True)]

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        outbox, entries = self._outbox
        names = [each.encode(errors=_ODD_BYTES) for each in ids]
        # In this order: an entry without a text is forgotten by whoever looks, a text without an entry is not.
        # Tried also where a mark could not be written just before: whoever removes has just published what these hold.
        self._ask_soon([("HDEL", entries, *names)], [("ZREM", outbox, *names)], pauses=False)

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        self._ask(timeout_s, [("SET", self._prefix + key, text, "PX", _milliseconds(kept_s))])

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        if self._client.place.may_move:
            self._ask_soon([("SET", self._prefix + key, text, "PX", _milliseconds(kept_s))])
            return
        tail = self._tails.get(kept_s)  # there are two: of starts, and of ends
        if tail is None:
            tail = self._tails[kept_s] = pack([("PX", _milliseconds(kept_s))]).partition(b"\r\n")[2]
        name, value = (self._prefix + key).encode(), text.encode()
        words = len(name), name, len(value), value, tail
        self._unanswered.send(b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % words)

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        self._ask(timeout_s, [("DEL", *(self._prefix + key for key in keys))])

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        after = f"({cursor}" if cursor else "-inf"
        [found] = self._ask(timeout_s, [_SINCE([self._cancelled], after, most)])
        return found[-1].decode() if found else cursor, [life.decode(errors="replace") for life in found[::2]]

    def watch(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        return self._notifications.get().watch(key, wake)

    def why_polled(self) -> str:
        """Return why Redis does not let this process listen."""
        return self._notifications.get().refusal

    def list_soon(self, entries: Sequence[Listed]) -> None:
        self._ask_soon(*([each] for each in self.listing(entries)))

    def listing(self, entries: Sequence[Listed]) -> Sequence[RedisCommand]:
        removed, added = defaultdict[str, list[Word]](list), defaultdict[str, list[Word]](list)
        for each in entries:
            for state in each.formers:
                removed[f"state:{state}"].append(each.id)
            if each.freed and each.freed != each.queue:
                removed[f"queue:{each.freed}"].append(each.id)
            if each.state is not None:
                added[f"state:{each.state}"] += each.at, each.id
            if each.queue is not None:
                added[f"queue:{each.queue}"] += each.at, each.id
        commands: list[RedisCommand] = [("ZREM", self._lists + name, *ids) for name, ids in removed.items()]
        commands += [("ZADD", self._lists + name, *words) for name, words in added.items()]
        self._grown.update(added)
        self._untrimmed += len(entries)
        if self._untrimmed >= _TRIMS_AFTER:
            grown, self._grown, self._untrimmed = self._grown, set(), 0
            for name in sorted(grown):  # of a state the latest stay, of a queue those that have waited longest
                first, last = (0, -LISTED - 1) if name.startswith("state:") else (LISTED, -1)
                commands.append(("ZREMRANGEBYRANK", self._lists + name, first, last))
        return commands

    def listed(self, kind: ListKind, names: Sequence[str], *, before: Rank, most: int, timeout_s: float) -> list[Page]:
        bounds = ("ZREVRANGEBYSCORE", repr(before[0]), "-inf") if kind == "state" else ("ZRANGEBYSCORE", "-inf", "+inf")
        word, low, high = bounds
        deadline, first, count = monotonic() + timeout_s, 0, most + _SAME_TIME
        found, unread = {name: dict[str, float]() for name in names}, [*names]
        while unread:  # again if it was too little, without those of the same time that the page before has shown
            end = "WITHSCORES", "LIMIT", first, count
            commands = ((word, f"{self._lists}{kind}:{name}", low, high, *end) for name in unread)
            pages = dict(zip(unread, self._ask(deadline - monotonic(), *([each] for each in commands)), strict=True))
            for name, page in pages.items():
                for raw, at in zip(page[::2], map(float, page[1::2]), strict=True):
                    key = raw.decode(errors=_ODD_BYTES)
                    if (at, key) < before and is_id(key):
                        found[name][key] = at
            unread = [name for name, page in pages.items() if len(page) == 2 * count and len(found[name]) < most]
            first, count = first + count, 2 * count
        return [[*each.items()][:most] for each in found.values()]

    def tally(self, write: Write, tally: Tally, *, timeout_s: float) -> bool | None:
        keys = self._prefix + write.key, self._channels + write.key, self._cancelled, f"{self._cancelled}:until"
        entry = tally.entry.id, round(tally.entry.in_s * 1000), tally.entry.text or "", tally.posts
        how = "" if tally.ended == "done" else tally.ended
        member = tally.total, tally.index, tally.ended, how if tally.text is None else f"{how}\n{tally.text}"
        group, page = self._prefix + tally.key, f"{self._prefix}{tally.key}:{tally.index // _PAGE}"
        call = _TALLY([*keys, *self._outbox, group, page], *_words(write), *entry, *member)
        [reply] = self._ask(timeout_s, [call], replicas=self._replicas)
        return None if reply is None else reply == 1

    def counts_of(self, keys: Sequence[str], *, timeout_s: float) -> list[Counts]:
        words = "HMGET", "ended", *COUNTED[1:], "sent"
        found = self._ask(timeout_s, *([_TRY([self._prefix + key], *words)] for key in keys))
        counts: list[Counts] = []
        for reply in found:
            numbers = [int(each) if each and each.isdigit() else 0 for each in reply or [None] * 5]
            ended, dead, discarded, cancelled, sent = numbers
            counts.append(Counts(ended - dead - discarded - cancelled, dead, discarded, cancelled, sent))
        return counts

    def members(self, key: str, first: int, count: int, *, timeout_s: float) -> list[tuple[Counted, str | None] | None]:
        key, end = self._prefix + key, first + count
        starts = range(first - first % _PAGE, end, _PAGE)
        pages = [range(max(first, start), min(end, start + _PAGE)) for start in starts]
        asked = [_TRY([f"{key}:{page[0] // _PAGE}"], "HMGET", *page) for page in pages]
        [(bits, *found)] = self._ask(timeout_s, [_TRY([f"{key}:ended"], "GETRANGE", first // 8, end // 8), *asked])
        digits = "".join(f"{each:08b}" for each in bits or b"")[first % 8 :].ljust(count, "0")
        kept = chain.from_iterable(each or repeat(None, len(page)) for each, page in zip(found, pages, strict=True))
        return [_member(raw) if digit == "1" else None for digit, raw in zip(digits, kept, strict=False)]

    def first_open(self, key: str, total: int, *, timeout_s: float) -> int | None:
        [found] = self._ask(timeout_s, [_TRY([f"{self._prefix}{key}:ended"], "BITPOS", 0)])
        return (found or 0) if (found or 0) < total else None

    def note_sent(self, key: str, sent: int, *, timeout_s: float) -> None:
        self._ask(timeout_s, [_NOTE_SENT([self._prefix + key], sent)])

    def end_groups(self, keys: Sequence[str], *, kept_s: float | None, timeout_s: float) -> None:
        if keys:
            self._ask(timeout_s, [_END_GROUPS([self._prefix + key for key in keys], _milliseconds(kept_s))])

    def count_listed(self, names: Sequence[str], *, timeout_s: float) -> list[int]:
        asked = ([_TRY([f"{self._lists}state:{name}"], "ZCARD")] for name in names)
        return [each or 0 for each in self._ask(timeout_s, *asked)]

    def ping(self, *, timeout_s: float) -> None:
        self._ask(timeout_s, [("PING",)])

    def examine(self, *, timeout_s: float) -> Iterable[Remark]:
        from taskbridge.brokers.redis.examination import examine  # here, for nothing but a command needs it

        return examine(self._client, self._prefix.removesuffix(":"), timeout_s=timeout_s)

    def time(self, *, timeout_s: float) -> float:
        [(seconds, microseconds)] = self._ask(timeout_s, [("TIME",)])
        return int(seconds) + int(microseconds) / 1e6

    def close(self) -> None:
        self._notifications.close()
        self._unanswered.close()
        self._client.close()

    def _ask_soon(self, *requests: Request, pauses: bool = True) -> None:
        """Carry requests out and wait for nothing, unless they may belong to another server.

        Then, those of which there are many are dropped for a pause after a failure: each would wait as long.
        """
        if not self._client.place.may_move:
            self._unanswered.send(b"".join(pack(each) for each in requests))
            return
        if pauses and monotonic() < self._silent_until:
            return
        try:
            self._ask(_SOON_S, *requests, once=True)
        except StoreUnavailable as exc:
            self._silent_until = monotonic() + _SOON_S
            _log.warning("the store can't be written to: %s", exc.problem)

    def _ask(self, timeout_s: float, *requests: Request, replicas: int = 0, once: bool = False) -> list[Any]:
        """Carry requests out, pipelined, and return the replies; raises if one of them was not carried out."""
        try:
            if len(requests) == 1:
                return [self._client.execute(requests[0], timeout_s=timeout_s, replicas=replicas, once=once)]
            replies = self._client.execute_all(requests, timeout_s=timeout_s, replicas=replicas, once=once)
            for reply in replies:
                if isinstance(reply, BrokerUnavailable):
                    maybe_taken = any(not isinstance(each, BrokerUnavailable) or each.maybe_taken for each in replies)
                    raise BrokerUnavailable(reply.problem, maybe_taken=maybe_taken) from reply.__cause__
            return replies
        except BrokerUnavailable as exc:  # the store is named, for it may be beside another broker
            raise StoreUnavailable(exc.problem, maybe_taken=exc.maybe_taken) from exc.__cause__


def _words(write: Write) -> tuple[Word, ...]:
    """Return what the scripts are told of a write, beside its key."""
    seen, text = write.seen.encode(errors=_ODD_BYTES), "" if write.text is None else write.text
    cancelling = write.cancels, _milliseconds(write.cancellation_kept_s)
    return seen, text, _milliseconds(write.kept_s), int(write.tells), *cancelling


def _shape(commit: Commit) -> list[Any] | None:
    """Return what those commits have in common that one script can do together; None if it can't do this one."""
    shape: list[Any] = [[write.kept_s for write in commit.writes], len(commit.commands)]
    for write in commit.writes:
        if write.seen != ABSENT or write.text is None or write.tells:
            return None
    for command in commit.commands:
        if command[0] not in _PUSHES:
            return None
        shape += command[0], command[1], len(command) - 2
    return None if commit.entries or commit.uncounts or not commit.writes else shape


def _member(raw: bytes | None) -> tuple[Counted, str | None]:
    """Return how a member has ended, and what is kept of that; see `lua/group.lua`."""
    how, mark, rest = (raw or b"").decode(errors=_ODD_BYTES).partition("\n")
    return _WAYS.get(how, "dead"), rest if mark else None


def _chunks(commits: Iterable[Commit]) -> Iterator[tuple[list[Commit], list[Any]]]:
    """Yield commits that are alike, as many together as one script is given at once, and what differs in them.

    That is of each commit its texts, and the items of its commands.
    """
    chunk, words, size = list[Commit](), list[Any](), 0
    for commit in commits:
        own, own_size = list[Any](write.text for write in commit.writes), 0
        for command in commit.commands:
            own += command[2:]
            last = command[-1]  # where engines put the body
            own_size += len(last) if isinstance(last, (str, bytes)) else 0
        if chunk and (size + own_size > _MOST_BYTES or len(words) + len(own) > _MOST_WORDS):
            yield chunk, words
            chunk, words, size = [], [], 0
        chunk.append(commit)
        words += own
        size += own_size
    yield chunk, words


def _words_of(commit: Commit) -> list[Word]:
    """Return what the script is told of a commit."""
    words: list[Word] = [len(commit.writes)]
    for write in commit.writes:
        words += write.key, *_words(write)
    words.append(len(commit.entries))
    for entry in commit.entries:
        words += entry.id, round(entry.in_s * 1000), entry.text or ""
    words.append(len(commit.uncounts))
    for member in commit.uncounts:
        words += member
    for command in commit.commands:
        words += len(command), *command
    return words


def _milliseconds(duration_s: float | None) -> int | str:
    """Return a duration as Redis takes it: at least 1; empty is for ever."""
    return "" if duration_s is None else max(1, round(duration_s * 1000))


def open_store(settings: Settings, url: str) -> Store:
    """Return a store, which connects when it is first used."""
    return Store(settings, RedisBackend(settings, url))
