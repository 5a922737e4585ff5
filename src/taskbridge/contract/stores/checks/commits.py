"""What is done wholly or not at all: unique keys with their records, and the outbox."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

from taskbridge import Message, Unique
from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect, soon
from taskbridge.contract.stores.table import check, processes
from taskbridge.stores.backend import ABSENT, NEW, Backend, Commit, Entry, Write
from taskbridge.stores.base import Store
from taskbridge.stores.claims import Intent
from taskbridge.stores.records import Ending

_SKIP = Unique("key")


def _commit(backend: Backend, *commits: Commit) -> list[bool]:
    return backend.commit(commits, timeout_s=TIMEOUT_S)


def _due(backend: Backend, *, most: int = 10, lease_s: float = 60.0) -> list[tuple[str, str]]:
    return backend.due_entries(most=most, lease_s=lease_s, timeout_s=TIMEOUT_S)


@check()
def a_commit_is_done_wholly_or_not_at_all(p: Place) -> None:
    """If one of a commit's texts is not as it was seen, nothing of the commit is done; another one is not affected."""
    one, two = p.store().backend, p.store().backend
    first = Commit([Write("a", ABSENT, "1\nx"), Write("b", NEW, "1\ny")], [Entry("e", "text")])
    expect(_commit(one, first), [True], "where there is none of its texts")
    expect(_commit(two, first, Commit([Write("c", ABSENT, "0\nz")])), [False, True], "the same again, and another one")
    expect(
        _commit(one, Commit([Write("c", ABSENT, "1")]), Commit([Write("c", NEW, "2")])), [False, True], "of one made"
    )
    expect(_commit(two, Commit([Write("new", ABSENT, "1"), Write("c", ABSENT, "1")])), [False], "if one is there")
    expect(one.get(["new"], timeout_s=TIMEOUT_S), [None], "the text that was to be made beside it")
    changes = Write("a", "1", "2"), Write("b", "0", None)
    late = Commit(changes, [Entry("f", "text")])
    expect(_commit(two, late), [False], "if the second of its texts has changed")
    expect(_commit(two, Commit([Write("d", ABSENT, "1")]), late), [True, False], "the same, after another one")
    expect(two.get(["a", "b", "c"], timeout_s=TIMEOUT_S), ["1\nx", "1\ny", "2"], "the texts after that")
    expect(_commit(two, Commit([changes[0], Write("b", "1", None)])), [True], "if they are as they were")
    expect(one.get(["a", "b"], timeout_s=TIMEOUT_S), ["2", None], "the texts after that")
    expect([key for key, _ in _due(two)], ["e"], "what is in the outbox")
    expect(_commit(one, Commit([Write("gone", ABSENT, "1", 0.05)])), [True], "of a text that is kept briefly")
    soon(lambda: _commit(two, Commit([Write("gone", ABSENT, "2")])), lambda done: done == [True], "when it is gone")
    many = [Commit([Write(f"many {number}", ABSENT, "1")]) for number in (*range(250), 7)]
    expect(_commit(one, *many), [True] * 250 + [False], "of many commits, of which the last comes too late")
    expect(_commit(one), [], "of none")


@check()
def the_outbox_tells_each_entry_to_one(p: Place) -> None:
    """An entry is told when it is due, to one of those who ask; again after its lease, unless it was removed."""
    one, two = p.store().backend, p.store().backend
    entries = [Entry(f"e{number}", f"téxt {number}\nmore") for number in range(40)]
    _commit(one, Commit((), entries), Commit((), [Entry("late", "l", 3600.0)]))
    barrier = Barrier(8)

    def ask(number: int) -> list[tuple[str, str]]:
        barrier.wait()
        return _due((one, two)[number % 2])

    with ThreadPoolExecutor(8) as pool:
        told = [entry for found in pool.map(ask, range(8)) for entry in found]
    expect(sorted(told), sorted((each.id, each.text) for each in entries), "what is told")
    _commit(one, Commit((), [Entry("soon", "s", 0.3)]))
    soon(lambda: _due(two), lambda found: found == [("soon", "s")], "what is due a little later")
    _commit(two, Commit((), [Entry("late", None), Entry("nobody", None), Entry("e1", "new", 0.0)]))
    soon(lambda: sorted(_due(one)), lambda found: found == [("e1", "new"), ("late", "l")], "what is hastened or new")
    _commit(one, Commit((), [Entry("again", "a")]))
    soon(lambda: _due(two, lease_s=0.2), lambda found: found == [("again", "a")], "what is told for a short lease")
    soon(lambda: _due(one), lambda found: found == [("again", "a")], "when the lease is over")
    two.remove_entries(["again", *(each.id for each in entries)], timeout_s=TIMEOUT_S)
    _commit(one, Commit((), [Entry(each.id, None) for each in (*entries, Entry("again", None))]))
    soon(lambda: _due(two), lambda found: found == [], "what was removed")


