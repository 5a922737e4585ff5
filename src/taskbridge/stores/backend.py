"""What a kind of store does by itself. `Marks`, `Records` and `Ticks` are written once on top of it.

A backend keeps texts by key for a bridge's namespace: the records of messages, attempt marks, living workers and
schedules. The first line of a text is its head; by it a change is noticed. A backend decides nothing: it reads, and it
replaces what is still as it was read, in one step. So whoever writes reads, decides by a pure function, and tries again
if somebody else has been quicker.

Threads share a backend; a forked process makes its own connections. Unless it says otherwise, a call raises
`StoreUnavailable` if it isn't done within `timeout_s`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, cast

from taskbridge import codec
from taskbridge.brokers.base import RedisCommand, Remark
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable

NEW: Final = "0"
"""The head of a text that counts its versions and has not been changed since it was made."""

ABSENT: Final = "\n"
"""What a write has seen that makes a text where there must be none, not even one as it was made: no head is this."""

_LONGEST_NUMBER: Final = 10


def next_of(head: str) -> int:
    """Return the number after the one in a head, which anybody may have written: never the same."""
    return int(head) + 1 if head.isdecimal() and len(head) < _LONGEST_NUMBER else 1


@dataclass(slots=True)
class Write:
    """A text that is to replace another one.

    Attributes:
        key: Its key.
        seen: The head of the text that was decided about; `NEW` is also where there is none, `ABSENT` only there.
        text: The new one; None is to remove it.
        kept_s: For how many seconds it is kept; None is for ever.
        tells: Whether whoever watches the key is woken.
        cancels: The life that this cancels (`Message.life`); empty if none.
        cancellation_kept_s: For how many seconds `cancelled_since` tells of that; None is for ever.
    """

    key: str
    seen: str
    text: str | None
    kept_s: float | None = None
    tells: bool = False
    cancels: str = ""
    cancellation_kept_s: float | None = None


@dataclass(slots=True)
class Entry:
    """What an outbox holds: something that is decided, and perhaps not published yet.

    Attributes:
        id: The message's, or of a replay `Held.key`.
        text: What `taskbridge.outbox` makes of the message. None changes only when an entry is due, if it is there.
        in_s: In how many seconds it is due: whoever has put it there publishes it until then, and anybody after that.
    """

    id: str
    text: str | None
    in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Listed:
    """Where a message stands in the lists of messages, which are a hint: its record says what it is doing.

    Attributes:
        id: The message's.
        state: The state in whose list it is; None takes it out of the lists of `formers` and `freed`.
        at: Since when it is in this state, or when it is due, in seconds since the epoch: lists are in this order.
        queue: The queue in which it waits, for whose list it is, too; None if it waits in none.
        formers: The states in whose lists it may be until now.
        freed: The queue in whose list it may be until now.
        kept_s: For how many seconds it is listed at most; None is for ever.
    """

    id: str
    state: str | None = None
    at: float = 0.0
    queue: str | None = None
    formers: tuple[str, ...] = ()
    freed: str = ""
    kept_s: float | None = None


ListKind = Literal["state", "queue"]
"""What the lists of messages are of."""

Rank = tuple[float, str]
"""A message's place in a list: its time, and then its id."""

Page = list[tuple[str, float]]
"""Ids of messages in a list, and their times."""

LISTED: Final = 100_000
"""How many messages a list has at most where they don't vanish with their records: of a state, the latest ones."""


@dataclass(slots=True)
class Commit:
    """What is done in one step, all of it or nothing: it is done if each of its writes may be.

    Attributes:
        writes: The texts that are to be replaced, each another one.
        entries: What is put in the outbox; an entry of the same id is replaced.
        commands: For a store in the database of a Redis broker: what publishes or parks a message (`commit.lua`).
        uncounts: Members of groups, each by its group's key and its index, that are counted as ended no more.
    """

    writes: Sequence[Write]
    entries: Sequence[Entry] = ()
    commands: Sequence[RedisCommand] = ()
    uncounts: Sequence[tuple[str, int]] = ()


Counted = Literal["done", "dead", "discarded", "cancelled"]
"""How a member of a group has ended, as it is counted."""

COUNTED: Final[tuple[Counted, ...]] = ("done", "dead", "discarded", "cancelled")
"""All of these, in the order of `Counts`."""


