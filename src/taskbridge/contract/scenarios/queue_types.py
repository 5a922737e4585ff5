"""RQ: classic and quorum queues of RabbitMQ."""

from __future__ import annotations

import re
from typing import Final

from taskbridge import UnsupportedError
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import ASK, KILL, RETURN, WORKER_LOST, Plan, Step, fail
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.registry import (
    QUORUM,
    QUORUM_READ,
    QUORUM_STORED,
    scenario,
    with_marks,
    with_queue_types,
    with_readable_queue_types,
)
from taskbridge.contract.scenarios.acknowledging import (
    QUEUES,
    a_killed_worker_loses_nothing,
    nothing_waits_behind_a_long_task_on_another_queue,
)
from taskbridge.contract.scenarios.crashes import without_marks
from taskbridge.contract.scenarios.priority import (
    higher_messages_overtake,
    higher_messages_overtake_on_each_of_four_queues,
)
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import PRIORITIES


def with_queue_types_and_marks(target: Target) -> str:
    """Keep out targets whose queues have no types, or that have no attempt marks."""
    return with_queue_types(target) or with_marks(target)


def with_queue_types_and_no_marks(target: Target) -> str:
    """Keep out targets whose queues have no types, or that have attempt marks."""
    return with_queue_types(target) or without_marks(target)


@scenario("RQ1", "D1", "R6", "L2", on=(QUORUM_READ,), where=with_readable_queue_types)
def quorum_queues_do_what_classic_ones_do(h: Harness) -> None:
    """Sending, delays, retries, dead letters and replays are the same with quorum queues, and all are declared so."""
    with h.proxy() as proxy:
        url = h.target.at_port(proxy.port)
        h.tasks_by(url).programs["once"].send([RETURN.plain()])
        h.start_worker(threads=2, url=url, answers=False)
        retried = Plan(steps=(ASK, fail(), RETURN), policy="listed")
        dead = Plan(steps=(fail("KeyError"),), policy="selective", queue="left", delay_s=1.2)
        *_, buried = h.run([Plan(steps=(RETURN,), queue="right"), retried, dead])
        h.bridge.dead.replay([buried.id])
        h.until(lambda: len(h.records(buried.id, "dead")) == 2, "the second death")
        h.idle()
        types = declared_types(proxy)
    h.equal("the letters", [letter.id for letter in h.letters(buried.id)], [buried.id])
    others = {name: kinds for name, kinds in types.items() if kinds != {"quorum"} and ".sign." not in name}
    h.equal("the queues that are none", {name for name in others if f".{PRIORITIES}" not in name}, set[str]())
    h.check(any(".dead" in name for name in types), f"the queue of the dead letters should be declared, too: {types}")


@scenario("RQ1", "A1", "A2", on=(QUORUM_STORED,), where=with_queue_types_and_marks)
def a_killed_worker_loses_nothing_of_quorum_queues(h: Harness) -> None:
    """What a killed worker held of quorum queues starts again on another within ten seconds."""
    a_killed_worker_loses_nothing(h)


@scenario("RQ1", "A5", on=(QUORUM,), where=with_queue_types_and_no_marks)
def a_quorum_queue_counts_what_came_back(h: Harness) -> None:
    """Without attempt marks, what came back ten times from a quorum queue without an outcome is dead."""
    h.start_worker(processes=2, supervised=True)
    poison = h.send_saying(Plan(steps=(KILL,), policy="once"), redelivered=8)  # as it would be after eight more starts
    h.final(poison.id, within_s=h.patience_s + 30)
    h.check(1 <= len(h.starts(poison.id)) <= 3, "it should be started three times at most")
    h.equal("why it is dead", [letter.error and letter.error.type for letter in h.letters(poison.id)], [WORKER_LOST])


