"""U and OB: unique keys, debouncing, ids of the caller's choice, and the outbox that publishes what was decided."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from taskbridge import (
    BrokerUnavailable,
    Handle,
    IdempotencyConflict,
    SendError,
    TaskCancelled,
    UniqueConflict,
    UnsupportedError,
)
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import DISCARD, KILL, RETURN, Plan, Step, fail, hold
from taskbridge.contract.registry import (
    RECORDED,
    STORED,
    scenario,
    with_marks,
    with_processes,
    with_processes_and_marks,
    with_records,
)
from taskbridge.contract.scenarios.results import outcome_of, until_it_is
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import AT_MOST_S, DEBOUNCE_S

_SENDERS: Final = 8
_RELAYED_S: Final = 1.0
"""How soon an outbox publishes what its sender has left there."""


def _relayed_s(h: Harness, delay_s: float = 0.0) -> float:
    """Return how soon what waits in an outbox starts: it is published (rule OB1), and then taken (rule D2)."""
    return _RELAYED_S + h.target.latest_s(delay_s)


def _call(*steps: Step) -> list[dict[str, Any]]:
    return [step.plain() for step in steps or (RETURN,)]


def _send(h: Harness, kind: str, key: str, *steps: Step, mark: str = "") -> tuple[Sent, bool]:
    """Send a unique message, and return it, or the one that holds its key, and whether it is new."""
    handle: Handle[str] = h.tasks.unique[kind].send(_call(*steps), key, mark)
    return h.own(handle), handle.is_new


def _marks(h: Harness, item: Sent) -> list[str]:
    """Return with which arguments a message was run."""
    return [start.data["mark"] for start in h.starts(item.id)]


@scenario("U1", "U7", on=(RECORDED,), where=with_records)
def of_many_senders_one_makes_the_message(h: Harness) -> None:
    """Of many who send a key at once, by one call or many, one makes the message, and all get its handle."""
    keys = [f"many-{number}" for number in range(12)]
    task = h.tasks.unique["skip"]

    def send(number: int) -> list[Handle[str]]:
        if number % 2:
            return task.send_many([task.call(_call(hold("many")), key) for key in (*keys, *keys)])
        return [task.send(_call(hold("many")), key) for key in keys]

    with ThreadPoolExecutor(_SENDERS) as pool:
        handles = [handle for found in pool.map(send, range(_SENDERS)) for handle in found]
    ids = {handle.id for handle in handles}
    h.equal("how many messages there are", len(ids), len(keys))
    h.equal("those that are new", sorted(handle.id for handle in handles if handle.is_new), sorted(ids))
    sent = [h.own(handle) for handle in handles if handle.is_new]
    h.tasks.open("many")
    h.finished(*(item.id for item in sent))
    for item in sent:
        until_it_is(h, item, "done")
    h.equal("the starts of each", {len(h.starts(item.id)) for item in sent}, {1})
    again = [h.own(handle) for handle in task.send_many([task.call(_call(), key) for key in keys]) if handle.is_new]
    h.equal("how many are new when these have ended", len(again), len(keys))
    h.finished(*(item.id for item in again))


@scenario("U1")
def unique_tasks_need_a_store(h: Harness) -> None:
    """Without a record, sending a unique message or one of a chosen id is refused, with what would help."""
    says = [h.refused(UnsupportedError, h.tasks.unrecorded.using(id="chosen").send, _call())]
    if h.bridge.store is None:
        says.append(h.refused(UnsupportedError, h.tasks.programs["once"].using(id="chosen").send, _call()))
        says.append(h.refused(UnsupportedError, _send, h, "skip", "a key"))
    for error in says:
        h.says(error, "need a store")
    h.idle()


@scenario("U2", "U3", on=(RECORDED,), where=with_records)
def whatever_ends_a_message_frees_its_key(h: Harness) -> None:
    """A key is free when its message is done, dead, discarded, expired or cancelled, and not between two attempts."""
    task = h.tasks.unique["skip"]
    held = {
        "done": _send(h, "skip", "done", hold("ends")),
        "dead": _send(h, "skip", "dead", fail(), Step(gate="ends", outcome="raise")),
        "discarded": _send(h, "skip", "discarded", fail(), Step(gate="ends", outcome="discard")),
    }
    for name in ("dead", "discarded"):
        h.started(held[name][0].id, times=2)  # the key does not stop the second attempt
    later: Handle[str] = task.schedule(10, _call(), "cancelled")
    held["cancelled"] = h.own(later), True
    for name, (item, _) in held.items():
        same, is_new = _send(h, "skip", name)
        h.equal(f"who holds the key {name}", (same.id, is_new), (item.id, False))
    h.tasks.open("ends")
    later.cancel()
    expiring: Handle[str] = task.using(expires=0.05).schedule(0.5, _call(), "discarded by time")
    held["discarded by time"] = h.own(expiring), True
    for name, (item, _) in held.items():
        until_it_is(h, item, name.partition(" ")[0])
        other, is_new = _send(h, "skip", name)
        h.equal(f"whether the key {name} is free", (is_new, other.id != item.id), (True, True))
        h.final(other.id)


@scenario("U1", "U2", on=(RECORDED,), where=with_records)
def who_cancels_and_sends_again_has_no_two_runs(h: Harness) -> None:
    """A message that is cancelled as its run begins is either not run, or keeps its key until the run ends."""
    seen: list[tuple[Sent, Sent, bool]] = []
    for number in range(8):
        gate = f"again {number}"
        item, _ = _send(h, "skip", gate, hold(gate))
        if number < 2:
            h.started(item.id)
        h.pause(0.002 * (number % 5))
        state = h.bridge.handle(item.id).cancel().state
        other, is_new = _send(h, "skip", gate, hold(gate))
        h.equal("whether the key is free", is_new, state == "cancelled")
        h.check(number > 1 or not is_new, "it was cancelled, though it runs")
        h.started(other.id)
        h.tasks.open(gate)
        seen.append((item, other, is_new))
    h.finished(*{each.id for item, other, _ in seen for each in (item, other)})
    for item, other, is_new in seen:
        h.equal("the starts of both", [len(h.starts(each.id)) for each in (item, other)], [int(not is_new), 1])


@scenario("U2", on=(STORED,), where=with_processes_and_marks)
def a_killed_worker_frees_the_key(h: Harness) -> None:
    """A key is held while its message waits for another worker, and free when that has judged the lost attempt."""
    h.start_worker(supervised=True)
    item, _ = _send(h, "skip", "lost", KILL)
    h.started(item.id)
    h.equal("whether it is free between two attempts", _send(h, "skip", "lost")[1], False)
    h.final(item.id, within_s=2 * (h.spec.lease_s + 10) + h.patience_s)
    until_it_is(h, item, "dead")
    h.equal("the starts", len(h.starts(item.id)), 2)
    other, is_new = _send(h, "skip", "lost")
    h.equal("whether it is free after that", is_new, True)
    h.finished(other.id)


@scenario("U3", on=(RECORDED,), where=with_records)
def a_replay_takes_the_key(h: Harness) -> None:
    """A replayed message holds its key; it stays dead if another one does."""
    first, _ = _send(h, "skip", "replay", fail())
    until_it_is(h, first, "dead")
    second, is_new = _send(h, "skip", "replay", hold("replay"))
    h.equal("whether the key is free", is_new, True)
    replayed = h.bridge.dead.replay(first.id)
    h.equal("what stays dead, and why", (replayed.ids, replayed.held), ((), (first.id,)))
    h.equal("the dead letter", len(h.letters(first.id)), 1)
    h.tasks.open("replay")
    h.final(second.id)
    until_it_is(h, second, "done")
    h.equal("what is replayed then", h.bridge.dead.replay(first.id).ids, (first.id,))
    if _send(h, "skip", "replay")[1]:  # it may have failed again by now
        h.equal("the state of one that does not hold the key", h.bridge.handle(first.id).status().state, "dead")
    h.started(first.id, times=3)
    h.until(lambda: len(h.letters(first.id)) == 1 and len(h.starts(first.id)) == 4, "its second death")


@scenario("U4", on=(RECORDED,), where=with_records)
def a_key_until_the_start_is_free_as_the_task_runs(h: Harness) -> None:
    """With until="start", what is sent while a message runs is new, even from the run itself, and is run after it."""
    first, _ = _send(h, "start", "start", hold("start"))
    h.started(first.id)
    second, is_new = _send(h, "start", "start", hold("start"))
    h.equal("whether it is free", is_new, True)
    h.tasks.open("start")
    h.finished(first.id, second.id)
    h.equal("the starts", (len(h.starts(first.id)), len(h.starts(second.id))), (1, 1))


@scenario("U4", on=(STORED,), where=with_records)
def a_conflict_is_told_or_replaced(h: Harness) -> None:
    """on_conflict="raise" names the holder; "replace" cancels one that has not started, and keeps one that runs."""
    told, _ = _send(h, "raise", "told")
    h.equal("the holder", h.refused(UniqueConflict, _send, h, "raise", "told").id, told.id)
    task = h.tasks.unique["raise"]
    calls = [task.call(_call(), "other"), task.call(_call(), "told")]
    refused = h.refused(SendError, task.send_many, calls)
    h.equal("how many are sent of two", (len(refused.sent), len(refused.unsent)), (1, 1))
    old, _ = _send(h, "replace", "new", mark="old")
    new, is_new = _send(h, "replace", "new", hold("new"), mark="new")
    h.equal("whether the later one is new", is_new, True)
    h.start_worker(threads=2)
    h.started(new.id)
    kept, is_new = _send(h, "replace", "new", mark="newer")
    h.equal("who holds the key while it runs", (kept.id, is_new), (new.id, False))
    h.tasks.open("new")
    h.finished(told.id, old.id, new.id)
    h.refused(TaskCancelled, outcome_of, h, old)
    h.equal("what ran", [_marks(h, each) for each in (old, new)], [[], ["new"]])


@scenario("U4", on=(STORED,), where=with_records)
def one_follows_with_the_latest_arguments(h: Harness) -> None:
    """With on_conflict="after", one more message starts when the holder ends, with the latest arguments."""
    h.start_worker(threads=4)  # of its own, for others may keep one busy for longer than what is measured
    first, _ = _send(h, "after", "after", hold("after"), mark="first")
    h.started(first.id)
    second, is_new = _send(h, "after", "after", mark="second")
    third, is_third_new = _send(h, "after", "after", mark="third")
    h.equal("which are new", (is_new, is_third_new, third.id), (True, False, second.id))
    h.pause(_RELAYED_S)
    h.equal("the starts while the first one runs", len(h.starts(second.id)), 0)
    h.tasks.open("after")
    ended = h.ends(h.final(first.id)[0].id or first.id)[-1].at
    took_s = h.started(second.id).at - ended
    h.in_time("the start of what follows", took_s, _relayed_s(h))
    h.finished(second.id)
    h.equal("with what it ran", _marks(h, second), ["third"])


@scenario("U5", on=(STORED,), where=with_records)
def a_debounced_message_starts_after_the_latest_send(h: Harness) -> None:
    """A debounced message starts so long after the latest send, with its arguments, and never later than at_most."""
    h.start_worker(threads=4)  # of its own, for others may keep one busy for longer than what is measured
    begun = h.bridge.now()
    item, is_new = _send(h, "debounced", "brief", mark="0")
    h.equal("whether the first is new", is_new, True)
    steady, last = _send(h, "debounced", "steady", mark="0")[0], 0
    waiting = {steady.id}
    h.pause(0.5)  # by so much the start is moved; a busy machine is not that late
    sent_at = h.bridge.now()
    h.equal("whether the second is", _send(h, "debounced", "brief", mark="1")[1], False)
    for number in (1, 2, 3):  # before it starts, if the machine does not stand still for a second
        h.pause(DEBOUNCE_S / 3)
        same, is_new = _send(h, "debounced", "steady", mark=str(number))
        h.equal("whether it is new, or one that waits", is_new, same.id not in waiting)
        waiting.add(same.id)
        last = number if same.id == steady.id else last
    started_at, limit_s = h.started(item.id).at, h.target.latest_s(0.5)
    early_s = min(sent_at + DEBOUNCE_S, begun + AT_MOST_S) - started_at
    h.check(early_s <= 0.001, f"it should start {DEBOUNCE_S:g} s after the latest send, but is {early_s:.3f} s early")
    h.in_time("its start", started_at - sent_at - DEBOUNCE_S, limit_s)
    h.in_time("the start of the steady one", h.started(steady.id).at - steady.after - AT_MOST_S, limit_s)
    h.finished(item.id, steady.id)
    until_it_is(h, item, "done")
    h.equal("with what they ran", [_marks(h, item), _marks(h, steady)], [["1"], [str(last)]])
    again, is_new = _send(h, "debounced", "brief", fail(), RETURN, mark="2")
    h.equal("whether another one is new after that", (is_new, again.id != item.id), (True, True))
    _send(h, "debounced", "brief", fail(), RETURN, mark="3")
    h.finished(again.id)
    h.equal("with what both of its attempts ran", _marks(h, again), ["3", "3"])


@scenario("U6", on=(RECORDED,), where=with_records)
def a_chosen_id_is_one_message(h: Harness) -> None:
    """The same id and call make one message, whoever sends it and whatever became of it; another call is refused."""
    chosen = f"invoice {uuid4().hex}"  # another at each run: a namespace may be that of an environment before this one
    task = h.tasks.programs["once"].using(id=chosen)

    def send(_: int) -> Handle[str]:
        return task.send(_call())

    with ThreadPoolExecutor(_SENDERS) as pool:
        handles = list(pool.map(send, range(_SENDERS)))
    h.equal("how many are new", [handle.is_new for handle in handles].count(True), 1)
    h.equal("their ids", {handle.id for handle in handles}, {chosen})
    item = h.own(handles[0])
    h.finished(item.id)
    until_it_is(h, item, "done")
    h.equal("whether it is new after its end", task.send(_call()).is_new, False)
    h.refused(IdempotencyConflict, task.send, _call(DISCARD))
    h.refused(IdempotencyConflict, h.tasks.default.using(id=item.id).send, _call())
    h.idle()
    h.equal("the starts", len(h.starts(item.id)), 1)


# The outbox. Where the broker shares the store's database, messages don't go through it.


def _has_outbox(target: Target) -> str:
    return with_records(target) or ("" if not target.keeps_marks or target.in_process else "it has one transaction")


@contextmanager
def _broken(owner: Any, name: str) -> Generator[None]:
    """Have a method that this thread calls fail before it does anything."""
    stock, thread = getattr(owner, name), threading.get_ident()

    def refuse(*given: Any, **named: Any) -> Any:
        if threading.get_ident() == thread:
            raise BrokerUnavailable("it is away for this thread", maybe_taken=False)
        return stock(*given, **named)

    setattr(owner, name, refuse)
    try:
        yield
    finally:
        delattr(owner, name)


@scenario("OB1", "U8", on=(STORED,), where=_has_outbox)
def what_is_in_the_outbox_is_published(h: Harness) -> None:
    """What a sender has put in the outbox and could not publish is published within a second."""
    h.start_worker(threads=4)  # of its own, for others may keep one busy for longer than what is measured
    plan = Plan(steps=(RETURN,))
    for number, delay_s in enumerate((0.0, 1.0)):
        task = h.tasks.unique["skip"]
        with _broken(h.bridge.broker, "park" if delay_s else "publish"):
            given = _call(), f"unpublished {number}"
            error = h.refused(BrokerUnavailable, task.schedule, delay_s, *given)
        h.check(error.maybe_taken, "the store has it, so it may be taken")
        handle = task.send(*given)
        h.equal("whether it is there", handle.is_new, False)
        item = h.own(handle, plan)
        took_s = h.started(item.id).at - item.before
        h.in_time("its start", took_s, _relayed_s(h, delay_s))
        h.check(took_s >= delay_s - 1.0, f"it should start after {delay_s:g} s, but took {took_s:.3f} s")
        h.finished(item.id)
        h.equal("its starts", len(h.starts(item.id)), 1)


@scenario("OB1", on=(RECORDED,), where=lambda target: _has_outbox(target) or with_marks(target))
def what_is_published_twice_runs_once(h: Harness) -> None:
    """What stays in the outbox though it was published is published again, and run once."""
    backend: Any = None if h.bridge.store is None else h.bridge.store.backend
    with _broken(backend, "remove_entries"):
        twice = [_send(h, "skip", f"published {number}", hold("twice"))[0] for number in range(4)]
    for item in twice:
        h.started(item.id)
    h.pause(_RELAYED_S + 0.5)  # by then each is published again
    h.tasks.open("twice")
    h.finished(*(item.id for item in twice), within_s=2 * h.patience_s)
    h.equal("the starts of each", {len(h.starts(item.id)) for item in twice}, {1})


@scenario("U8", "OB1", on=(STORED,), where=lambda target: with_processes(target) or with_records(target))
def a_killed_sender_leaves_nothing_behind(h: Harness) -> None:
    """A sender that is killed before or after it publishes leaves a message that runs once, and then a free key."""
    h.start_worker(threads=4)
    program = """
