"""Q: queues and routes."""

from __future__ import annotations

import importlib.util
from math import inf, nan
from typing import Any, Final

from taskbridge import Bridge, UnknownQueue
from taskbridge.contract.clients import send_by_own_client, with_own_client
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.harness import FINAL, Harness, Sent
from taskbridge.contract.program import RETURN, Plan, ask, fail
from taskbridge.contract.registry import (
    ALONE,
    BRIEFLY_UNKNOWN,
    STORED,
    scenario,
    with_processes,
    with_processes_and_marks,
    with_readable_queue_types,
)
from taskbridge.contract.rewriting import BINARY, GARBAGE, HUGE_BYTES, Rewrite, binary, garbage, huge, no_form, odd_eta
from taskbridge.contract.scenarios.queue_types import declared_types
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import LATE, QUEUES, Variant

_MOST_LINES: Final = 1500
"""How many lines a worker may write about two dozen odd messages, some of them with a traceback of several errors."""

_ONCE: list[dict[str, Any]] = [RETURN.plain()]


@scenario("Q1", on=(ALONE,))
def queues_are_chosen_in_order(h: Harness) -> None:
    """What a call asks for, a route, the decorator, the default: in this order."""
    tasks = h.tasks
    cases = {
        "vip": (tasks.routed.using(queue="vip"), tasks.decorated.using(queue="vip"), tasks.default.using(queue="vip")),
        "routed": (tasks.routed,),
        "decorated": (tasks.decorated,),
        "contract": (tasks.default,),
    }
    sent = [(queue, h.own(task.send(_ONCE))) for queue, chosen in cases.items() for task in chosen]
    waiting = {queue: count for queue, count in h.bridge.counts().waiting.items() if count}
    h.equal("what waits", waiting, {"vip": 3, "routed": 1, "decorated": 1, "contract": 1})
    h.start_worker()
    h.final(*(item.id for _, item in sent))
    for queue, item in sent:
        h.equal("the queue that the task was told", h.starts(item.id)[0].data["context"]["queue"], queue)


@scenario("Q2", on=(ALONE,))
def unknown_queues_are_refused(h: Harness) -> None:
    """Only known queues are sent to."""
    task = h.tasks.default
    for queue, nearest in (("vipp", "vip"), ("contrat", "contract"), ("decorate", "decorated")):
        elsewhere = task.using(queue=queue)
        h.says(h.refused(UnknownQueue, elsewhere.send, _ONCE), f"'{nearest}'")
        h.refused(UnknownQueue, elsewhere.schedule, 60, _ONCE)
        h.refused(UnknownQueue, task.send_many, [elsewhere.call(_ONCE)])
    for name in ("", "1st", "a b", "a:b", "-a", "a" * 101, "\u00fc"):
        h.refused(ValueError, task.using, queue=name)
    counts = h.bridge.counts()
    h.check(not counts.delayed and not any(counts.waiting.values()), f"nothing should be sent, but there is {counts}")


@scenario("Q3", "Q4", on=(ALONE,))
def workers_serve_their_queues(h: Harness) -> None:
    """A worker serves its own queues, and what comes back comes back to its queue."""
    first = h.start_worker(queues=("left",), threads=2)
    left = _on_queue(h, "left")
    right = _on_queue(h, "right")
    h.final(*(item.id for item in left))
    h.until(lambda: h.bridge.counts().waiting["right"] == len(right), "every message on the other queue to wait there")
    h.equal("the runs of the queue that nobody serves", [len(h.starts(item.id)) for item in right], [0] * len(right))
    h.stop(first)
    h.start_worker(queues=("right",), threads=2)
    h.compare([*left, *right])


def _on_queue(h: Harness, queue: str) -> list[Sent]:
    plans = (
        Plan(steps=(RETURN,), queue=queue),
        Plan(steps=(fail(), fail(), RETURN), queue=queue),
        Plan(steps=(ask(0.3), RETURN), queue=queue),
        Plan(steps=(RETURN,), queue=queue, delay_s=0.6),
    )
    return [h.send(plan) for plan in plans]


