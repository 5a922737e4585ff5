"""W: what follows a task, one thing after another and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Final, cast
from uuid import uuid4
from weakref import WeakSet

from taskbridge import (
    Call,
    EncodeError,
    IdempotencyConflict,
    MessageTooLarge,
    TaskBridgeError,
    TaskFailed,
    UnknownQueue,
    group,
)
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.flow_plan import FlowPlan, Part, grouping, single, told
from taskbridge.contract.flow_steps import (
    Followed,
    begun,
    built,
    chain,
    counting,
    ends_of,
    parts,
    result_of,
    starts_of,
)
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import DISCARD, RETURN, Step, ask, fail, hold
from taskbridge.contract.registry import (
    ORDINARY,
    RECORDED,
    STORED,
    scenario,
    with_processes_and_marks,
    with_records,
)
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import describe
from taskbridge.contract.values import VALUES

_FOLLOWS_S: Final = 1.0
"""How soon after the last end what follows is with the broker."""

_WIDTH: Final = 1500
_HELD: Final = 700
"""How many calls of a group that wide are in a sender's memory at most, with those that others make meanwhile."""


_OTHER: Final = {"celery": "dramatiq", "dramatiq": "celery"}


def _other_url(target: Target) -> str:
    engine = target.address.engine
    return target.url.replace(engine, _OTHER[engine], 1)


def _with_the_other_engine(target: Target) -> str:
    other = _OTHER.get(target.address.engine)
    missing = "" if other is None or find_spec(other) is not None else f"{other} is not installed"
    return with_processes_and_marks(target) or missing


@scenario("W1", on=(RECORDED,), where=with_records)
def a_flow_is_checked_as_it_is_built(h: Harness) -> None:
    """What does not fit in a flow is refused where it is built or sent, and nothing of it is run."""
    task, number = h.tasks.parts["once"], h.tasks.counted
    part = Part(mark="unchecked").plain()
    first = task.call(None, part)
    untyped: Any = first
    for wrong in (
        lambda: untyped.then(task),  # an argument is missing
        lambda: untyped.then(task, part, 1),
        lambda: untyped.then(print),
        lambda: untyped.then_call(task),
        lambda: untyped.on_failure(task, part, part),
        lambda: untyped.on_end(print),
        lambda: cast("Any", number.call(1)).then(h.tasks.asking),  # which takes text
        lambda: group([first, cast("Any", 1)]),
        lambda: group(cast("Any", 5)),
    ):
        h.refused(TypeError, wrong)
    for wrong in (
        lambda: group([first], at_once=0),
        lambda: group([first], on_error=cast("Any", "ignore")),
        lambda: task.using(id="chosen").call(None, part).then(task, part),
        lambda: h.tasks.unique["skip"].call([], "key").then_call(first),
    ):
        h.refused(ValueError, wrong)
    for error, last in (
        (EncodeError, task.call(object(), part)),
        (MessageTooLarge, task.call("x" * 2 * h.spec.max_message_bytes, part)),
        (UnknownQueue, task.using(queue="nowhere").call(None, part)),
    ):
        for flow in (first.then_call(last), first.then_call(group([last])), group([first, last])):
            h.refused(error, flow.send)
    h.refused(TypeError, group(cast("Any", each) for each in (first, 1)).send)
    h.idle()
    h.equal("what has run", starts_of(h, "unchecked"), [])


@scenario("W2", on=(RECORDED,), where=with_records)
def the_same_id_is_one_flow(h: Harness) -> None:
    """The same id and calls make one flow, whoever sends it and when; other calls are refused, also after its end."""
    name = f"nightly {uuid4().hex}"  # another at each run: a namespace may be that of an environment before this one
    plan = chain(name, single(f"{name} a"), grouping(*parts(f"{name} b", 3)), single(f"{name} c"))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(built(h, plan).using(id=name).send) for _ in range(8)]
    handles = [future.result() for future in futures]
    h.equal("how many are new", [handle.is_new for handle in handles].count(True), 1)
    h.equal("their ids", {handle.id for handle in handles}, {name})
    followed = Followed(h, plan, handle=handles[0])
    followed.ends()
    h.equal("whether it is new after its end", asyncio.run(built(h, plan).using(id=name).asend()).is_new, False)
    h.refused(IdempotencyConflict, built(h, replace(plan, end=None)).using(id=name).send)
    h.idle()
    followed.went()


