"""ST and RS: what a message is doing, and what came of it."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any, Final

from taskbridge import (
    NoSuchRecord,
    ResultNotEncodable,
    ResultTimeout,
    Status,
    TaskBridgeError,
    TaskDiscarded,
    TaskFailed,
    UnsupportedError,
)
from taskbridge.contract import deaths
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import DISCARD, RETURN, Plan, ask, fail, hold
from taskbridge.contract.registry import (
    RECORDED,
    STORED,
    scenario,
    with_processes,
    with_processes_and_marks,
    with_records,
)
from taskbridge.contract.rewriting import no_form
from taskbridge.contract.scenarios.crashes import end_dying, start_dying
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import QUEUES, TOO_MUCH, describe
from taskbridge.contract.values import VALUES

_HOUR_S: Final = 3600.0
_WAITERS: Final = 1000
_MORE_THREADS: Final = _WAITERS // 4
"""How many more threads there may be than before: the loop's pool, the store's, and of workers that start meanwhile."""
_LONGEST_GAP_S: Final = 5.0
"""How long an event loop may stand still on a busy machine; what blocked it would for the whole wait."""


def status_of(h: Harness, item: Sent) -> Status:
    """Return what is known of a message, which must be something."""
    try:
        return h.bridge.handle(item.id).status()
    except NoSuchRecord as exc:
        h.fail(f"there should be a record, but: {exc}")


def _read_from_bytes(target: Target) -> str:
    return with_records(target) or ("its messages have no bytes" if target.address.engine == "inline" else "")


def until_it_is(h: Harness, item: Sent, state: str) -> Status:
    """Wait until a message's record says that it is in a state, and return the record."""

    def seen() -> list[Status]:
        status = status_of(h, item)
        return [status] if status.state == state else []

    return h.until(seen, f"a record that says {state}")[0]


def result_of(h: Harness, item: Sent) -> Any:
    """Wait for a message's result, and return it; there must be one."""
    try:
        return outcome_of(h, item)
    except TaskBridgeError as exc:
        h.fail(f"{item.id} should have a result, but: {exc}")


def outcome_of(h: Harness, item: Sent) -> Any:
    """Wait for a message's result, and return it, or raise why there is none."""
    return h.bridge.handle(item.id).result(h.patience_s)


@scenario("ST1", on=(RECORDED,), where=with_records)
def a_record_is_there_when_send_returns(h: Harness) -> None:
    """There is a record as soon as send returns, however fast a worker is."""
    plan = Plan(steps=(RETURN,))

    def send(_: int) -> Sent:
        item = h.send(plan)
        status = status_of(h, item)
        h.equal("who and where it is", (status.id, status.task, status.queue), (item.id, _TASK, "contract"))
        h.check(status.state in ("queued", "running", "done"), f"it should be on its way, but is {status.state}")
        return item

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(send, range(40)))
    handles = h.tasks.programs["standard"].send_many([h.tasks.programs["standard"].call(plan.plain_steps())] * 40)
    many = [h.own(handle) for handle in handles]
    states = {status_of(h, item).state for item in many}
    h.check(states <= {"queued", "running", "done"}, f"they should be on their way, but are {states}")
    sent += many
    h.equal("the results", [result_of(h, item) for item in sent], [f"result of {item.id}" for item in sent])
    h.equal("their states at the end", {status_of(h, item).state for item in sent}, {"done"})


_TASK: Final = "contract.program.standard"


@scenario("ST1", on=(STORED,), where=with_records)
def a_record_is_there_without_a_worker(h: Harness) -> None:
    """A message has a record though no worker is up: it is queued, or scheduled until it is due."""
    queued, due, later = (h.send(Plan(steps=(RETURN,), delay_s=delay_s)) for delay_s in (0.0, 1.0, _HOUR_S))
    h.equal("the state of one that is sent", status_of(h, queued).state, "queued")
    status = status_of(h, later)
    h.equal("the state of one that is delayed", status.state, "scheduled")
    due_at = 0.0 if status.due_at is None else status.due_at.timestamp()
    h.check(
        later.before <= due_at - _HOUR_S <= later.after + 0.001, f"it is due in an hour, but its record says {due_at}"
    )
    h.until(lambda: status_of(h, due).state == "queued", "one that is due to be queued")
    h.refused(NoSuchRecord, h.bridge.handle("no-such-id").status)


