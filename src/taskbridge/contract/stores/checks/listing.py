"""The lists of messages, which the setting `listing` has stores keep."""

from __future__ import annotations

import time
from math import inf

from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect, soon
from taskbridge.contract.stores.table import check
from taskbridge.stores.backend import Backend, Listed
from taskbridge.stores.records import Ending

_FIRST = inf, ""


def _ids(backend: Backend, state: str, before: tuple[float, str] = _FIRST, most: int = 10) -> list[str]:
    [found] = backend.listed("state", [state], before=before, most=most, timeout_s=TIMEOUT_S)
    return [key for key, _ in found]


@check()
def messages_are_listed_by_state_and_by_queue(p: Place) -> None:
    """Lists of states are told the latest first, page by page, those of queues the earliest first."""
    one, two = p.store().backend, p.store().backend
    one.list_soon([Listed(f"m{number}", "queued", 100.0 + number // 2, "email") for number in range(6)])
    wanted = ["m5", "m4", "m3", "m2", "m1", "m0"]
    soon(lambda: _ids(two, "queued"), lambda found: found == wanted, "what is queued")
    expect(_ids(two, "queued", (101.0, "m3")), ["m2", "m1", "m0"], "what comes after the third, of two at the time")
    expect(_ids(two, "queued", most=2), ["m5", "m4"], "the latest two")
    queues = two.listed("queue", ["email", "vip"], before=_FIRST, most=2, timeout_s=TIMEOUT_S)
    expect(queues, [[("m0", 100.0), ("m1", 100.0)], []], "the earliest two of each queue")
    one.list_soon([Listed("m0", "done", 200.0, None, ("queued",), "email", 3600.0)])
    soon(lambda: _ids(two, "done"), lambda found: found == ["m0"], "what is done")
    expect(_ids(two, "queued"), wanted[:-1], "what is queued, after the first one has run")
    one.list_soon([Listed("m1", formers=("running",)), Listed("m2", formers=("queued",), freed="email")])
    soon(lambda: _ids(two, "queued"), lambda found: found == ["m5", "m4", "m3", "m1"], "without what is taken out")

    def waiting() -> list[str]:
        [found] = two.listed("queue", ["email"], before=_FIRST, most=9, timeout_s=TIMEOUT_S)
        return [key for key, _ in found]

    soon(waiting, lambda found: found == ["m1", "m3", "m4", "m5"], "what waits in the queue after that")


@check()
def messages_of_one_time_are_all_listed(p: Place) -> None:
    """Pages end only with the list, though many messages have one time."""
    backend, wanted = p.store().backend, [f"m{number:03}" for number in range(500)]
    backend.list_soon([Listed(key, "scheduled", 100.0) for key in wanted])
    soon(lambda: _ids(backend, "scheduled", most=500), lambda found: len(found) == 500, "what is scheduled")
    found, before = list[str](), _FIRST
    while page := _ids(backend, "scheduled", before, most=50):
        found += page
        before = 100.0, page[-1]
    expect((len(found), found[::-1] == wanted), (500, True), "how many all pages have, and whether in order")


@check()
def what_records_say_is_listed(p: Place) -> None:
    """With the setting `listing`, a message is in the list of the state that its record has; else in none."""
    store, silent = p.store(listing=True), p.store()
    message, late = a_message(), a_message()
    silent.records.create([(a_message(), 0.0)], timeout_s=TIMEOUT_S)
    store.records.create([(message, 0.0), (late, 60.0)], timeout_s=TIMEOUT_S)
    soon(lambda: _ids(store.backend, "queued"), lambda found: found == [message.id], "what is queued")
    soon(lambda: _ids(store.backend, "scheduled"), lambda found: found == [late.id], "what is scheduled")
    store.records.started(message, worker="w", at=time.time())
    soon(lambda: _ids(store.backend, "running"), lambda found: found == [message.id], "what runs")
    expect(_ids(store.backend, "queued"), [], "what is queued then")
    store.records.ended(message, Ending(state="done", at=time.time()), timeout_s=TIMEOUT_S)
    soon(lambda: _ids(store.backend, "done"), lambda found: found == [message.id], "what is done")
    soon(lambda: _ids(store.backend, "running"), lambda found: not found, "what runs after the end")
    found = store.records.find([message.id, "none", late.id], timeout_s=TIMEOUT_S)
    expect([each and each.state for each in found], ["done", None, "scheduled"], "the records of several")
    quick = a_message()
    store.records.create([(quick, 0.0)], timeout_s=TIMEOUT_S)
    store.backend.list_soon([Listed(quick.id, "running", time.time(), formers=("queued",), freed=quick.queue)])
    soon(lambda: _ids(store.backend, "running"), lambda found: found == [quick.id], "what starts")
    store.records.ended(quick, Ending(state="done", at=time.time()), timeout_s=TIMEOUT_S)  # before its start is written
    soon(lambda: _ids(store.backend, "running"), lambda found: not found, "what runs after an end that was quicker")