import os, signal
broker, backend = bridge.broker, bridge.store.backend
def kill(stock, after):
    def killing(*given, **named):
        if after:
            stock(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return killing
{place} = kill({place}, {after})
tasks.unique["skip"].send([{step}], "{key}")
"""
    places = ("backend.commit", "broker.publish", "backend.remove_entries")
    moments = [(place, after) for place in places for after in (False, True)]
    for number, (place, after) in enumerate(moments):
        h.in_python(program.format(place=place, after=after, step=RETURN.plain(), key=f"killed {number}"))
        killed_at = h.bridge.now()

        def runs(key: str = f"killed {number}") -> list[Any]:
            return [start for start in h.environment.runs() if start.data.get("key") == key]

        def send_next(key: str = f"killed {number}") -> list[str]:
            item, is_new = _send(h, "skip", key, mark="next")
            return [item.id] if is_new else []

        if (place, after) != moments[0]:
            start = h.until(runs, f"a run of key {number}")[0]
            h.in_time(f"the start after {place}", start.at - killed_at, _relayed_s(h))
        h.finished(*h.until(send_next, f"key {number} to be free"))
        seen = [start.data["mark"] for start in runs()]
        h.equal(f"what ran of key {number}", seen, ["next"] if (place, after) == moments[0] else ["", "next"])
