"""W: how flows come to their end, whoever dies, cancels or replays."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any, Final

from taskbridge import Message, NoSuchRecord, TaskCancelled, group
from taskbridge.contract import deaths
from taskbridge.contract.flow_plan import FlowPlan, Part, Stage, grouping, single
from taskbridge.contract.flow_steps import (
    Followed,
    begun,
    built,
    chain,
    counting,
    ends_of,
    parts,
    result_of,
    sent_by,
    starts_of,
    status_of,
)
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import DISCARD, KILL, RETURN, Step, fail, hold
from taskbridge.contract.registry import (
    FORGETFUL,
    RECORDED,
    STORED,
    scenario,
    with_marks,
    with_processes,
    with_processes_and_marks,
    with_records,
)
from taskbridge.contract.scenarios.crashes import end_dying, start_dying
from taskbridge.contract.tasks import QUEUES, Variant

_TAKEN_UP_S: Final = 10.0
"""How much longer than the lease it takes at most until another worker goes on with what a killed one had in hand."""

_LONG_S: Final = 90.0
"""How long nothing has happened in a flow that may be stalled."""

_KNOWN_S: Final = 2.0
"""After which each worker knows that a flow is over."""

_SENT_S: Final = 5.0
"""How soon the first steps of a flow are with the broker whose sender has died."""


def _send_again(h: Harness, sent: list[Message]) -> None:
    """Put other deliveries of messages on their queues, which say that they were delivered before."""
    again = [replace(message, redelivered=1) for message in sent]
    h.bridge.broker.publish(again, timeout_s=h.patience_s)


@scenario("W4", on=(STORED,), where=with_records)
def each_step_counts_once_however_it_ends(h: Harness) -> None:
    """A step counts once that is done, dead, discarded, expired, cancelled or has no result, also if it comes twice."""
    once, twice = h.tasks.parts["once"], h.tasks.parts["twice"]
    members = [
        once.call(None, Part(mark="ends cancelled").plain()),
        once.call(None, Part(mark="ends done").plain()),
        twice.call(None, Part(mark="ends later", steps=(fail(), RETURN)).plain()),
        twice.call(None, Part(mark="ends dead", steps=(fail(),)).plain()),
        once.call(None, Part(mark="ends discarded", steps=(DISCARD,)).plain()),
        once.using(expires=0.05).call(None, Part(mark="ends expired").plain()),
        h.tasks.odd.call("large"),
    ]
    flow = group(members, on_error="collect").then(once, Part(mark="ends then").plain())
    with sent_by(h) as sent:
        handle = flow.on_end(once, Part(mark="ends end").plain()).send()
    h.equal("how many are sent", len(sent), len(members))
    cancelled = h.bridge.handle(handle.status().oldest)
    h.equal("what cancelling the first one says", cancelled.cancel().state, "cancelled")
    h.pause(0.1)  # until one has expired
    if not with_marks(h.target):
        _send_again(h, sent)
    h.start_worker(threads=4)
    h.equal("the result", result_of(h, handle, within_s=2 * h.patience_s), "ends then")
    begun(h, "ends end")
    h.idle(within_s=2 * h.patience_s)
    status = handle.status()
    counts = (status.total, status.waiting, status.running, status.done, status.dead, status.discarded)
    h.equal("the counts", (*counts, status.cancelled), (8, 0, 0, 3, 2, 2, 1))
    wanted = [[end, f"ends {name}" if end == "done" else None] for name, end in _ENDS.items()]
    given = [start.data["given"] for start in starts_of(h, "ends then")]
    h.equal("what followed was given", given, [wanted])
    runs = [len(starts_of(h, f"ends {name}")) for name in (*_ENDS, "end")]
    h.equal("the starts", runs, [0, 1, 2, 2, 1, 0, 0, 1])


_ENDS: Final = {
    "cancelled": "cancelled",
    "done": "done",
    "later": "done",
    "dead": "dead",
    "discarded": "discarded",
    "expired": "discarded",
    "without a result": "dead",
}
"""How each member of that group ends."""


_SENDS: Final = """
import json, os, signal
from taskbridge.contract.flow_plan import FlowPlan
left = {moment}
def mortal(owner, name):
    stock = getattr(owner, name)
    def call(*given, **named):
        global left
        found = stock(*given, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, call)