@scenario("RQ2", "P2", on=(QUORUM,), where=with_queue_types)
def a_quorum_queue_keeps_priorities_or_refuses_them(h: Harness) -> None:
    """A quorum queue serves the higher messages first, or where it can't, every priority but normal is refused."""
    if h.keeps_priorities():
        higher_messages_overtake(h)
        return
    plain = h.tasks.programs["once"]
    for priority in ("low", "high", "critical"):
        refusal = h.refused(UnsupportedError, plain.using(priority=priority).send, [RETURN.plain()])
        h.says(refusal, "4.3")
    h.refused(UnsupportedError, plain.using(priority="high").schedule, 5, [RETURN.plain()])
    h.refused(UnsupportedError, h.bridge.send_many, [plain.using(priority="high").call([RETURN.plain()])])
    h.equal("what was sent", (sum(h.bridge.counts().waiting.values()), h.bridge.counts().delayed), (0, 0))
    h.bridge.check_priorities()  # `contract.urgent` has one, and goes to a classic queue
    urgent = h.own(h.tasks.urgent.send([RETURN.plain()]))
    h.start_worker()
    h.finished(urgent.id)


@scenario("RQ2", "P2", on=(QUORUM_STORED,), where=with_queue_types_and_marks)
def four_quorum_queues_keep_priorities_or_refuse_them(h: Harness) -> None:
    """Higher messages overtake on each of four quorum queues, or where they can't, each of the queues refuses them."""
    if h.keeps_priorities():
        higher_messages_overtake_on_each_of_four_queues(h)
        return
    plain = [h.tasks.programs["once"].using(queue=queue) for queue in QUEUES]
    for task in plain:
        h.refused(UnsupportedError, task.using(priority="critical").send, [RETURN.plain()])
    sent = [h.own(task.send([RETURN.plain()])) for task in plain]
    h.equal("what was sent", sum(h.bridge.counts().waiting.values()), len(sent))
    h.start_worker(queues=QUEUES)
    h.finished(*(item.id for item in sent))


@scenario("A6", "RQ1", on=(QUORUM_STORED,), where=with_queue_types_and_marks)
def nothing_waits_behind_a_long_task_on_another_quorum_queue(h: Harness) -> None:
    """No message of four quorum queues waits behind a long task of another one while another worker is idle."""
    nothing_waits_behind_a_long_task_on_another_queue(h)


@scenario("A6", "RQ1", on=(QUORUM_STORED,), where=with_queue_types_and_marks)
def quorum_queues_take_turns_at_one_slot(h: Harness) -> None:
    """One slot runs what waits on four quorum queues, though some goes back, and no queue waits for another's end."""
    sent = [h.send(Plan(steps=(Step(sleep_s=0.7),), queue=queue)) for queue in QUEUES for _ in range(3)]
    h.start_worker(queues=QUEUES)
    ended = h.finished(*(item.id for item in sent), within_s=h.patience_s + 20)
    h.equal("how they ended", {record.kind for record in ended}, {"succeeded"})
    first = sorted(sent, key=lambda item: h.starts(item.id)[0].at)[:9]
    h.equal("the queues of the first nine", {item.plan.queue for item in first}, {*QUEUES})


def declared_types(proxy: Proxy) -> dict[str, set[str]]:
    """Return the durable queues that AMQP clients declared through a proxy, and the types that they named, or ""."""
    declared: dict[str, set[str]] = {}
    for heard in map(bytes, proxy.heard):
        at = len(b"AMQP") + 4  # the protocol's header
        while at + 7 <= len(heard):
            payload = heard[at + 7 : at + 7 + int.from_bytes(heard[at + 3 : at + 7], "big")]
            if heard[at] == _METHOD and payload.startswith(_QUEUE_DECLARE):
                end = 7 + payload[6]
                if payload[end] & _DECLARE_BITS == _DURABLE:
                    kind = _TYPE.search(payload, end)
                    declared.setdefault(payload[7:end].decode(), set()).add(kind[1].decode() if kind else "")
            at += 7 + len(payload) + 1
    return declared


_METHOD: Final = 1
_QUEUE_DECLARE: Final = b"\x00\x32\x00\x0a"
_TYPE: Final = re.compile(rb"x-queue-typeS\0\0\0.(classic|quorum)", re.DOTALL)
_DURABLE: Final = 0b0010
_DECLARE_BITS: Final = 0b1111
"""Passive, durable, exclusive, auto-delete; RabbitMQ's default type is for queues that are durable and nothing else."""
