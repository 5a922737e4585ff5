"""Who holds unique keys and chosen ids, as messages are sent and replayed (rules U).

A text of the key points to a message, which holds the key as long as its record is there and not final: so nothing has
to free a key but what ends the record anyway. What is to be done is decided about texts that were read, and done in one
commit if they are as they were; else it is decided anew. Of any number of senders at once, one makes the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from taskbridge.brokers.base import RedisCommand
from taskbridge.exceptions import StoreUnavailable
from taskbridge.message import Message
from taskbridge.stores.backend import ABSENT, Backend, Commit, Entry, PartlyCommitted, Write, head_of
from taskbridge.stores.entries import Held, Kind, held
from taskbridge.stores.records import Records, head_of_row, key_of, unpacked
from taskbridge.stores.states import FINAL, Row, Status, status_of
from taskbridge.stores.transitions import cancelled, created, moved, pointed_to, pointer_key, pointer_to
from taskbridge.unique import Unique

OWN_S: Final = 0.5
"""For how long an entry of the outbox is left to who has made it, and publishes it."""

_SWEEP_S: Final = 5.0
_WAIT_S: Final = 60.0
"""How soon what follows is looked at first, and again, in case the message before is gone without an end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a message that was to be sent.

    Attributes:
        holder: The message that holds the key or the id; None if this one does.
        is_other: Whether the id is that of another call.
        waits: Whether it starts when the one before it ends: it is not to be published.
    """

    holder: Status | None = None
    is_other: bool = False
    waits: bool = False


@dataclass(slots=True)
class Intent:
    """A message that is to be sent, unless another one holds its key or id.

    Attributes:
        message: The message.
        delay_s: Its delay.
        unique: What its task says of keys; None if only its id is to be free.
        commands: What publishes it, in the database of the store; empty if the outbox has it until it is published.
    """

    message: Message
    delay_s: float
    unique: Unique | None
    commands: Sequence[RedisCommand] = ()

    def entry(self, kind: Kind = "sent") -> Held:
        """Return what the outbox holds of it."""
        return held(self.message, self.delay_s, kind)


_NEW: Final = Outcome()

_Plan = tuple[Commit | None, Outcome]
"""What is to be done about an intent, and what has become of it then."""


class Claims:
    """The keys and ids of a bridge. Threads share it.

    A call raises `StoreUnavailable` if the store does not answer in time, unless it says otherwise.
    """

    intent: Final = Intent

    def __init__(self, records: Records, backend: Backend) -> None:
        self._records = records
        self._backend = backend

    def send_new(self, intent: Intent, *, timeout_s: float) -> bool:
        """Do as `send`, if key and id are free, as they mostly are; else do nothing, and return False."""
        self._list([intent])
        return self._backend.commit([self._claiming(intent, None, None)[0]], timeout_s=timeout_s)[0]

    def send(
        self, intents: Sequence[Intent], *, timeout_s: float, are_held: bool = False
    ) -> tuple[dict[int, Outcome], StoreUnavailable | None]:
        """Claim keys and ids, make records, and publish messages or put them in the outbox; of each, all or nothing.

        Keys or ids that `are_held` were found so by `send_new`.

        Returns:
            What has become of each intent, by its index, and what kept the others from being decided.
        """
        deadline = monotonic() + timeout_s
        outcomes: dict[int, Outcome] = {}
        error: StoreUnavailable | None = None
        plans: dict[int, _Plan]
        try:
            if are_held:
                plans = self._plans(dict(enumerate(intents)), deadline)
            else:
                self._list(intents)
                plans = {index: self._claiming(intent, None, None) for index, intent in enumerate(intents)}
            while plans:
                outcomes |= {index: outcome for index, (commit, outcome) in plans.items() if commit is None}
                commits = {index: commit for index, (commit, _) in plans.items() if commit is not None}
                done: Sequence[bool | None]
                try:
                    done = (
                        self._backend.commit([*commits.values()], timeout_s=deadline - monotonic()) if commits else ()
                    )
                except PartlyCommitted as exc:
                    done, error = exc.done, exc if error is None or exc.maybe_taken else error
                outcomes |= {index: plans[index][1] for index, is_done in zip(commits, done, strict=True) if is_done}
                failed = {index: intents[index] for index, each in zip(commits, done, strict=True) if each is False}
                if failed and monotonic() >= deadline:
                    raise StoreUnavailable("others send messages with the same key")
                plans = self._plans(failed, deadline) if failed else {}
        except StoreUnavailable as exc:
            error = exc if error is None or exc.maybe_taken else error
        return outcomes, error

    def _list(self, intents: Sequence[Intent]) -> None:
        """List messages before they are sent, all at once; lists are a hint, and whoever reads one looks at records."""
        self._records.list_sent([(each.message, each.delay_s) for each in intents])

    def _plans(self, intents: Mapping[int, Intent], deadline: float) -> dict[int, _Plan]:
        """Return what is to be done about intents whose keys or ids are not free, or were not."""
        messages = {index: intent.message for index, intent in intents.items()}
        keys = list({_key(message) for message in messages.values() if message.unique})
        texts = dict(zip(keys, self._backend.get(keys, timeout_s=deadline - monotonic()), strict=True))
        holders = [each for text in texts.values() for each in (pointed_to(text)[0], pointed_to(text)[2])]
        found = self._records_of([*(message.id for message in messages.values()), *holders], deadline)
        return {index: self._plan(intent, texts.get(_key(messages[index])), found) for index, intent in intents.items()}

    def _records_of(self, ids: Iterable[str], deadline: float) -> dict[str, str | None]:
        """Return the texts of messages' records, by id; an empty one has none."""
        known = sorted({*ids} - {""})
        texts = self._backend.get([key_of(each) for each in known], timeout_s=deadline - monotonic())
        return {"": None, **dict(zip(known, texts, strict=True))}

    def _plan(self, intent: Intent, pointer: str | None, found: Mapping[str, str | None]) -> _Plan:
        message, unique, text = intent.message, intent.unique, found[intent.message.id]
        own = unpacked(text)
        if own is not None:
            is_other = own["task"] != message.task or own.get("digest", "") not in ("", message.digest)
            return None, Outcome(holder=status_of(message.id, own), is_other=is_other)
        holder, replays, follower = pointed_to(pointer)
        row, next_row = _live(found[holder], replays), _live(found[follower], 0)
        if row is None:
            holder, row, follower, next_row = follower, next_row, "", None
        if unique is None or row is None or pointer is None:
            return self._claiming(intent, pointer, text)
        if unique.debounce_s is not None and (plan := self._moving(intent, unique, holder, row)) is not None:
            return plan
        if unique.on_conflict == "replace" and row["state"] != "running":
            ended = cancelled(row, at=message.enqueued_at)
            assert ended is not None, "it is not final"
            write = self._records.replacing(holder, row, head_of_row(row), ended, cancels=True)
            return self._claiming(intent, pointer, text, write)
        if unique.on_conflict == "after":
            then = None if next_row is None else (follower, next_row)
            return self._following(intent, pointer, text, (holder, row), then)
        return None, Outcome(holder=status_of(holder, row))

    def _claiming(self, intent: Intent, pointer: str | None, text: str | None, *more: Write) -> tuple[Commit, Outcome]:
        """Make the message, and let it hold the key; the text of its record is none that can be read."""
        writes = [*more, self._record(intent, text)]
        if intent.message.unique:
            writes.insert(0, _pointing(intent.message, pointer))  # first, for it is the one that others may have taken
        entries = () if intent.commands else (Entry(intent.message.id, intent.entry().dumps(), OWN_S),)
        return Commit(writes, entries, intent.commands), _NEW

    def _moving(self, intent: Intent, unique: Unique, holder: str, row: Row) -> _Plan | None:
        """Move the start of the holder, which gets the arguments of the message; None if it has started."""
        message = intent.message
        latest = row["enqueued_at"] + unique.at_most_s if unique.at_most_s is not None else float("inf")
        new = moved(row, (message.args_json, message.kwargs_json), min(message.enqueued_at + intent.delay_s, latest))
        if new is None:
            return None
        write = self._records.replacing(holder, row, head_of_row(row), new)
        return Commit((write,)), Outcome(holder=status_of(holder, new))

    def _following(
        self, intent: Intent, pointer: str, text: str | None, holder: tuple[str, Row], follower: tuple[str, Row] | None
    ) -> _Plan:
        """Have the message start when the holder ends; if one is to do so already, it gets this one's arguments."""
        message, outcome, writes = intent.message, Outcome(waits=True), list[Write]()
        if follower is None:
            writes.append(self._record(intent, text))
        else:
            message = replace(message, id=follower[0], enqueued_at=follower[1]["enqueued_at"])
            outcome = Outcome(holder=status_of(*follower))
        entries = [Entry(message.id, replace(intent, message=message).entry("follows").dumps(), _SWEEP_S)]
        if holder[0] != pointed_to(pointer)[0]:  # it follows one that is gone
            entries.append(Entry(holder[0], None))
        both = pointer_to(holder[0], holder[1].get("replays", 0), message.id)
        return Commit([*writes, Write(_key(message), head_of(pointer), both)], entries), outcome

    def _record(self, intent: Intent, found: str | None) -> Write:
        key, text, kept_s = self._records.created(intent.message, intent.delay_s, intent.message.enqueued_at)
        return Write(key, _seen(found), text, kept_s)

    # Replays, and what follows

    def replay(self, message: Message, delay_s: float, *, timeout_s: float) -> bool:
        """Have a replayed message hold its key, and put it in the outbox; return False if another one holds the key.

        It starts `delay_s` after it was first sent; 0 is at once.
        """
        deadline = monotonic() + timeout_s
        replayed = held(message, delay_s, "replayed")
        entry = Entry(replayed.key, replayed.dumps(), OWN_S)
        while True:
            pointer, found = self._look(message, deadline)
            holder, replays, follower = pointed_to(pointer)
            holders = {(holder, replays), (follower, 0)}
            if any(_live(found[each], life) is not None for each, life in holders if each != message.id):
                return False
            old = unpacked(found[message.id])
            new, writes = created(old, message, delay_s), [_pointing(message, pointer)]
            if new is not None:  # else somebody has done so before
                writes.append(self._records.replacing(message.id, old, head_of(found[message.id]), new))
            if self._backend.commit([Commit(writes, (entry,))], timeout_s=deadline - monotonic())[0]:
                return True

    def is_next(self, message: Message, *, timeout_s: float) -> bool | None:
        """Return whether a message that follows another one may start now; None if it has ended, and never does."""
        deadline = monotonic() + timeout_s
        pointer, found = self._look(message, deadline)
        holder, replays, _ = pointed_to(pointer)
        if _live(found[message.id], 0) is None:
            return None
        if holder == message.id:
            return True
        commit, waits = Commit((_pointing(message, pointer),)), _live(found[holder], replays) is not None
        if waits:
            commit = Commit((Write(_key(message), head_of(pointer), pointer),), (Entry(message.id, None, _WAIT_S),))
        return self._backend.commit([commit], timeout_s=deadline - monotonic())[0] and not waits

    def _look(self, message: Message, deadline: float) -> tuple[str | None, dict[str, str | None]]:
        """Return the text of a message's key, and the records of the message and of those that it points to."""
        [pointer] = self._backend.get([_key(message)], timeout_s=deadline - monotonic())
        holder, _, follower = pointed_to(pointer)
        return pointer, self._records_of([message.id, holder, follower], deadline)


def _key(message: Message) -> str:
    return pointer_key(message.task, message.unique)


def _pointing(message: Message, pointer: str | None) -> Write:
    """Return a write after which the text of a message's key, as it was read, points to the message."""
    return Write(_key(message), _seen(pointer), pointer_to(message.id, message.replays))


def _seen(text: str | None) -> str:
    """Return what a write has to have seen that replaces a text, or makes it if there is none."""
    return ABSENT if text is None else head_of(text)


def _live(text: str | None, replays: int) -> Row | None:
    """Return a record if it can be read, and its message has not ended, and is of this life."""
    row = unpacked(text)
    is_live = row is not None and row["state"] not in FINAL and row.get("replays", 0) == replays
    return row if is_live else None