for name in ("create", "write", "commit", "note_sent", "remove_entries"):
    mortal(bridge.store.backend, name)
mortal(bridge.broker, "publish")
FlowPlan.of(json.loads({plan!r})).built(tasks.parts).using(id={name!r}).send()
print("sent", end="")
"""
_MOST_MOMENTS: Final = 20


@scenario("W2", on=(STORED,), where=lambda target: with_processes(target) or with_records(target))
def a_killed_sender_leaves_a_flow_or_none(h: Harness) -> None:
    """A sender killed after any of its writes leaves a flow that goes on by itself, or none at all."""
    h.start_worker(threads=4)
    for kind in ("one", "many"):
        for moment in range(1, _MOST_MOMENTS):
            name = f"{kind} {moment}"
            first = single(f"{name} a") if kind == "one" else grouping(*parts(f"{name} ", 101))
            plan = chain(name, first, single(f"{name} b"))
            said = h.in_python(_SENDS.format(moment=moment, plan=json.dumps(asdict(plan)), name=name))
            killed_at = h.bridge.now()
            handle: Any = h.bridge.flow(name)
            try:
                handle.status()
            except NoSuchRecord:
                h.equal("what has run of no flow", starts_of(h, *(part.mark for part in plan.parts())), [])
                handle = built(h, plan).using(id=name).send()
                h.equal("whether it can be sent then", handle.is_new, True)
            followed = Followed(h, plan, handle=handle)
            followed.ends(within_s=h.patience_s + _SENT_S)
            took_s = begun(h, first.parts[0].mark).at - killed_at
            h.in_time(f"the first start of {name}", took_s, _SENT_S + h.target.latest_s(0.0))
            if said:
                break
        else:
            h.fail(f"a flow should be sent in fewer than {_MOST_MOMENTS} calls")
    h.idle()


@scenario("W4", "W5", on=(STORED,), where=with_processes_and_marks)
def a_killed_worker_ends_a_step_and_no_flow(h: Harness) -> None:
    """A step that is lost with its worker counts as dead, or is tried again; what waits for it starts then."""
    h.start_worker(queues=("vip",), supervised=True, answers=False)
    h.start_worker(queues=("contract",), threads=4)
    lost = Part(mark="lost x", steps=(KILL,), queue="vip")
    again = Part(mark="lost y", steps=(KILL, RETURN), policy="twice", queue="vip")
    plan = chain("lost", grouping(lost, again, *parts("lost ", 3), on_error="collect"), single("lost then"))
    followed = Followed(h, plan)
    status = followed.ends(within_s=3 * (h.spec.lease_s + _TAKEN_UP_S) + h.patience_s)
    h.equal("what is dead, and done", (status.dead, status.done), (1, 5))
    took_s = begun(h, "lost then").at - max(begun(h, "lost y", times=2).at, begun(h, "lost x").at)
    h.in_time("the start of what follows", took_s, h.spec.lease_s + _TAKEN_UP_S + h.target.latest_s(0.0))
    h.idle()


@scenario("W5", "W14", on=(STORED,), where=with_processes_and_marks)
def a_kill_beside_the_count_holds_up_no_flow(h: Harness) -> None:
    """A worker killed just before or after it counts a step, or goes on with its flow, holds it up for a while."""
    h.start_worker(queues=("contract",), threads=4)
    kinds = [*product(deaths.COUNTING, ("step", "members")), *product(deaths.BECOMING, ("become",))]
    cases = dict(zip(QUEUES[1:], kinds, strict=True))
    flows: list[tuple[str, str, Followed]] = []
    for queue, (place, kind) in cases.items():
        name = f"{place} {kind}"
        there = partial(Part, queue=queue, policy="twice")
        width = 1 if place == deaths.COUNTING[1] else 2  # alone: nobody else counts, who would go on with the flow
        first = grouping(*[there(mark=f"{name} a{number}") for number in range(width)])
        if kind != "members":
            inner = chain(f"{name} in", single(f"{name} in a")) if kind == "become" else None
            first = Stage(parts=(there(mark=f"{name} a0", becomes=inner),))
        flows.append((place, name, Followed(h, chain(name, first, single(f"{name} b")))))
    # Not before all is sent: who sends a group goes on with its flow, too, if all its members were counted meanwhile.
    end_dying(h, start_dying(h, {queue: place for queue, (place, _) in cases.items()}))
    h.start_worker(queues=tuple(cases), threads=4, answers=False)
    for place, name, followed in flows:
        marks = [part.mark for part in followed.plan.parts()]
        begun(h, f"{name} end", within_s=h.patience_s + 2 * (h.spec.lease_s + _TAKEN_UP_S))
        h.equal(f"the end of {name}", result_of(h, followed.handle), f"{name} b")
        h.idle()
        starts = {mark: len(starts_of(h, mark)) for mark in marks}
        counts = [count for mark, count in starts.items() if f"{name} a" not in mark and "failure" not in mark]
        h.equal(f"the starts of what follows in {name}: {starts}", set(counts), {1})
        own = [count for mark, count in starts.items() if f"{name} a" in mark]
        h.check(all(1 <= count <= 2 for count in own), f"each should start once or again when it was lost: {starts}")
        if place not in (deaths.COUNTING[0], deaths.BECOMING[0]):
            ended = max(end.at for mark in marks if f"{name} a" in mark for end in ends_of(h, mark))
            took_s = begun(h, marks[marks.index(f"{name} b")]).at - ended
            h.in_time(f"the start of {name} b", took_s, h.spec.lease_s + _TAKEN_UP_S + h.target.latest_s(0.0))


@scenario("W5", on=(STORED,), where=with_processes)
def a_chain_goes_on_in_the_act_that_ends_a_step(h: Harness) -> None:
    """The act that records the end of a step publishes the next one; a worker that counted the step alone would die."""
    variant = Variant(dies=deaths.named(deaths.BY_ITSELF, h.target))
    workers = [h.start_worker(threads=2, variant=variant) for _ in range(2)]  # each goes on with what the other began
    names, steps = ("one", "two", "three"), "abcdefgh"
    flows = [Followed(h, chain(name, *(single(f"{name} {step}") for step in steps))) for name in names]

    def has_died() -> bool:
        return any(worker.wait(0) is not None for worker in workers)

    def is_over() -> bool:
        return has_died() or all(each.handle.status().is_final for each in flows)

    h.until(is_over, "the end of the chains, or of a worker")
    h.check(not has_died(), "the end of a step should be recorded together with what follows it")
    for name, followed in zip(names, flows, strict=True):
        begun(h, f"{name} end")
        h.equal(f"the result of {name}", result_of(h, followed.handle), f"{name} {steps[-1]}")
        starts = {len(starts_of(h, f"{name} {step}")) for step in steps}
        h.equal(f"how often the steps of {name} have started", starts, {1})
    h.idle()


@scenario("W8", on=(STORED,), where=with_records)
def a_cancelled_flow_starts_nothing_more(h: Harness) -> None:
    """Of a cancelled flow, and of those that its steps became, nothing starts; what runs sees it, and on_end runs."""
    costs: list[int] = []
    for width in (200, 2):
        waiting = built(h, chain(f"wide {width}", grouping(*parts(f"wide {width} ", width)))).send()
        with counting(h) as made:
            h.equal("what cancelling says", waiting.cancel().state, "cancelled")
        costs.append(made["writes"])
    h.equal("what cancelling writes", costs[0], costs[1])
    watching = Step(until_cancelled=True)
    h.start_worker(threads=2)
    plain = chain("plain", grouping(*parts("plain watch", 2, watching), *parts("plain ", 10)), single("plain then"))
    inner = chain("in", grouping(*parts("in watch", 2, watching), *parts("in ", 10)), single("in then"))
    for plan in (plain, chain("outer", single("outer a", becomes=inner), single("outer then"))):
        handle = built(h, plan).send()
        prefix = "plain" if plan is plain else "in"
        for number in range(2):
            begun(h, f"{prefix} watch{number}")
        status = handle.cancel()
        h.equal("what cancelling says", (status.state, status.is_final), ("cancelled", True))
        h.refused(TaskCancelled, handle.result, h.patience_s)
        assert plan.end is not None
        end = begun(h, plan.end.mark)
        h.equal("what on_end is given", end.data["given"]["state"], "cancelled")
        h.idle()
        ran = {part.mark for part in plan.parts() if starts_of(h, part.mark)}
        callbacks = {f"{name} {kind}" for name in (prefix, "outer") for kind in ("failure", "end")}
        h.equal("what has started", ran - callbacks, {f"{prefix} watch0", f"{prefix} watch1"} | ran & {"outer a"})
        h.equal("what cancelling says again", handle.cancel().state, "cancelled")
    wide = [f"wide {width} {number}" for width in (200, 2) for number in range(width)]
    h.equal("the starts of those without a worker", starts_of(h, *wide), [])


@scenario("W10", on=(RECORDED,), where=with_records)
def a_replay_reopens_its_flow(h: Harness) -> None:
    """Replaying what is dead, one by one or by the flow's handle, runs what was given up, and nothing twice."""
    sick = partial(Part, steps=(fail(),), heals="healed")
    inner = chain("r3 in", Stage(parts=(sick(mark="r3 x"),)), single("r3 in b"))
    three = grouping(Part(mark="r0 b"), sick(mark="r0 x"), Part(mark="r0 c"), at_once=1)
    five = grouping(sick(mark="r2 x"), *parts("r2 a", 3), sick(mark="r2 y"), on_error="wait")
    plans = [
        chain("r0", single("r0 a"), three, single("r0 d")),
        chain("r1", single("r1 a"), Stage(parts=(sick(mark="r1 x"),), takes=True), single("r1 b")),
        chain("r2", five, single("r2 b")),
        chain("r3", grouping(Part(mark="r3 a", becomes=inner), Part(mark="r3 c")), single("r3 d")),
        chain("r4", single("r4 a"), single("r4 x", fail())),
    ]
    ways = [(followed, is_by_handle) for is_by_handle in (True, False) for followed in plans]
    flows = [(Followed(h, _marked(plan, f"{is_by_handle} ")), is_by_handle) for plan, is_by_handle in ways]
    for followed, _ in flows:
        followed.ends()
    h.idle()
    h.tasks.open("healed")
    for followed, is_by_handle in flows:
        ids = {start.id for start in starts_of(h, *(part.mark for part in followed.plan.parts() if _is_sick(part)))}
        if is_by_handle:
            followed.handle.retry()
        else:
            h.equal("what is replayed", set(h.bridge.dead.replay(ids).ids), ids)
        status = followed.ends(healed=("healed",))
        left = {each for each in ids if h.letters(each)}
        h.equal("the dead letters", left, set[str]() if status.state == "done" else ids)
    h.idle()
    for followed, _ in flows:
        followed.went()