def _other_engine(target: Target) -> str:
    return {"celery": "dramatiq", "dramatiq": "celery"}.get(target.address.engine, "celery")


def _with_two_engines(target: Target) -> str:
    other = _other_engine(target)
    return "" if target.in_process or importlib.util.find_spec(other) else f"engine {other} is not installed"


@scenario("Q5", "L2", on=(ALONE,), where=_with_two_engines)
def two_engines_share_a_broker(h: Harness) -> None:
    """Another engine's worker beside it takes nothing away, but what it replays of the dead letters."""
    url = h.target.url.partition("+")[2]
    # In this process, the other one is a second bridge: there is no broker to share.
    other = h.target if h.target.in_process else Target.of(f"{_other_engine(h.target)}+{url}")
    with h.environment.beside(other, namespace=h.environment.namespace) as beside:
        there = Harness(beside)
        if not h.target.in_process:
            beside.start_worker(threads=4)
        h.start_worker(threads=4)
        plans = [
            Plan(steps=(fail(), RETURN), queue=queue, delay_s=delay_s)
            for queue in ("contract", "vip")
            for delay_s in (0.0, 0.4)
        ]
        here_sent, there_sent = [h.send(plan) for plan in plans], [there.send(plan) for plan in plans]
        h.final(*(item.id for item in here_sent), within_s=h.patience_s + 10)
        _served_by(h, here_sent, h.target.address.engine)
        if h.target.in_process:
            h.equal("what waits on the other bridge", sum(beside.bridge.counts().waiting.values()), 2)
            return
        there.final(*(item.id for item in there_sent), within_s=h.patience_s + 10)
        _served_by(there, there_sent, other.address.engine)
        h.compare(here_sent)
        there.compare(there_sent)
        dead = h.run([Plan(steps=(fail(),), policy="once")])[0]
        beside.bridge.dead.replay(dead.id)
        there.until(lambda: there.records(dead.id, "dead"), "the death of what the other engine replays")
        _served_by(there, [dead], other.address.engine)


def _served_by(h: Harness, sent: list[Sent], engine: str) -> None:
    engines = {start.data["engine"] for item in sent for start in h.starts(item.id)}
    h.equal("the engines that ran it", engines, {engine})


@scenario("Q6", on=(ALONE,))
def an_unknown_task_waits(h: Harness) -> None:
    """An unknown task waits for a worker that knows it, at its first attempt."""
    old = h.start_worker(variant=Variant(late=False))
    if h.target.in_process:
        sent = by_a_stranger(h, "contract.stranger")
        h.until(lambda: h.bridge.counts().delayed, "the message to be put off")
        h.tasks.declare_stranger("contract.stranger")
    else:
        assert h.tasks.late is not None
        sent = h.own(h.tasks.late.send(_ONCE))
        h.until(lambda: h.bridge.counts().delayed, "the message to be put off")
        h.equal("its runs where it is unknown", h.starts(sent.id), [])
        h.start_worker()
        h.stop(old)
    h.finished(sent.id, within_s=h.patience_s + 10)
    h.equal("its attempts", [start.attempt for start in h.starts(sent.id)], [1])
    h.equal("its dead letters", h.letters(sent.id), [])


@scenario("Q6", on=(BRIEFLY_UNKNOWN,))
def an_unknown_task_dies(h: Harness) -> None:
    """An unknown task is dead when its time is over."""
    h.start_worker()
    sent = by_a_stranger(h, f"{LATE}.misspelt")
    final = h.finished(sent.id, within_s=h.patience_s + 5)[0]
    h.equal("how it ended", (final.kind, final.data["reason"], final.attempt), ("dead", "unknown_task", 1))
    waited_s = final.at - sent.before
    grace_s = h.spec.unknown_task_grace_s
    h.check(waited_s >= grace_s, f"it should wait {grace_s} s for a worker that knows it, but waited {waited_s:.3f} s")
    h.equal("its dead letters", [letter.reason for letter in h.letters(sent.id)], ["unknown_task"])