@scenario("ST1", "ST2", on=(RECORDED,), where=with_records)
def a_record_goes_along(h: Harness) -> None:
    """A record says that a message runs, and where; that its next attempt waits, until when, and why; how it ended."""
    (item,) = h.begin(Plan(steps=(replace(ask(5.0), gate="first"), hold("second"))))
    running = until_it_is(h, item, "running")
    h.equal("its attempts", [(each.number, each.ended_at) for each in running.attempts], [(1, None)])
    pid = h.starts(item.id)[0].pid
    h.check(running.attempts[0].worker.endswith(f":{pid}"), f"process {pid} runs it, not {running.attempts[0].worker}")
    h.tasks.open("first")
    retrying = until_it_is(h, item, "retrying")
    h.check(retrying.due_at is not None, "it should say when the next attempt is due")
    h.equal("why", None if retrying.error is None else retrying.error.message, "the program asks for it")
    h.started(item.id, times=2)
    until_it_is(h, item, "running")
    h.tasks.open("second")
    h.equal("the result", result_of(h, item), f"result of {item.id}")
    done = status_of(h, item)
    h.equal("its state", (done.state, done.is_final, done.due_at, done.error), ("done", True, None, None))
    errors = [(each.number, each.error is None) for each in done.attempts]
    h.equal("its attempts, and whether they failed", errors, [(1, False), (2, True)])
    times = [moment for each in done.attempts for moment in (each.started_at, each.ended_at)]
    h.check(None not in times and times == sorted(times, key=str), f"its times should follow one another: {times}")
    h.idle()


@scenario("ST2", "RS2", on=(RECORDED,), where=with_records)
def every_end_is_recorded(h: Harness) -> None:
    """A record tells how a message ended, and asking for its result raises that: as text, and nothing is unpickled."""
    dead, gave_up, discarded, expired = (
        h.send(Plan(steps=(fail("KeyError"),), policy="once")),
        h.send(Plan(steps=(fail("PermanentError"),), policy="giving_up")),
        h.send(Plan(steps=(DISCARD,))),
        h.send(Plan(steps=(RETURN,), delay_s=1.0, expires_s=0.2)),
    )
    error = h.refused(TaskFailed, outcome_of, h, dead)
    h.equal("its error", (error.reason, error.type, error.message), ("exhausted", "KeyError", "'as the program says'"))
    h.check("in _program" in error.traceback, f"it should tell where, but has {error.traceback!r}")
    error = h.refused(TaskFailed, outcome_of, h, gave_up)
    kind = "taskbridge.contract.program.PermanentError"
    h.equal("the error of one that gave up", (error.reason, error.type), ("gave_up", kind))
    dropped = h.refused(TaskDiscarded, outcome_of, h, discarded)
    h.equal("why it was discarded", dropped.reason, "the program says so")
    late = h.refused(TaskDiscarded, outcome_of, h, expired)
    h.equal("why it was discarded", late.reason, "expired")
    statuses = [status_of(h, item) for item in (dead, gave_up, discarded, expired)]
    h.equal("the states", [status.state for status in statuses], ["dead", "dead", "discarded", "discarded"])
    h.equal("the runs", [len(status.attempts) for status in statuses], [1, 1, 1, 0])
    h.check(all(status.ended_at is not None for status in statuses), "they should tell when they ended")
    h.idle()


@scenario("ST2", "L2", on=(RECORDED,), where=with_records)
def a_replay_is_recorded(h: Harness) -> None:
    """A replay makes a message queued again, with attempts from 1, until its new end."""
    (item,) = h.begin(Plan(steps=(replace(fail(), gate="replayed"),), policy="twice"))
    h.tasks.open("replayed")
    h.refused(TaskFailed, outcome_of, h, item)
    h.equal("its attempts", [each.number for each in status_of(h, item).attempts], [1, 2])
    h.bridge.dead.replay(item.id)
    status = status_of(h, item)
    h.equal("how often it was replayed", status.replays, 1)
    h.refused(TaskFailed, outcome_of, h, item)
    status = status_of(h, item)
    h.equal("its second end", (status.state, status.replays), ("dead", 1))
    h.equal("its attempts since", [each.number for each in status.attempts], [1, 2])
    h.equal("its starts", [start.attempt for start in h.starts(item.id)], [1, 2, 1, 2])
    h.idle()


@scenario("RS2", "Q7", on=(STORED,), where=_read_from_bytes)
def what_cannot_be_read_is_recorded_as_dead(h: Harness) -> None:
    """Who waits for a message that no worker can read is told that it is dead."""
    h.start_worker()
    item = h.send_rewritten(no_form)
    error = h.refused(TaskFailed, outcome_of, h, item)
    h.equal("its reason", error.reason, "undecodable")
    h.equal("what is known of it", status_of(h, item).state, "dead")
    h.idle()


