"""The store is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from taskbridge import BrokerUnavailable, Message
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.stores.checks.records import create, end, record_of
from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect, patience_s, soon
from taskbridge.contract.stores.table import a_server, check
from taskbridge.stores.base import Store
from taskbridge.stores.records import Ending

_TIMEOUT_S = 1.0
_SLACK_S = 2.0
"""What a busy machine may add, beside the time for which it stands still."""


def _calls(store: Store, message: Message) -> Iterator[tuple[str, Callable[[], object]]]:
    at, records, ticks = time.time(), store.records, store.ticks
    ending = Ending(state="done", at=at)
    claim = {"claimant": "one", "now": at, "lease_s": 60.0}
    yield "create", lambda: records.create([(a_message(), 0.0)], timeout_s=_TIMEOUT_S)
    yield "forget", lambda: records.forget(["nobody"], timeout_s=_TIMEOUT_S)
    yield "ended", lambda: records.ended(a_message(), ending, timeout_s=_TIMEOUT_S)
    yield "get", lambda: records.get(message.id, timeout_s=_TIMEOUT_S)
    yield "cancel", lambda: records.cancel(message.id, at=at, timeout_s=_TIMEOUT_S)
    yield "cancelled_since", lambda: records.cancelled_since("", timeout_s=_TIMEOUT_S)
    yield "watch", lambda: records.watch(a_message().id, lambda: None)
    yield "begin", lambda: ticks.begin("s", now=lambda: at, timeout_s=_TIMEOUT_S)
    yield "states", lambda: ticks.states(["s"], timeout_s=_TIMEOUT_S)
    yield "claim of a tick", lambda: ticks.claim("s", at, timeout_s=_TIMEOUT_S, **claim)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - of the dict
    yield "settle", lambda: ticks.settle("s", at, message_id="", missed=0, timeout_s=_TIMEOUT_S)
    yield "pause", lambda: ticks.pause("s", paused=True, at=at, timeout_s=_TIMEOUT_S)
    yield "claim", lambda: store.marks.claim(a_message(), timeout_s=_TIMEOUT_S)
    yield "ping", lambda: store.ping(timeout_s=_TIMEOUT_S)


def _expect_unavailable(store: Store, message: Message) -> None:
    calls = dict(_calls(store, message))
    with ThreadPoolExecutor(len(calls)) as pool:
        for name, seen in zip(calls, pool.map(_took_s, calls.values()), strict=True):
            if seen is None and name != "watch":  # that one need not notice, on a connection that is there already
                raise ContractFailure(f"{name} says nothing of the store being away")
            if seen is not None and seen > _TIMEOUT_S * 1.1 + _SLACK_S:
                raise ContractFailure(f"{name} took {seen:.1f} s to say that the store is away")
    with Stopwatch() as watch:
        store.records.started(a_message(), worker="host:1", at=time.time())
        store.marks.started(a_message())
        store.marks.ended(a_message())
    is_soon = watch.took_s < 3 * (2 + _TIMEOUT_S) + _SLACK_S
    expect(is_soon, True, f"that starts and ends don't wait long; {watch.took_s:.1f} s")


def _took_s(call: Callable[[], object]) -> float | None:
    """Return after how long a call said that the store is away; None if it didn't."""
    is_told = False
    with Stopwatch() as watch:
        try:
            call()
        except BrokerUnavailable:
            is_told = True
    return watch.took_s if is_told else None


def _expect_back(store: Store) -> None:
    def answers() -> bool:
        try:
            store.ping(timeout_s=_TIMEOUT_S)
            store.records.get("nobody", timeout_s=_TIMEOUT_S)  # what was stored last may be lost: Redis says so
        except BrokerUnavailable:
            return False
        return True

    soon(answers, bool, "until the store answers again")
    create(store, again := a_message())
    expect(record_of(store, again).state, "queued", "made after it was away")


@check(a_server)
def a_store_that_is_silent_is_noticed_in_time(p: Place) -> None:
    """While the store doesn't answer, each call says so in time; after that all is as before."""
    assert p.server is not None
    store, message = p.store(send_timeout=_TIMEOUT_S, lease=5), a_message()
    create(store, message)
    stop = store.records.watch(message.id, lambda: None)
    store.marks.claim(a_message(), timeout_s=TIMEOUT_S)
    p.server.pause()
    try:
        _expect_unavailable(store, message)
    finally:
        p.server.resume()
    _expect_back(store)
    stop()


@check(a_server)
def a_store_that_was_away_wakes_who_waits(p: Place) -> None:
    """While the store is gone, each call says so; whoever waits is woken when it is back, and by what happens then."""
    assert p.server is not None
    store, message, later = p.store(send_timeout=_TIMEOUT_S, lease=5), a_message(), a_message()
    create(store, message, later)
    woken, woken_later = threading.Event(), threading.Event()
    stops = [store.records.watch(message.id, woken.set), store.records.watch(later.id, woken_later.set)]
    p.server.kill()
    try:
        _expect_unavailable(store, message)
        woken.clear()
    finally:
        p.server.start()
    _expect_back(store)
    expect(woken.wait(patience_s()), True, "whether who waits is woken when the store is back")
    woken_later.clear()
    end(store, later, "done")
    expect(woken_later.wait(patience_s()), True, "whether it is woken by an end after that")
    for stop in stops:
        stop()