def by_a_stranger(h: Harness, name: str) -> Sent:
    """Send a task that no worker of the environment has declared."""
    stranger = Bridge("inline://?threads=0")

    def nothing(steps: list[dict[str, Any]]) -> None:
        raise ContractFailure("it is never run here")

    before = h.bridge.now()
    handle = h.bridge.send_many([stranger.task(name=name)(nothing).call(_ONCE)])[0]
    return h.own(handle, before=before)


def _with_bytes(target: Target) -> str:
    return "its messages have no bytes" if target.address.engine == "inline" else ""


@scenario("Q7", on=(ALONE,), where=_with_bytes)
def unreadable_bytes_are_dead(h: Harness) -> None:
    """What cannot be read is dead, as it came, and the rest goes on."""
    before = h.send(Plan(steps=(RETURN,)))
    h.send_rewritten(garbage)
    after = h.send(Plan(steps=(RETURN,)))
    h.start_worker(threads=2)
    h.final(before.id, after.id)
    letters = h.until(h.environment.letters, "a dead letter")
    h.idle()
    h.equal("the reasons", [letter.reason for letter in letters], ["undecodable"])
    raw = letters[0].raw or b""
    h.check(GARBAGE.encode() in raw, f"the letter should hold {GARBAGE!r}, but holds {raw!r}")


@scenario("Q7", on=(ALONE,), where=_with_bytes)
def whatever_cannot_be_read_is_dead(h: Harness) -> None:
    """Bytes that are no text, millions of them, and a form that never was are dead at once, and the rest goes on."""
    kept: dict[Rewrite, bytes] = {binary: BINARY, huge: b"x" * HUGE_BYTES, no_form: b""}
    for rewrite in kept:
        h.send_rewritten(rewrite)
    after = h.send(Plan(steps=(RETURN,)))
    h.start_worker(threads=2)
    h.final(after.id)
    h.until(lambda: len(h.environment.letters()) == len(kept), f"{len(kept)} dead letters")
    h.idle()
    letters = h.environment.letters()
    h.equal("the reasons", [letter.reason for letter in letters], ["undecodable"] * len(kept))
    for part in kept.values():
        h.check(any(part in (letter.raw or b"") for letter in letters), f"a letter should hold {part[:20]!r}")


@scenario("I3", "Q7", on=(ALONE,), where=with_own_client)
def odd_times_stop_nothing(h: Harness) -> None:
    """A time or a limit that is no number, or out of range, stops nothing: each such message runs or is dead."""
    for literal in ("1e999", "-1e999", "NaN", f"1{'0' * 400}", '"soon"', "[1]"):
        h.send_rewritten(odd_eta(literal))
    odd: list[Any] = ["soon", 5] if _says_it_in_headers(h.target) else [inf, -inf, nan, 10**400, "soon"]
    for name in ("eta", "max_age"):
        for value in odd:
            steps = [fail().plain(), RETURN.plain()]  # for what a message says is written down again at a retry
            send_by_own_client(h.bridge, h.tasks.programs["twice"].name, steps, queue=QUEUES[0], odd={name: value})
    sent = 6 + 2 * len(odd)
    after = h.send(Plan(steps=(RETURN,)))
    worker = h.start_worker(threads=2, answers=False)
    h.final(after.id)
    h.until(lambda: _ended(h) == sent + 1, f"the end of {sent + 1} messages")
    h.idle()
    lines = worker.log(2 * _MOST_LINES).count("\n")
    h.check(lines <= _MOST_LINES, f"a worker should not write {lines} lines about {sent} messages")