@scenario("W10", on=(STORED,), where=with_records)
def a_step_that_runs_as_its_flow_goes_on_is_tried_again(h: Harness) -> None:
    """A step that still runs as its flow is reopened, and fails after that, has not ended badly: it is run again."""
    h.start_worker(threads=4)
    late = partial(Part, steps=(Step(outcome="raise", gate="late"), RETURN), policy="twice")
    sick = Part(mark="late x", steps=(fail(),), heals="healed")
    followed = Followed(h, chain("late many", grouping(sick, late(mark="late y")), single("late many b")))
    one = built(h, chain("late one", Stage(parts=(late(mark="late z"),)), single("late one b"))).send()
    for mark in ("late y", "late z"):
        begun(h, mark)
    followed.ends()
    one.cancel()
    h.pause(_KNOWN_S)
    h.tasks.open("healed")
    for handle in (followed.handle, one):
        h.equal("what it says", handle.retry().state, "running")
    begun(h, "late x", times=2)
    h.tasks.open("late")
    followed.ends(healed=("healed",))
    h.equal("the result of the other one", result_of(h, one), "late one b")
    h.idle()
    h.equal("what has started twice", [len(starts_of(h, f"late {name} b")) for name in ("many", "one")], [1, 1])


def _is_sick(part: Part) -> bool:
    return part.steps != (RETURN,)


