"""Cancelling."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from threading import Barrier, Event

from taskbridge import Message
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.stores.checks.records import create, end, record_of, settled, start
from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect
from taskbridge.contract.stores.table import check
from taskbridge.durations import moment
from taskbridge.stores.base import Store
from taskbridge.stores.records import CANCEL_KNOWN_S, Status


def cancel(store: Store, message: Message, *, at: float | None = None) -> Status:
    """Cancel a message, which must be known."""
    record = store.records.cancel(message.id, at=time.time() if at is None else at, timeout_s=TIMEOUT_S)
    if record is None:
        raise ContractFailure("a message that is known can't be cancelled")
    return record


@check()
def what_is_cancelled_before_it_runs_never_starts(p: Place) -> None:
    """What is cancelled while it waits, is delayed or is between two attempts is final, and never runs."""
    store, other = p.store(), p.store()
    queued, delayed, retrying = a_message(), a_message(), a_message()
    create(store, queued)
    create(store, delayed, delay_s=60)
    start(store, retrying)
    end(store, retrying, "retrying", due_at=time.time() + 60)
    for message in (queued, delayed, retrying):
        at = time.time()
        seen = cancel(other, message, at=at)
        expect((seen.state, seen.ended_at, seen.due_at), ("cancelled", moment(at), None), "what cancelling returns")
        expect(record_of(store, message), seen, "what is there then")
        late = a_message(id=message.id, attempt=2)
        store.records.started(late, worker="late:1", at=at + CANCEL_KNOWN_S + 0.5)
        end(store, late, "done", at=at + 9, result_json="1")
        settled(store)
        expect(record_of(store, message), seen, "after a start that should have known")


@check()
def a_start_that_could_not_know_wins(p: Place) -> None:
    """A start within a second of the cancellation may win, and the record says what happened."""
    store, message, at = p.store(), a_message(), time.time()
    create(store, message)
    cancel(store, message, at=at)
    start(store, message, at=at + CANCEL_KNOWN_S / 2)
    seen = record_of(store, message)
    expect((seen.cancel_asked, seen.ended_at), (True, None), "while it runs")
    end(store, message, "done", result_json="1")
    expect(record_of(store, message).state, "done", "its end")


@check()
def what_is_cancelled_stays_so_without_a_run(p: Place) -> None:
    """What is cancelled stays so, whatever is said of an end by a process that knows of no run."""
    store, other, message, at = p.store(), p.store(), a_message(), time.time()
    create(store, message)
    cancel(store, message, at=at)
    end(other, message, "done", at=at, result_json="1")
    expect(record_of(store, message).state, "cancelled", "after an end without a start")


@check()
def what_runs_is_asked_to_end(p: Place) -> None:
    """A run that is cancelled goes on, and what it ends with counts; but nothing waits after it."""
    store, other = p.store(), p.store()
    done, failed, given_back = a_message(), a_message(), a_message()
    for message in (done, failed, given_back):
        start(store, message)
        seen = cancel(other, message)
        expect((seen.state, seen.cancel_asked, seen.ended_at), ("running", True, None), "what cancelling returns")
    end(store, done, "done", result_json="1")
    expect(record_of(other, done).state, "done", "of a run that ended well")
    end(store, failed, "retrying", due_at=time.time() + 60)
    seen = record_of(other, failed)
    expect((seen.state, seen.due_at, seen.ended_at is None), ("cancelled", None, False), "of one that failed")
    end(store, given_back, "queued")
    expect(record_of(other, given_back).state, "cancelled", "of one that was given back")


@check()
def what_is_to_be_interrupted_says_so(p: Place) -> None:
    """A record tells that a run is to be interrupted, also of a run that began unheard, and it is told of again."""
    store, other, running, unheard, at = p.store(), p.store(), a_message(), a_message(), time.time()
    for message in (running, unheard):
        create(store, message)
    start(store, running)
    expect(cancel(other, running).interrupt_asked, False, "of a cancellation that interrupts nothing")
    cursor, lives = store.records.cancelled_since("", timeout_s=TIMEOUT_S)
    expect(running.life in lives, True, "whether it is told")
    for message in (running, unheard):
        other.records.cancel(message.id, at=at, interrupt=True, timeout_s=TIMEOUT_S)
    start(store, unheard, at=at + CANCEL_KNOWN_S / 2)
    for message in (running, unheard):
        seen = record_of(store, message)
        expect((seen.state, seen.interrupt_asked), ("running", True), "of a run that is to be interrupted")
    again = store.records.cancelled_since(cursor, timeout_s=TIMEOUT_S)[1]
    expect({running.life, unheard.life} <= set(again), True, "whether both are told again")
    end(store, running, "cancelled")
    expect(record_of(store, running).interrupt_asked, True, "at its end")


@check()
def an_end_says_what_it_left(p: Place) -> None:
    """Who records an end learns the state that it left, also where it changed nothing; none of another life."""
    store, other = p.store(), p.store()
    failed, cancelled, waiting, replayed = a_message(), a_message(), a_message(), a_message(replays=1)
    for message in (failed, cancelled, replayed):
        start(store, message)
    cancel(other, cancelled)
    expect(end(store, failed, "retrying", due_at=time.time() + 60), "retrying", "of one that failed")
    expect(end(store, cancelled, "retrying", due_at=time.time() + 60), "cancelled", "of one that was cancelled")
    expect(end(store, cancelled, "retrying", due_at=time.time() + 60), "cancelled", "of the same, told again")
    create(store, waiting)
    cancel(other, waiting, at=time.time() - CANCEL_KNOWN_S - 60)
    expect(end(store, waiting, "retrying", due_at=time.time() + 60), "cancelled", "of one whose start is not known")
    cancel(other, replayed)
    expect(end(store, replace(replayed, replays=0), "retrying"), None, "of an earlier life")
    expect(end(store, replayed, "done"), "done", "of one that ended well")


@check()
def what_is_final_is_not_cancelled(p: Place) -> None:
    """Cancelling changes nothing that is final, and nothing that is not known."""
    store, message = p.store(), a_message()
    create(store, message)
    end(store, message, "done", result_json="1")
    before = record_of(store, message)
    expect(cancel(store, message), before, "what cancelling returns")
    expect(record_of(store, message), before, "what is there then")
    expect(store.records.cancelled_since("", timeout_s=TIMEOUT_S)[1] == [], True, "nothing was cancelled")
    expect(store.records.cancel("nobody", at=time.time(), timeout_s=TIMEOUT_S), None, "of a message that is unknown")


@check()
def cancelling_and_starting_are_atomic(p: Place) -> None:
    """However a start and many cancellations meet, all are told the same, and it is true."""
    stores = [p.store() for _ in range(4)]
    for step in range(12):
        message, at, barrier = a_message(), time.time(), Barrier(16)
        apart_s = step * 0.0004  # at once, then before, while and after a store writes the start, some ms later
        create(stores[0], message)

        def act(
            number: int,
            message: Message = message,
            at: float = at,
            barrier: Barrier = barrier,
            apart_s: float = apart_s,
        ) -> str:
            barrier.wait()
            store = stores[number % 4]
            if number == 0:
                store.records.started(message, worker="host:1", at=at + CANCEL_KNOWN_S + 60)
                return ""
            time.sleep(number * apart_s)
            return cancel(store, message, at=at).state

        with ThreadPoolExecutor(16) as pool:
            told = set(pool.map(act, range(16))) - {""}
        settled(stores[0])
        seen = record_of(stores[1], message)
        expect(told, {seen.state}, "what all were told, and what is there")
        expect(seen.cancel_asked, seen.state == "running", "whether the run is asked to end")


@check()
def a_cursor_tells_what_was_cancelled_since(p: Place) -> None:
    """A cursor tells of what was cancelled after it; a message that was replayed is another life."""
    store, other = p.store(), p.store()
    one, two, three = a_message(), a_message(), a_message(replays=3)
    create(store, one, two, three)
    cursor, seen = other.records.cancelled_since("", timeout_s=TIMEOUT_S)
    expect(list(seen), [], "in the beginning")
    cancel(store, one)
    cursor, seen = other.records.cancelled_since(cursor, timeout_s=TIMEOUT_S)
    expect(set(seen), {one.life}, "after the first")
    cancel(store, two)
    cancel(store, three)
    cursor, seen = other.records.cancelled_since(cursor, timeout_s=TIMEOUT_S)
    expect(set(seen), {two.life, three.life}, "after two more")
    cursor, seen = other.records.cancelled_since(cursor, timeout_s=TIMEOUT_S)
    expect(list(seen), [], "after no more")
    expect(set(store.records.cancelled_since("", timeout_s=TIMEOUT_S)[1]), {one.life, two.life, three.life}, "in all")


@check()
def no_cancellation_is_skipped(p: Place) -> None:
    """Whoever follows the cursor while many cancel at once is told of all."""
    stores, reader = [p.store() for _ in range(4)], p.store()
    messages = [a_message() for _ in range(160)]
    create(reader, *messages)
    told: set[str] = set()
    reads, is_over = Event(), Event()

    def follow() -> None:
        cursor, is_last = "", False
        while not is_last:
            is_last = is_over.is_set()
            cursor, lives = reader.records.cancelled_since(cursor, timeout_s=TIMEOUT_S)
            told.update(lives)
            reads.set()

    with ThreadPoolExecutor(1) as follower:
        following = follower.submit(follow)
        try:
            reads.wait(TIMEOUT_S)  # so that it does while they cancel
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(cancel, cycle(stores), messages))
        finally:
            is_over.set()
        following.result()
    expect(len({message.life for message in messages} - told), 0, "how many of 160 were not told")