@dataclass(frozen=True, slots=True)
class Tally:
    """A member of a group that has ended, to be counted once.

    Attributes:
        key: The group's key.
        total: How many members the group has.
        index: Which member it is; 0 is the first.
        ended: How it has ended.
        text: What is kept of its end, for `members`; it is kept in any case of one that is not `done`.
        entry: What is put in the outbox in the same step if `posts` says so, unless an entry of this id is due earlier.
        posts: When: as the last member has ended; then and as one has ended badly; always.
    """

    key: str
    total: int
    index: int
    ended: Counted
    text: str | None
    entry: Entry
    posts: Literal["last", "bad", "always"]

    def is_posted(self, *, all_ended: bool) -> bool:
        """Return whether the entry is put in the outbox."""
        return all_ended or self.posts == "always" or (self.posts == "bad" and self.ended != "done")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many members of a group have ended, and how.

    Attributes:
        done: How many returned.
        dead: How many are dead.
        discarded: How many were discarded.
        cancelled: How many were cancelled.
        sent: Up to which member they were surely published, as `note_sent` was told.
    """

    done: int = 0
    dead: int = 0
    discarded: int = 0
    cancelled: int = 0
    sent: int = 0

    @property
    def ended(self) -> int:
        """How many have ended."""
        return self.done + self.bad

    @property
    def bad(self) -> int:
        """How many have ended badly."""
        return self.dead + self.discarded + self.cancelled


class PartlyCommitted(StoreUnavailable):
    """Not all of several commits were carried out.

    `done` says of each whether it was done; None is one that was refused, or of which nobody knows (`maybe_taken`).
    """

    def __init__(self, cause: BrokerUnavailable, done: Sequence[bool | None]) -> None:
        super().__init__(cause.problem, maybe_taken=cause.maybe_taken)
        self.done: Sequence[bool | None] = done


def head_of(text: str | None) -> str:
    """Return what a write has to have seen, so that it replaces this text; None is where there is none."""
    return NEW if text is None else text.partition("\n")[0]


def text_of_row(row: Mapping[str, object], tail: str) -> str:
    """Return a row as a text: its version, itself as JSON, and its field `tail`, if there is one, which is JSON."""
    plain = dict(row)
    version, last = plain.pop("version", 0), plain.pop(tail, None)
    text = f"{version}\n{codec.to_json(plain)}"
    return text if last is None else f"{text}\n{last}"


def row_of_text(text: str | None, tail: str) -> dict[str, Any] | None:
    """Return the row of such a text; None if there is no text, or it can't be read."""
    if text is None:
        return None
    try:
        version, plain, *last = text.split("\n", 2)
        row: Any = codec.from_json(plain)
        row["version"] = int(version)
        if last:
            row[tail] = last[0]
    except (ValueError, TypeError, RecursionError):  # anybody may have written it
        return None
    return cast("dict[str, Any]", row)