def _marked(plan: FlowPlan, prefix: str) -> FlowPlan:
    """Return a plan whose marks begin with something more."""

    def part_of(part: Part | None) -> Any:
        if part is None:
            return None
        becomes = None if part.becomes is None else _marked(part.becomes, prefix)
        return replace(part, mark=prefix + part.mark, becomes=becomes)

    stages = tuple(replace(stage, parts=tuple(map(part_of, stage.parts))) for stage in plan.stages)
    return replace(plan, stages=stages, failure=part_of(plan.failure), end=part_of(plan.end))


@scenario("W11", on=(FORGETFUL,), where=with_records)
def nothing_of_a_flow_expires_before_its_end(h: Harness) -> None:
    """What steps returned is there for as long as the flow is not at its end, and for result_ttl after that."""
    h.start_worker(threads=4)
    held_one = Part(mark="kept x", steps=(hold("kept"),))
    name, group_ = "kept", grouping(*parts("kept b", 3), held_one)
    followed = Followed(h, chain(name, single(f"{name} a"), single(f"{name} c"), group_, single(f"{name} d")))
    begun(h, "kept x")
    h.leave_alone(3.0)  # thrice as long as records are kept
    h.equal("its state", status_of(h, followed.handle).state, "running")
    h.tasks.open("kept")
    handle = followed.handle
    h.equal("its result", result_of(h, handle), "kept d")
    wanted = ["kept b0", "kept b1", "kept b2", "kept x"]
    h.equal("what the last step was given", begun(h, "kept d").data["given"], wanted)
    begun(h, "kept end")
    h.idle()

    def is_gone() -> bool:
        try:
            handle.status()
        except NoSuchRecord:
            return True
        return False

    h.until(is_gone, "the flow to be forgotten")