@scenario("W2", "D1", on=(RECORDED,), where=with_records)
def a_delayed_flow_begins_in_time(h: Harness) -> None:
    """The first stage of a flow that is scheduled waits as long as that says, and what follows does not."""
    plans = [
        chain("later", single("later a"), single("later b")),
        chain("later many", grouping(*parts("later many ", 3)), single("later many b")),
    ]
    before = h.bridge.now()
    flows = [Followed(h, plan, when_s=2.0) for plan in plans]
    for followed in flows:
        followed.ends()
        first = begun(h, followed.plan.stages[0].parts[0].mark).at
        h.check(first >= before + 2.0, f"it should start after 2 s, but started after {first - before:.3f} s")
    h.idle()


@scenario("W3", on=(STORED,), where=with_records)
def a_step_is_an_ordinary_message(h: Harness) -> None:
    """A step has its own queue, priority, headers, retries, record and dead letter, like any message."""
    h.start_worker(threads=4)
    twice, high = h.tasks.parts["twice"], "high" if h.keeps_priorities() else "normal"
    failing = Part(mark="ordinary b", steps=(fail(), RETURN)).plain()
    dying = Part(mark="ordinary c", steps=(fail("KeyError"),)).plain()
    flow = (
        h.tasks.parts["once"]
        .using(queue="left", headers={"who": "a"})
        .call(None, Part(mark="ordinary a").plain())
        .then(twice.using(queue="right", headers={"who": "b", "n": 1}, priority=cast("Any", high)), failing)
        .then(twice, dying)
    )
    handle = flow.send()
    error = h.refused(TaskFailed, handle.result, h.patience_s)
    h.equal("its error", (error.reason, error.type), ("exhausted", "KeyError"))
    h.idle()
    seen = {name: starts_of(h, f"ordinary {name}") for name in "abc"}
    h.equal("the attempts", [[start.attempt for start in seen[name]] for name in "abc"], [[1], [1, 2], [1, 2]])
    contexts = [seen[name][-1].data["context"] for name in "abc"]
    h.equal("the queues", [context["queue"] for context in contexts], ["left", "right", "contract"])
    h.equal("the headers", [context["headers"] for context in contexts], [{"who": "a"}, {"who": "b", "n": 1}, {}])
    h.equal("the priorities", [context["priority"] for context in contexts], ["normal", high, "normal"])
    ids = [seen[name][0].id for name in "abc"]
    statuses = [h.bridge.handle(each).status() for each in ids]
    h.equal("the records", [each.state for each in statuses], ["done", "done", "dead"])
    h.equal("the attempts recorded", [len(each.attempts) for each in statuses], [1, 2, 2])
    h.equal("a result", h.bridge.handle(ids[1]).result(0), "ordinary b")
    h.equal("the dead letters", [len(h.letters(each)) for each in ids], [0, 0, 1])


@scenario("W5", on=(STORED,), where=with_records)
def what_follows_starts_in_time(h: Harness) -> None:
    """On an idle worker, what follows is published within a second of the last end that it waits for."""
    h.start_worker(threads=4)
    name = "timely"
    stages = [single(f"{name} a"), single(f"{name} b"), grouping(*parts(f"{name} c", 6)), single(f"{name} d")]
    plan = chain(name, *stages)
    Followed(h, plan).ends()
    assert plan.end is not None
    marks = [[part.mark for part in stage.parts] for stage in stages] + [[plan.end.mark]]
    for before, after in pairwise(marks):
        ended = max(end.at for mark in before for end in ends_of(h, mark))
        started = min(start.at for start in starts_of(h, *after))
        h.in_time(f"the start of {after[0]}", started - ended, _FOLLOWS_S + h.target.latest_s(0.0))
        h.check(started >= ended, f"{after[0]} started before all of {before} had ended")
    h.idle()