class Outbox(Protocol):
    """What is looked into for what is due: a store's backend, or what an application has in its own database.

    Calls raise `BrokerUnavailable` if they fail.
    """

    @abstractmethod
    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        """Return ids and texts of entries that are due; each is due again after `lease_s`.

        Of any number that ask at once, one is told of an entry.
        """

    @abstractmethod
    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove entries, perhaps after this returns; if this process's end undoes it, they are published again."""

    @abstractmethod
    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Have entries be due at once: nobody here can publish them."""


class Backend(Outbox, ABC):
    """The texts of a bridge's namespace, and its outbox.

    Attributes:
        is_shared: Whether other processes see what is kept, and it outlives this one.
    """

    is_shared: ClassVar[bool] = True

    @abstractmethod
    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        """Return the text of each key; None where there is none, or its time is over by the store's clock."""

    @abstractmethod
    def create(self, entries: Sequence[tuple[str, str, float | None]], *, timeout_s: float) -> None:
        """Keep texts by key, each for so many seconds (None: for ever), unless there is one."""

    def creating(self, key: str, text: str, kept_s: float | None) -> RedisCommand | None:
        """Return one command that does what `create` does, if this is Redis.

        A Redis broker with the same database sends it along with the message, in one transaction.
        """
        return None

    @abstractmethod
    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        """Replace texts, each if it still has the head that was seen, and return of each whether it had.

        A write that cancels is done in one step with telling of it. A write counts even if this process, or the store's
        server if it keeps anything then, ends right after this returns.
        """

    @abstractmethod
    def commit(self, commits: Sequence[Commit], *, timeout_s: float) -> list[bool]:
        """Do each of these wholly or not at all, in order, and return of each whether it was done.

        Raises:
            PartlyCommitted: Each is done by itself, and some were not.
            StoreUnavailable: None was done; or all of them may have been, if it is `maybe_taken`.
        """

    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Have entries of the outbox be due at once, those that are there."""
        self.commit([Commit((), [Entry(each, None) for each in ids])], timeout_s=timeout_s)

    @abstractmethod
    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        """Keep a text for so many seconds, whatever was there."""

    @abstractmethod
    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        """Do as `put`, waiting for little or nothing, and raising nothing; it outlives this process's end."""

    @abstractmethod
    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        """Remove texts; returns when they are gone."""

    @abstractmethod
    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the first lives that were cancelled after a cursor, and the next cursor; see `Records`."""

    @abstractmethod
    def watch(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each write of a key that tells; see `Records.watch`."""

    def why_polled(self) -> str:
        """Return why those who watch are not told of writes, but look now and then; empty if they are told."""
        return ""

    def purge(self, *, timeout_s: float) -> bool:
        """Remove some texts whose time is over, if the store doesn't by itself; return whether there may be more."""
        return False

    @abstractmethod
    def list_soon(self, entries: Sequence[Listed]) -> None:
        """Put messages in their lists, and take them out of others, waiting for little or nothing; raises nothing."""

    def listing(self, entries: Sequence[Listed]) -> Sequence[RedisCommand]:
        """Return commands that do what `list_soon` does, if this is Redis; see `creating`."""
        return ()

    @abstractmethod
    def listed(self, kind: ListKind, names: Sequence[str], *, before: Rank, most: int, timeout_s: float) -> list[Page]:
        """Return ids and times of the first messages in the lists of these states, or queues.

        Those of states are the latest ones before a time and an id, the latest first; those of queues are the earliest
        ones of all, the earliest first.
        """

    # Groups: each of many members is counted once as it ends, whoever counts it at the same time (rules W)

    @abstractmethod
    def tally(self, write: Write, tally: Tally, *, timeout_s: float) -> bool | None:
        """Do a write and count a member of a group, both in one step; return whether that is when its entry is posted.

        None is that the write may not be done: then nothing is. Of two that are the last ones at the same time, one
        at least finds that all have ended.
        """

    @abstractmethod
    def counts_of(self, keys: Sequence[str], *, timeout_s: float) -> list[Counts]:
        """Return the counts of groups; all 0 of one that is not known. It costs the same for any number of members."""

    @abstractmethod
    def members(self, key: str, first: int, count: int, *, timeout_s: float) -> list[tuple[Counted, str | None] | None]:
        """Return how members from an index on have ended, and what is kept of that; None of one that has not."""

    @abstractmethod
    def first_open(self, key: str, total: int, *, timeout_s: float) -> int | None:
        """Return the index of the first member that has not ended; None if all have."""

    @abstractmethod
    def note_sent(self, key: str, sent: int, *, timeout_s: float) -> None:
        """Note that members up to an index (which is left out) are published; it never falls."""

    @abstractmethod
    def end_groups(self, keys: Sequence[str], *, kept_s: float | None, timeout_s: float) -> None:
        """Forget groups after so many seconds; None is never, and also takes back what was said before."""

    @abstractmethod
    def count_listed(self, names: Sequence[str], *, timeout_s: float) -> list[int]:
        """Return how many messages are in the lists of these states."""

    @abstractmethod
    def ping(self, *, timeout_s: float) -> None:
        """Return if the store answers and can be used; `StoreNotReady` if it was not made ready."""

    def examine(self, *, timeout_s: float) -> Iterable[Remark]:
        """Return what of the server's settings puts at risk what is kept, as `ExaminedBroker.examine` does."""
        return ()

    def time(self, *, timeout_s: float) -> float:
        """Return the time by the store's clock, in seconds since the epoch; this machine's, if it has none."""
        return time.time()

    @abstractmethod
    def close(self) -> None:
        """Close the connections; the next call makes new ones."""


class BackendWithTables(Backend):
    """A backend that has to be made ready; once, and by each release that needs it otherwise."""

    @abstractmethod
    def init(self, *, timeout_s: float) -> tuple[int, int]:
        """Make it ready, and return the versions of its tables before and after; 0 is none.

        It may be done again, and by several processes at once. Data stays. Raises `StoreNotReady` if a later release
        has made it.
        """

    @abstractmethod
    def clear(self, *, timeout_s: float) -> None:
        """Remove all that the namespace has stored."""