@contextmanager
def _instead(owner: Any, name: str, act: Callable[..., Any]) -> Generator[None]:
    """Have something else called in the place of a method by this thread while the block runs."""
    stock, thread = getattr(owner, name), threading.get_ident()

    def call(*given: Any, **named: Any) -> Any:
        return act(*given, **named) if threading.get_ident() == thread else stock(*given, **named)

    setattr(owner, name, call)
    try:
        yield
    finally:
        delattr(owner, name)


@scenario("W11", on=(STORED,), where=with_records)
def a_flow_that_is_stalled_is_put_right(h: Harness) -> None:
    """A flow whose messages the broker has lost, or its callback, is stalled, and goes on when that is asked for."""
    two = grouping(*parts("two a", 3, queue="right"))  # each waits in a queue of its own
    plans = [chain("one", single("one a", queue="left"), single("one b")), chain("two", two, single("two b"))]
    with ExitStack() as lost:
        for name in ("publish", "commands"):  # what goes along with the store's own write, on one Redis
            if hasattr(h.bridge.broker, name):
                lost.enter_context(_instead(h.bridge.broker, name, lambda *_, **__: ()))
        flows = [Followed(h, plan) for plan in plans]
        three = built(
            h, FlowPlan(stages=(single("three a"), single("three b")), end=Part(mark="three end", queue="vip"))
        )
        called = three.send()
        called.cancel()
    handles = [*(followed.handle for followed in flows), called]
    ids = {handle.id for handle in handles}
    h.equal("whether they are stalled at once", [handle.status().is_stalled for handle in handles], [False] * 3)
    now = h.bridge.now
    with _instead(h.bridge, "now", lambda: now() + _LONG_S):
        h.equal("whether they are later", [handle.status().is_stalled for handle in handles], [True] * 3)
        h.equal("which ones are listed", {each.id for each in h.bridge.operations.flows(state="stalled").items}, ids)
        h.equal("how many are counted", h.bridge.flows.counts()["stalled"], 3)
        found = [handle.retry() for handle in handles]
        states = [(status.state, status.is_stalled) for status in found]
        h.equal("whether they go on", states, [("running", False)] * 2 + [("cancelled", False)])
    h.start_worker(threads=4)
    begun(h, "three end")
    for followed in flows:
        followed.ends()
    h.idle()
    for followed in flows:
        followed.went()
    h.equal("what has started of the one that was cancelled", len(starts_of(h, "three a", "three end")), 1)
