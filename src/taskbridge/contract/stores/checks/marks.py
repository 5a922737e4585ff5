"""Attempt marks."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

from taskbridge import Message
from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect, patience_s, soon
from taskbridge.contract.stores.table import check, processes
from taskbridge.stores.backend import NEW, Write
from taskbridge.stores.base import Claim, Store

_LEASE_S = 6.0
"""Long enough that a worker can say in time that it lives, and that a killed one is looked at before it is over.

It says so four times in that time, so it is taken for dead if it can't for four and a half seconds.
"""
_SHORT_LEASE_S = 1.0


def _claim(store: Store, message: Message) -> Claim:
    return store.marks.claim(message, timeout_s=TIMEOUT_S)


def _is_marked(store: Store, *messages: Message) -> None:
    """Return when starts have arrived that another process has marked: it waits for nothing, and a claim changes it."""
    keys = [f"mark:{message.attempt_key}" for message in messages]
    soon(lambda: store.backend.get(keys, timeout_s=TIMEOUT_S), lambda marks: None not in marks, "until it is marked")


def _claim_when(store: Store, message: Message, wanted: Claim) -> None:
    soon(lambda: _claim(store, message), lambda claim: claim is wanted, f"until it is {wanted.value}")


@check()
def one_runs_what_was_never_started(p: Place) -> None:
    """Of many that may have been given the same attempt, one runs it."""
    stores, barrier, message = [p.store() for _ in range(4)], Barrier(16), a_message()

    def claim(number: int) -> Claim:
        barrier.wait()
        return _claim(stores[number % 4], message)

    with ThreadPoolExecutor(16) as pool:
        counts = Counter(pool.map(claim, range(16)))
    expect(counts, Counter({Claim.RUN: 1, Claim.RUNNING: 15}), "what 16 were told")


@check()
def what_has_ended_is_dropped(p: Place) -> None:
    """An attempt that has ended is known as such, and so is each attempt and each life by itself."""
    store, other, message = p.store(), p.store(), a_message()
    store.marks.started(message)
    _claim_when(other, a_message(), Claim.RUN)
    store.marks.ended(message)
    if p.in_process:
        expect(_claim(other, message), Claim.ENDED, "the attempt")
    else:
        _claim_when(p.store(), message, Claim.ENDED)
    expect(_claim(other, a_message(id=message.id, attempt=2)), Claim.RUN, "the next attempt")
    expect(_claim(other, a_message(id=message.id, replays=1)), Claim.RUN, "the same attempt of the next life")


@check()
def what_is_gone_is_not_taken_over(p: Place) -> None:
    """A text is replaced only if it is what was seen: not what another process has removed or changed since."""
    store, other = p.store().backend, p.store().backend

    def swap(seen: str, text: str) -> bool:
        [is_done] = other.write([Write("key", seen, text, 60)], timeout_s=TIMEOUT_S)
        return is_done

    store.put("key", "seen", kept_s=60, timeout_s=TIMEOUT_S)
    expect(swap("another", "mine"), False, "whether something else is replaced")
    store.remove(["key"], timeout_s=TIMEOUT_S)
    expect(swap("seen", "mine"), False, "whether what is gone is replaced")
    expect(store.get(["key"], timeout_s=TIMEOUT_S), [None], "what is there then")
    expect(swap(NEW, "mine"), True, "whether nothing is replaced where there is nothing")
    expect(store.get(["key"], timeout_s=TIMEOUT_S), ["mine"], "what is there at last")


@check()
def what_was_given_back_is_run(p: Place) -> None:
    """A run that was given back may start again, elsewhere too."""
    store, other = p.store(), p.store()
    one, two, three = a_message(), a_message(), a_message()
    for message in (one, two, three):
        expect(_claim(store, message), Claim.RUN, "at first")
        expect(_claim(other, message), Claim.RUNNING, "while it runs")
    store.marks.given_back(one, timeout_s=TIMEOUT_S)
    expect(_claim(other, one), Claim.RUN, "given back")
    expect(_claim(other, two), Claim.RUNNING, "another one's")
    store.marks.all_given_back(timeout_s=TIMEOUT_S)
    for message in (two, three):
        expect(_claim(other, message), Claim.RUN, "given back with all others")


@check(processes)
def a_live_workers_run_is_its_own(p: Place) -> None:
    """A worker's run is its own for as long as it lives, however short the lease; it keeps it, and knows so."""
    store, other, message = p.store(lease=_LEASE_S), p.store(lease=_LEASE_S), a_message()
    expect(_claim(store, message), Claim.RUN, "at first")
    until = time.monotonic() + 1.3 * _LEASE_S
    while time.monotonic() < until:
        expect(_claim(other, message), Claim.RUNNING, "while its worker lives")
        time.sleep(0.1)
    expect(store.marks.still_ours(message, timeout_s=TIMEOUT_S), True, "whether it is still the worker's")


@check(processes)
def a_killed_workers_run_is_lost(p: Place) -> None:
    """The run of a worker that was killed is lost after the lease, not before, and one other is told so."""
    stores, message = [p.store(lease=_LEASE_S) for _ in range(3)], a_message()
    actor = p.actor("start_run", message.id, lease=_LEASE_S)
    expect(actor.line(), "started", "the worker")
    _is_marked(stores[0], message)
    expect(_claim(stores[0], message), Claim.RUNNING, "while its worker lives")
    actor.kill()
    expect(_claim(stores[0], message), Claim.RUNNING, "right after the kill")
    claims: Counter[Claim] = Counter()
    deadline = time.monotonic() + _LEASE_S + patience_s()
    while not claims[Claim.LOST] and time.monotonic() < deadline:
        with ThreadPoolExecutor(3) as pool:
            claims.update(pool.map(partial(_claim, message=message), stores))
    expect(
        (claims[Claim.LOST], claims[Claim.RUN], claims[Claim.ENDED]), (1, 0, 0), "how many were told that it is lost"
    )


@check(processes)
def a_worker_that_stood_still_knows_that_its_run_is_anothers(p: Place) -> None:
    """A worker that stood still for longer than its lease is told that its run was decided about meanwhile."""
    store, message, spared = p.store(lease=_SHORT_LEASE_S), a_message(), a_message()
    actor, lucky = (p.actor("start_run", each.id, lease=_SHORT_LEASE_S) for each in (message, spared))
    for each in (actor, lucky):
        expect(each.line(), "started", "a worker")
    _is_marked(store, message, spared)
    for each in (actor, lucky):
        each.pause()
    _claim_when(store, message, Claim.LOST)
    for each in (actor, lucky):
        each.resume()
        each.go_on()
    expect(actor.line(), "False", "whether the run is still the worker's")
    expect(lucky.line(), "True", "whether one is that nobody decided about")