def _says_it_in_headers(target: Target) -> bool:
    """Return whether times are header values of RabbitMQ, of which none may be infinite or as large as one likes."""
    return (target.address.engine, target.address.broker) == ("celery", "amqp")


def _ended(h: Harness) -> int:
    """Return how many messages of a stage are at their end."""
    finals = {record.id for record in h.environment.records.all() if record.kind in FINAL}
    return len(finals) + sum(letter.id not in finals for letter in h.environment.letters())


@scenario("Q6", "R6", on=(ALONE,))
def arguments_that_no_longer_fit_are_dead(h: Harness) -> None:
    """A message whose arguments do not fit the function any more is dead at once, with the reason bad_arguments."""
    sent = h.own(h.tasks.narrowed.send(1, 2))
    if h.target.in_process:
        h.tasks.declare_narrowed(narrow=True)
    h.start_worker(variant=Variant(narrow=True))
    final = h.finished(sent.id)[0]
    h.equal("how it ended", (final.kind, final.data["reason"], final.attempt), ("dead", "bad_arguments", 1))
    h.equal("its starts", h.starts(sent.id), [])
    letters = [(letter.reason, letter.error.type if letter.error else "") for letter in h.letters(sent.id)]
    h.equal("its dead letters", letters, [("bad_arguments", "TypeError")])


@scenario("Q6", on=(ALONE,), where=with_processes)
def a_kill_while_it_is_unknown_loses_nothing(h: Harness) -> None:
    """A worker killed while it puts a message off loses nothing."""
    assert h.tasks.late is not None
    old = h.start_worker(variant=Variant(late=False))
    sent = [h.own(h.tasks.late.send(_ONCE)) for _ in range(20)]
    h.environment.kill(old)
    h.start_worker(threads=4)
    h.final(*(item.id for item in sent), within_s=h.patience_s + h.spec.lease_s + 10)


@scenario("Q8", on=(ALONE,), where=with_readable_queue_types)
def queues_are_declared_with_their_type(h: Harness) -> None:
    """Senders and workers name the type of each queue that they declare: for messages, delays and dead letters."""
    with h.proxy() as proxy:
        url = h.target.at_port(proxy.port)
        tasks = h.tasks_by(url)
        h.start_worker(threads=2, url=url, answers=False)
        once = tasks.programs["once"]
        sent = [h.own(once.send([fail().plain()])), h.own(once.schedule(1.5, _ONCE))]
        h.finished(*(item.id for item in sent))
        types = declared_types(proxy)
    h.check(len(types) > len(QUEUES), f"senders and workers should declare queues, but these are all: {types}")
    h.equal("the queues declared without a type", sorted(name for name, kinds in types.items() if "" in kinds), [])


_CHECK: Final = """
import sys, types
from taskbridge import Bridge
from taskbridge.cli import main

other = sys.modules["blog"] = types.ModuleType("blog")
other.bridge = Bridge()
other.bridge.task(name="blog.index")(print)
for app in ("taskbridge.contract.app:bridge", "blog"):
    print(app, "exits with", main(["check", app]))
"""


@scenario("Q9", on=(STORED,), where=with_processes_and_marks)
def another_application_is_told_of(h: Harness) -> None:
    """An application is told that another one's workers consume its queues, and of its own it isn't."""
    h.start_worker(supervised=True, queues=["contract", "vip"])
    told = h.in_python(_CHECK)
    own, _, others = told.partition("taskbridge.contract.app:bridge exits with")
    h.check("\nnamespace " not in own, f"the worker's own application is told of another one:\n{own}")
    warned = [line for line in others.splitlines() if line.startswith("namespace ")]
    h.equal("how many lines are about another application", len(warned), 1)
    for part in ("warning", "taskbridge.contract.app:bridge", "'contract'", h.environment.namespace):
        h.check(part in warned[0], f"{part!r} is not in {warned[0]!r}")
    h.check("blog exits with 1" in others, f"the check of the other application ends otherwise:\n{others}")
    h.idle()