@scenario("W6", "W14", on=(RECORDED,), where=with_records)
def flows_go_as_their_policies_say(h: Harness) -> None:
    """What ends badly does what on_error says, and each callback runs once, on_end last; groups may be empty."""
    dead, gone, late = partial(Part, steps=(fail(),)), partial(Part, steps=(DISCARD,)), Step(sleep_s=0.3)
    plans = [
        chain("p0", single("p0 a"), single("p0 b", fail(), RETURN, policy="twice"), single("p0 c", takes=False)),
        chain("p1", single("p1 a"), single("p1 b", fail()), single("p1 c")),
        chain("p2", single("p2 a", DISCARD), grouping(*parts("p2 b", 2))),
        chain("p3", grouping(), single("p3 a"), grouping(on_error="collect"), single("p3 b")),
        chain("p4", grouping(*parts("p4 a", 4, late), dead(mark="p4 x")), single("p4 b")),
        chain("p5", grouping(dead(mark="p5 x"), *parts("p5 a", 4), at_once=1), single("p5 b")),
        chain("p6", grouping(dead(mark="p6 x"), gone(mark="p6 y"), *parts("p6 a", 4, late), on_error="wait")),
        chain(
            "p7", grouping(*parts("p7 a", 3), dead(mark="p7 x"), gone(mark="p7 y"), on_error="collect"), single("p7 b")
        ),
        chain("p8", grouping(dead(mark="p8 x"), *parts("p8 a", 7), on_error="collect", at_once=2)),
        FlowPlan(stages=(grouping(*parts("p9 a", 3)), grouping(*parts("p9 b", 3)), single("p9 c"))),
    ]
    inner = chain("q in", single("q in a", takes=False), grouping(*parts("q in b", 3)))
    lost = chain("r in", grouping(dead(mark="r in x"), *parts("r in b", 2), on_error="wait"), single("r in c"))
    deep = chain("s mid", single("s mid a", becomes=chain("s in", grouping(*parts("s in b", 2)), single("s in c"))))
    plans += [
        chain("q", single("q a", becomes=inner), single("q b")),
        chain("r", grouping(Part(mark="r a", becomes=lost), Part(mark="r b"), on_error="collect"), single("r c")),
        chain("s", single("s a", becomes=deep), single("s b")),
        chain("t", single("t a", becomes=chain("t in", single("t in a", fail()))), single("t b")),
    ]
    flows = [Followed(h, plan) for plan in plans]
    for followed in flows:
        followed.ends()
    h.idle()
    for followed in flows:
        followed.went()
        failure, end = (followed.plan.failure, followed.plan.end)
        if end is not None and failure is not None and (failed := ends_of(h, failure.mark)):
            h.check(failed[-1].at <= starts_of(h, end.mark)[0].at, f"{end.mark} should come after {failure.mark}")


