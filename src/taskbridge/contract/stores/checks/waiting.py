"""Waiting for a final record."""

from __future__ import annotations

import threading
import time

from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.stores.checks.cancelling import cancel
from taskbridge.contract.stores.checks.records import create, end, record_of, start
from taskbridge.contract.stores.place import Place, a_message, expect, patience_s
from taskbridge.contract.stores.table import check, processes
from taskbridge.stores.records import State

_MANY = 1000


@check()
def whoever_waits_is_woken(p: Place) -> None:
    """Whoever watches a message is woken as it becomes final, and then sees its record."""
    store, other = p.store(), p.store()
    endings: tuple[State, ...] = ("done", "dead", "discarded", "cancelled")
    for ending in endings:
        message, woken = a_message(), threading.Event()
        create(store, message)
        stop = store.records.watch(message.id, woken.set)
        if ending == "cancelled":
            cancel(other, message)
        else:
            start(other, message)
            end(other, message, ending)
        if not woken.wait(patience_s()):
            raise ContractFailure(f"nobody was woken as a message became {ending}")
        expect(record_of(store, message).state, ending, "when it is woken")
        stop()


@check()
def a_watch_ends(p: Place) -> None:
    """Nobody is woken who has stopped to watch; another watch of the same message goes on."""
    store, other = p.store(), p.store()
    message, ended, going = a_message(), threading.Event(), threading.Event()
    create(store, message)
    stop, stop_too = store.records.watch(message.id, ended.set), store.records.watch(message.id, going.set)
    stop()
    stop()
    end(other, message, "done")
    expect(going.wait(patience_s()), True, "whether who still waits is woken")
    time.sleep(0.1)
    expect(ended.is_set(), False, "whether who has stopped is woken")
    stop_too()
    again = a_message()
    stop = store.records.watch(again.id, going.set)
    stop()
    woken = threading.Event()
    stop = store.records.watch(again.id, woken.set)
    end(other, again, "done")
    expect(woken.wait(patience_s()), True, "whether a watch after a watch is woken")
    stop()


@check()
def a_thousand_wait_at_once(p: Place) -> None:
    """A thousand messages are waited for by a few threads and one connection, and each wakes its own waiter."""
    store, other = p.store(), p.store()
    messages = [a_message() for _ in range(_MANY)]
    woken = [threading.Event() for _ in messages]
    create(store, *messages)
    threads = threading.active_count()
    stops = [store.records.watch(message.id, event.set) for message, event in zip(messages, woken, strict=True)]
    expect(threading.active_count() - threads < 5, True, "that there is no thread for each")
    for message in messages:
        end(other, message, "done", result_json="1")
    deadline = time.monotonic() + patience_s()
    missed = sum(not event.wait(max(0.0, deadline - time.monotonic())) for event in woken)
    expect(missed, 0, f"how many of {_MANY} were not woken")
    for stop in stops:
        stop()


@check(processes)
def whoever_waits_is_woken_by_another_process(p: Place) -> None:
    """A message that another process ends wakes whoever waits here."""
    store, messages = p.store(), [a_message() for _ in range(5)]
    create(store, *messages)
    actor = p.actor("end_run", *(message.id for message in messages))
    expect(actor.line(), "ready", "the other process")
    for message in messages:
        woken = threading.Event()
        stop = store.records.watch(message.id, woken.set)
        actor.go_on()
        expect(woken.wait(patience_s()), True, "whether it wakes")
        expect(record_of(store, message).state, "done", "then")
        stop()