@scenario("ST3", on=(RECORDED,), where=with_records)
def what_is_not_to_be_recorded_is_not(h: Harness) -> None:
    """A task with results=False has no record, and returns what it likes."""
    handle = h.tasks.silent.send()
    item = h.own(handle)
    for ask_for in (handle.status, handle.result, handle.cancel):
        h.says(h.refused(UnsupportedError, ask_for), "results=False")
    h.refused(NoSuchRecord, h.bridge.handle(item.id).status)
    h.equal("how it ended", h.final(item.id)[0].kind, "succeeded")
    h.idle()
    h.refused(NoSuchRecord, h.bridge.handle(item.id).status)


@scenario("RS1", on=(RECORDED,), where=with_records)
def results_come_back_as_they_were(h: Harness) -> None:
    """What a task returns is its result, equal and of the same type; None too."""
    handles = h.tasks.returning.send_many([h.tasks.returning.call(value) for value in VALUES])
    for handle, value in zip(handles, VALUES, strict=True):
        item = h.own(handle)
        h.equal("a result", describe(result_of(h, item)), describe(value))
    h.equal("what a task returns that returns nothing", result_of(h, h.own(h.tasks.echo.send(1))), None)
    coroutine = h.own(h.tasks.coroutine.send([RETURN.plain()]))
    h.equal("the result of a coroutine", result_of(h, coroutine), f"result of {coroutine.id}")
    h.idle()


def _with_another_engine(target: Target) -> str:
    if reason := with_processes(target) or with_records(target):
        return reason
    other = _OTHER[target.address.engine]
    return "" if importlib.util.find_spec(other) else f"engine {other} is not installed"


_OTHER: Final = {"celery": "dramatiq", "dramatiq": "celery"}


@scenario("RS1", on=(STORED,), where=_with_another_engine)
def a_handle_outlives_a_switch_of_engines(h: Harness) -> None:
    """What another engine has run, on another broker even, is known here by its id: they share the store."""
    store = h.target.store or ""
    broker = store if store.startswith("redis:") else h.target.url.partition("+")[2]
    other = Target.of(f"{_OTHER[h.target.address.engine]}+{broker}", store=h.target.store)
    with h.environment.beside(other, namespace=h.environment.namespace) as beside:
        there = Harness(beside)
        done = there.own(there.tasks.returning.send({"kept": (1, 2.5)}))
        dead = there.send(Plan(steps=(fail(),), policy="once"))
        h.equal("what is known of it here", status_of(h, done).state, "queued")
        beside.start_worker(answers=False)
        h.equal("the result, asked for here", result_of(h, done), {"kept": (1, 2.5)})
        h.equal("the failure, asked for here", h.refused(TaskFailed, outcome_of, h, dead).type, "ValueError")
        engines = {start.data["engine"] for item in (done, dead) for start in there.starts(item.id)}
        h.equal("the engines that ran it", engines, {other.address.engine})
        there.idle()


@scenario("RS2", on=(RECORDED,), where=with_records)
def a_result_is_final(h: Harness) -> None:
    """Who waits for a result gets it when the last attempt has ended, whatever became of those before."""
    item = h.send(Plan(steps=(fail(), ask(0.2), hold("final"))))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result_of, h, item)
        h.started(item.id, times=3)
        error = h.refused(ResultTimeout, h.bridge.handle(item.id).result, 0.2)
        h.check(error.state in ("queued", "running", "retrying"), f"it should be on its way, but is {error.state}")
        h.check(not waiting.done(), "nobody should have a result before there is one")
        h.tasks.open("final")
        h.equal("the result", waiting.result(h.patience_s), f"result of {item.id}")
    h.idle()


@scenario("RS2", "ST2", "A8", on=(STORED,), where=with_processes_and_marks)
def a_kill_beside_the_record_leaves_none_open(h: Harness) -> None:
    """A worker killed just before or just after it records an end leaves no message without one."""
    plans = (Plan(steps=(RETURN,)), Plan(steps=(fail(),), policy="once"))
    cases = dict(zip(QUEUES, product(deaths.RECORDING, plans), strict=False))
    dying = start_dying(h, {queue: place for queue, (place, _) in cases.items()})
    sent = [h.send(replace(plan, queue=queue)) for queue, (_, plan) in cases.items()]
    end_dying(h, dying)
    h.start_worker(threads=4, answers=False)
    limit_s = h.spec.lease_s + 10 + h.patience_s
    h.until(lambda: all(status_of(h, item).is_final for item in sent), "the end of each record", within_s=limit_s)
    h.idle()
    states = [status_of(h, item).state for item in sent]
    h.equal("how they ended", states, ["done", "dead"] * 2)
    h.equal("the starts of what was recorded as done", len(h.starts(sent[2].id)), 1)