@scenario("W7", on=(RECORDED,), where=with_records)
def what_is_passed_is_as_large_as_it_is(h: Harness) -> None:
    """Large values, many values, and values of every type are passed on, equal and of the same type."""
    value, some = h.tasks.returning, [str(number) * (h.spec.max_message_bytes // 8) for number in range(20)]
    large = "\u00e9" * (h.spec.max_message_bytes // 6 - 20)  # as JSON, each takes 6 bytes
    task = h.tasks.parts["once"]
    flows = [
        value.call(large).then(value).then(task, Part(mark="large").plain()),
        group(value.call(each) for each in some).then(task, Part(mark="some").plain()),
        group([value.call(large)]).then(value).then(task, Part(mark="large results").plain()),
    ]
    handles = [flow.send() for flow in flows]
    every = group(value.call(each) for each in VALUES).send()
    for handle in handles:
        result_of(h, handle)
    given = [start.data["given"] for name in ("large", "some", "large results") for start in starts_of(h, name)]
    h.equal("what was given", given, [told(large), told(some), told([large])])
    found = result_of(h, every)
    h.equal("how many results there are", len(found), len(VALUES))
    h.equal("the results", [describe(each) for each in found], [describe(each) for each in VALUES])
    h.equal("the last ones", [describe(each) for each in found[-3:]], [describe(each) for each in VALUES[-3:]])
    h.idle()


@scenario("W9", on=(STORED,), where=with_records)
def a_status_is_exact_and_costs_the_same(h: Harness) -> None:
    """A status tells how many steps have ended and how, and takes as many reads for many members as for a few."""
    wide, few = (built(h, chain(f"cost {n}", grouping(*parts(f"cost {n} ", n)))).send() for n in (300, 10))
    costs: list[int] = []
    for handle in (wide, few):
        with counting(h) as made:
            handle.status()
        costs.append(made["reads"] + made["writes"])
    h.equal("what a status costs", costs[0], costs[1])
    wide.cancel()
    few.cancel()
    h.start_worker(threads=6)
    members = [hold("exact"), RETURN, fail(), DISCARD, *[hold("exact")] * 4]
    group_of = [Part(mark=f"exact {number}", steps=(step,)) for number, step in enumerate(members)]
    followed = Followed(h, chain("exact", grouping(*group_of, on_error="collect", at_once=4), single("exact then")))
    first = begun(h, "exact 0").id
    wanted = ("running", 1, 2, 9, 2, 4, 1, 1, 1, 0, first)

    def seen() -> tuple[Any, ...]:
        found = followed.handle.status()
        counts = (found.total, found.waiting, found.running, found.done, found.dead, found.discarded, found.cancelled)
        return found.state, found.stage, found.stages, *counts, found.oldest

    h.until(lambda: len(starts_of(h, *[part.mark for part in group_of])) >= 7, "seven members to have started")
    with suppress(ContractFailure):  # which does not tell what it is instead
        h.until(lambda: seen() == wanted, "its status")
    h.equal("the status", seen(), wanted)
    h.tasks.open("exact")
    followed.ends()
    h.equal("the status at its end", seen(), ("done", 2, 2, 9, 0, 0, 7, 1, 1, 0, ""))


@scenario("W12", on=(STORED,), where=_with_the_other_engine)
def a_flow_goes_on_with_another_engine(h: Harness) -> None:
    """What one engine has begun, another goes on with, when its workers have taken the place of the first ones'."""
    worker = h.start_worker(threads=2)
    plan = chain("moved", single("moved a", ask(4.0), RETURN, policy="twice"), single("moved b"))
    sent = built(h, plan).send()
    first = begun(h, "moved a")
    h.until(partial(ends_of, h, "moved a"), "the end of its first attempt")
    h.stop(worker)
    target = Target.of(_other_url(h.target), store=h.target.store, braces=h.target.braces)
    with h.environment.beside(target, namespace=h.environment.namespace) as environment:
        own = Harness(environment)
        own.start_worker(threads=2)
        handle: Any = environment.bridge.flow(sent.id)
        h.equal("its result", result_of(h, handle, within_s=h.patience_s + 10.0), "moved b")
        begun(own, "moved end")
        own.idle()
        runs = [(start.data["mark"], start.data["engine"]) for start in (first, *starts_of(own, "moved a", "moved b"))]
        engines = h.target.address.engine, target.address.engine
        wanted = [("moved a", engines[0]), ("moved a", engines[1]), ("moved b", engines[1])]
        h.equal("what ran where", runs, wanted)
        own.close()


class _Header(str):
    """A header, which can be referred to weakly, and so tells whether its call is still held."""


@scenario("W13", on=(STORED,), where=with_records)
def a_group_of_any_width_is_sent_in_batches(h: Harness) -> None:
    """A generator's calls are read and sent some at a time; with at_once, no more of them are in the broker."""
    held: list[int] = []
    alive: WeakSet[_Header] = WeakSet()  # those of calls that are still held

    def calls() -> Iterator[Call[int]]:
        for number in range(_WIDTH):
            if number % 300 == 299:
                held.append(len(alive))
            header = _Header(number)
            alive.add(header)
            yield h.tasks.counted.using(headers={"number": header}).call(number)

    flow = group(calls())
    with counting(h) as made:
        wide = flow.send()
    h.check(max(held) <= _HELD, f"at most {_HELD} calls should be in memory, but these were: {held}")
    h.check(made["calls"] <= _WIDTH // 10, f"{_WIDTH} members should go in batches, but took {made['calls']} calls")
    again = h.refused(TaskBridgeError, flow.send)
    h.check("generator" in str(again), f"a generator is read once, which should be told, not {again}")
    waiting = sum(h.bridge.counts().waiting.values())
    narrow = Followed(h, chain("at once", grouping(*parts("at once ", 40, Step(sleep_s=0.02)), at_once=3)))
    more = sum(h.bridge.counts().waiting.values()) - waiting
    h.check(0 < more <= 3, f"at most 3 members should be in the broker, but there are {more}")
    h.start_worker(threads=8)
    narrow.ends(within_s=h.patience_s + 20)
    runs = [(start.at, 1) for start in starts_of(h, *(f"at once {number}" for number in range(40)))]
    runs += [(ends_of(h, f"at once {number}")[0].at, -1) for number in range(40)]
    at_once = most = 0
    for _, change in sorted(runs):
        at_once += change
        most = max(most, at_once)
    h.check(most <= 3, f"at most 3 members should run at once, but {most} did")
    found = result_of(h, wide, within_s=h.patience_s + 20)
    h.check(list(found) == list(range(_WIDTH)), "the results should be those of the members, in their order")
    h.idle()


@scenario("W15", on=(ORDINARY,))
def flows_need_a_store(h: Harness) -> None:
    """Without a store a flow is refused, with what would help; with one, it is run."""
    if h.target.address.broker == "amqp":
        h.equal("what is said without a store", h.in_python(_WITHOUT_STORE), "W15 W15 ")
        return
    Followed(h, chain("stored", single("stored a"), grouping(*parts("stored b", 2)), single("stored c"))).ends()
    h.idle()


_WITHOUT_STORE: Final = """
from taskbridge import UnsupportedError, group
call = tasks.counted.call(1)
for flow in (call.then(tasks.counted, 2), group([call])):
    try:
        flow.send()
    except UnsupportedError as exc:
        print("W15" if "W15" in str(exc) and "TASKBRIDGE_STORE" in str(exc) else exc, end=" ")
"""