def _send(store: Store, message: Message, unique: Unique | None = _SKIP) -> str:
    """Claim a key, and return the id of the message that holds it."""
    intent = Intent(message=message, delay_s=0.0, unique=unique)
    outcomes, error = store.claims.send([intent], timeout_s=TIMEOUT_S)
    if error is not None:
        raise error
    holder = outcomes[0].holder
    return message.id if holder is None else holder.id


def _keyed(key: str = "0", **fields: object) -> Message:
    return a_message(unique=f"e:{key * 32}", **fields)


@check()
def a_key_is_free_when_its_record_is_final(p: Place) -> None:
    """A key points to its message until the message's record is final, or gone, and leaves nothing behind."""
    store, other = p.store(), p.store()
    for state in ("done", "dead", "discarded"):
        message = _keyed()
        expect(_send(store, message), message.id, f"who holds the key before one that is {state}")
        expect(_send(other, _keyed()), message.id, "who holds it then")
        other.records.started(message, worker="host:1", at=time.time())
        other.records.ended(message, Ending(state="retrying", at=time.time()), timeout_s=TIMEOUT_S)
        expect(_send(other, _keyed()), message.id, "who holds it between two attempts")
        last = replace(message, attempt=2)
        other.records.ended(last, Ending(state=state, at=time.time()), timeout_s=TIMEOUT_S)
    cancelled, gone = _keyed(), _keyed()
    expect(_send(store, cancelled), cancelled.id, "who holds the key after these")
    other.records.cancel(cancelled.id, at=time.time(), timeout_s=TIMEOUT_S)
    expect(_send(store, gone), gone.id, "who holds it after one that was cancelled")
    other.backend.remove([f"record:{gone.id}"], timeout_s=TIMEOUT_S)
    last = _keyed()
    expect(_send(store, last), last.id, "who holds it after one whose record is gone")
    other.records.ended(last, Ending(state="done", at=time.time()), timeout_s=TIMEOUT_S)
    key = f"unique:{last.task}:{'0' * 32}"
    expect(store.backend.get([key], timeout_s=TIMEOUT_S), [None], "what is left of the key")


@check()
def what_follows_is_hastened_as_its_holder_ends(p: Place) -> None:
    """What follows a message holds the key after it, is due in the outbox as that ends, and not before."""
    store, after = p.store(), Unique("key", on_conflict="after")
    first, second = _keyed(), _keyed()
    _send(store, first, after)
    _send(p.store(), second, after)
    store.backend.remove_entries([first.id], timeout_s=TIMEOUT_S)
    expect(_due(store.backend), [], "what is due before the first has ended")
    expect(store.claims.is_next(second, timeout_s=TIMEOUT_S), False, "whether the second is next before that")
    p.store().records.ended(first, Ending(state="done", at=time.time()), timeout_s=TIMEOUT_S)
    soon(lambda: [key for key, _ in _due(store.backend)], lambda found: found == [second.id], "what is due after that")
    expect(store.claims.is_next(second, timeout_s=TIMEOUT_S), True, "whether the second is next after that")
    store.records.cancel(second.id, at=time.time(), timeout_s=TIMEOUT_S)
    expect(store.claims.is_next(second, timeout_s=TIMEOUT_S), None, "whether it is when it was cancelled")


@check(processes)
def of_many_processes_one_holds_a_key(p: Place) -> None:
    """Of several processes that send the same keys at once, one makes each message, though one of them is killed."""
    number, victims = 60, 4
    actors = [p.actor("send_unique", str(number)) for _ in range(victims)]
    for actor in actors:
        expect(actor.line(), "ready", "each actor")
    for actor in actors:
        actor.go_on()
    actors[0].line()
    actors[0].kill()
    told = [line.split(":") for actor in actors[1:] for line in actor.lines()]
    holders = {key: holder for key, holder, _ in told}
    expect(len(holders), number, "how many keys there are")
    expect({(key, holder) for key, holder, _ in told}, set(holders.items()), "who holds each, whoever asked")
    made = Counter(key for key, holder, own in told if holder == own)
    expect([count for count in made.values() if count > 1], [], "keys of which two were made")
    store = p.store()
    kept = [store.records.get(holder, timeout_s=TIMEOUT_S) is not None for holder in holders.values()]
    expect(kept, [True] * number, "whether each has a record")
    _commit(store.backend, Commit((), [Entry(holder, None) for holder in holders.values()]))
    expect({key for key, _ in _due(store.backend, most=1000)}, set(holders.values()), "what is in the outbox")