@scenario("RS3", on=(RECORDED,), where=with_records)
def what_returned_is_not_run_again(h: Harness) -> None:
    """A function that returned ten megabytes, or an unknown type, is done; who asks for the result is told why not."""
    large, odd = h.own(h.tasks.odd.send("large")), h.own(h.tasks.odd.send("object"))
    error = h.refused(ResultNotEncodable, outcome_of, h, large)
    h.says(error, f"{TOO_MUCH + 2} bytes, more than max_message_bytes = {h.spec.max_message_bytes}")
    error = h.refused(ResultNotEncodable, outcome_of, h, odd)
    for text in ('result["deep"][0]', "builtins.object", "results=False"):
        h.says(error, text)
    h.idle()
    for item in (large, odd):
        status = status_of(h, item)
        seen = (status.state, [each.error for each in status.attempts], h.final(item.id)[0].kind)
        h.equal("its state, its runs' errors and the hook", seen, ("done", [None], "succeeded"))
        h.equal("its starts", len(h.starts(item.id)), 1)


@scenario("RS4", on=(RECORDED,), where=with_records)
def a_thousand_wait_at_once(h: Harness) -> None:
    """A thousand wait for results at once, hold no thread each, and keep no event loop from its work."""
    sent = h.begin(*[Plan(steps=(hold("thousand"),)) for _ in range(4)])
    try:
        results = asyncio.run(_all_waiting(h, sent))
    except asyncio.TimeoutError:
        h.fail("they should be woken, and leave threads of the loop's pool for others")
    h.equal("how many got it", len(results), _WAITERS)
    h.equal("what they got", set(results), {f"result of {item.id}" for item in sent})
    h.idle()


@scenario("RS4", on=(STORED,), where=with_records)
def who_waits_is_told_when_nothing_is_known_any_more(h: Harness) -> None:
    """Who waits for a result, by a thread or a coroutine, learns within ten seconds that the record is gone."""
    if h.target.address.engine == "inline":
        h.start_worker()  # else who waits would run the message at once
    handle = h.bridge.handle(h.send(Plan(steps=(RETURN,), delay_s=_HOUR_S)).id)
    records = h.bridge.records
    if records is None:
        h.fail("there should be records")
    wait_s = _LOOKS_S + h.slack_s + 5
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(handle.result, wait_s), pool.submit(lambda: asyncio.run(handle.aresult(wait_s)))]
        h.pause(_WAITING_S)
        h.check(not any(each.done() for each in waiting), "they should wait")
        records.forget([handle.id], timeout_s=h.patience_s)
        forgotten_at = time.monotonic()
        for each in waiting:
            h.refused(NoSuchRecord, each.result)
        h.in_time("the news", time.monotonic() - forgotten_at, _LOOKS_S)


_WAITING_S: Final = 0.5
_LOOKS_S: Final = 10.0
"""How long it may take until whoever waits looks again (rule RS4)."""


@scenario("RS5", on=(RECORDED,), where=with_records)
def a_task_does_not_wait_for_a_result(h: Harness) -> None:
    """A task that would wait for a result is refused at once, and has one that is there with a timeout of 0."""
    done = h.own(h.tasks.returning.send({"kept": 1}))
    result_of(h, done)
    asking = h.own(h.tasks.asking.send(done.id))
    h.equal("what the task was told", result_of(h, asking), describe({"kept": 1}))
    h.idle()


async def _all_waiting(h: Harness, sent: list[Sent]) -> list[Any]:
    threads = threading.active_count()
    handles = [h.bridge.handle(sent[number % len(sent)].id) for number in range(_WAITERS)]
    waiting = [asyncio.create_task(handle.aresult(h.patience_s * 3)) for handle in handles]
    longest_s = 0.0
    for _ in range(20):
        before = time.monotonic()
        await asyncio.sleep(0.05)
        longest_s = max(longest_s, time.monotonic() - before)
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0), h.patience_s)  # there is a thread for others
    h.in_time("the next turn of the loop", longest_s, h.scaled(_LONGEST_GAP_S))
    more = threading.active_count() - threads
    h.check(more < _MORE_THREADS, f"they should not need a thread each, but there are {more} more")
    h.check(not any(task.done() for task in waiting), "none of them should have a result already")
    h.tasks.open("thousand")
    return await asyncio.wait_for(asyncio.gather(*waiting), h.patience_s)
