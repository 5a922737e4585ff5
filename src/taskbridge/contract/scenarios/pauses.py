"""Z: pausing queues and tasks."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Final

from taskbridge import UnknownQueue
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, Step, ask, fail, hold
from taskbridge.contract.registry import (
    ALONE,
    QUORUM_STORED,
    STORED,
    scenario,
    with_processes,
    with_queue_types,
    with_records,
)
from taskbridge.contract.target import Target
from taskbridge.durations import moment

_KNOWN_S: Final = 1.0
"""After which time workers know what is paused."""

_LATER_S: Final = 2.0
"""For how long nothing is to start then."""

_FELT_S: Final = 5.0
"""After which time something of a task that is resumed starts."""

_QUICK: Final = Step(sleep_s=0.05)
_PARTS: Final = 20  # of the time until workers know, with a message in each


def _with_records_and_processes(target: Target) -> str:
    return with_processes(target) or with_records(target)


def _rests(h: Harness, sent: list[Sent]) -> int:
    """Check that of these messages nothing starts from a second after now on; return how many have started."""
    h.leave_alone(_KNOWN_S + h.slack_s)
    return _nothing_starts(h, sent)


def _nothing_starts(h: Harness, sent: list[Sent]) -> int:
    """Check that of these messages nothing starts from now on; return how many have started."""
    before = sum(len(h.starts(item.id)) for item in sent)
    h.leave_alone(_LATER_S)
    h.equal("the starts of what is paused", sum(len(h.starts(item.id)) for item in sent), before)
    return before


def _run(h: Harness, plans: list[Plan]) -> list[Sent]:
    """Send plans, and wait until they are at their end, while others wait."""
    sent = [h.send(plan) for plan in plans]
    h.final(*[item.id for item in sent])
    return sent


def _waits(h: Harness, queue: str, count: int) -> None:
    """Wait until so many messages wait in a queue, and none is delayed."""
    counts = h.bridge.counts
    h.until(lambda: (counts().waiting[queue], counts().delayed) == (count, 0), f"{count} messages to wait in {queue}")


_WITHOUT_STORE: Final = """
from taskbridge import UnsupportedError
for act in (bridge.paused, lambda: bridge.pause("vip"), lambda: bridge.resume(task="*")):
    try:
        act()
    except UnsupportedError:
        print("refused", end=" ")
"""


@scenario("Z0", on=(ALONE,))
def pausing_needs_a_store(h: Harness) -> None:
    """Pausing is refused where there is no store, and so is what can't be paused."""
    if h.target.address.broker == "amqp":
        h.equal("what is said without a store", h.in_python(_WITHOUT_STORE).split(), ["refused"] * 3)
        return
    for wrong in (h.bridge.pause, partial(h.bridge.pause, "vip", task="*")):
        h.refused(ValueError, wrong)
    h.refused(UnknownQueue, h.bridge.pause, "vipp")
    h.bridge.pause("vip")
    found = [(each.queue, each.task, each.until) for each in h.bridge.paused()]
    h.equal("what is paused", found, [("vip", None, None)])
    h.equal("whether it was paused", (h.bridge.resume("vip"), h.bridge.resume("vip")), (True, False))
    h.equal("what is paused", h.bridge.paused(), ())


@scenario("Z1", "Z2", on=(STORED,), where=with_records)
def a_paused_queue_waits(h: Harness) -> None:
    """Of a queue paused under load nothing starts after a second; what runs ends, and all is run once resumed."""
    h.start_worker(threads=4)
    running = h.begin(Plan(steps=(hold("running"),), queue="left"))
    loaded = [h.send(Plan(steps=(_QUICK,), queue="left")) for _ in range(200)]
    h.started(loaded[2].id)
    h.bridge.pause("left")
    for _ in range(_PARTS):  # the load goes on, even if workers have run all that was there before
        loaded.append(h.send(Plan(steps=(_QUICK,), queue="left")))
        h.leave_alone((_KNOWN_S + h.slack_s) / _PARTS)
    loaded += [h.send(Plan(steps=(_QUICK,), queue="left")) for _ in range(5)]
    count = _nothing_starts(h, loaded)
    h.check(count <= len(loaded) - 5, "what is sent when all know that the queue is paused should wait")
    h.tasks.open("running")
    others = _run(h, [Plan(steps=(RETURN,), queue="right") for _ in range(8)])
    h.final(running[0].id)
    _waits(h, "left", len(loaded) - count)
    h.bridge.resume("left")
    h.compare([*running, *loaded, *others])


def _with_queue_types_and_records(target: Target) -> str:
    return with_queue_types(target) or with_records(target)


@scenario("Z1", "Z2", on=(QUORUM_STORED,), where=_with_queue_types_and_records)
def a_paused_quorum_queue_waits(h: Harness) -> None:
    """A quorum queue is paused like any other, though RabbitMQ sends a worker more of it than it has slots."""
    a_paused_queue_waits(h)


@scenario("Z2", "Z5", on=(STORED,), where=with_records)
def a_paused_task_waits(h: Harness) -> None:
    """Of tasks that are paused nothing starts; they hold no slot, use up no attempt, and soon go on once resumed."""
    h.start_worker(threads=1)
    h.bridge.pause(task="contract.program.on*")
    h.leave_alone(_KNOWN_S + h.slack_s)
    paused = [h.send(Plan(steps=(RETURN,), policy="once", priority=each)) for each in ("low", "normal", "critical") * 5]
    late = h.send(Plan(steps=(RETURN,), policy="once", expires_s=1.0))
    others = _run(h, [Plan(steps=(ask(0.0), RETURN)) for _ in range(8)])
    _rests(h, [*paused, late])
    h.equal("the starts of what is paused", [each.id for each in (*paused, late) if h.starts(each.id)], [])
    h.bridge.resume(task="contract.program.on*")
    h.until(lambda: any(h.starts(each.id) for each in paused), "a start", within_s=_FELT_S + h.patience_s)
    h.compare([*paused, *others])
    h.equal("the end of what has expired", [each.data["reason"] for each in h.final(late.id)], ["expired"])


@scenario("Z1", "Z2", on=(STORED,), where=_with_records_and_processes)
def processes_keep_to_pauses(h: Harness) -> None:
    """Workers of processes keep to pauses, and so do those that start while something is paused."""
    worker = h.start_worker(queues=["contract", "left"], processes=2)
    h.bridge.pause("left")
    h.bridge.pause(task="contract.program.once")
    h.leave_alone(_KNOWN_S + h.slack_s)
    sent = [h.send(Plan(steps=(RETURN,), queue="left")) for _ in range(4)]
    sent += [h.send(Plan(steps=(RETURN,), policy="once")) for _ in range(4)]
    _run(h, [Plan(steps=(RETURN,)) for _ in range(4)])
    h.stop(worker)
    h.start_worker(queues=["contract", "left"], processes=2, answers=False)
    _run(h, [Plan(steps=(RETURN,)) for _ in range(4)])
    _rests(h, sent)
    h.equal("the starts of what is paused", [each.id for each in sent if h.starts(each.id)], [])
    h.bridge.resume("left")
    h.bridge.resume(task="contract.program.once")
    h.compare(sent)


@scenario("Z1", "Z2", on=(STORED,), where=with_records)
def a_pause_outlives_workers(h: Harness) -> None:
    """What was paused while no worker was up, or before workers were started anew, does not start with them."""
    worker = h.start_worker(threads=4)
    h.bridge.pause("left")
    h.stop(worker)
    h.bridge.pause("right")
    sent = [h.send(Plan(steps=(RETURN,), queue=queue)) for queue in ("left", "right") * 4]
    h.start_worker(threads=4)
    _rests(h, sent)
    h.equal("the starts of what is paused", [each.id for each in sent if h.starts(each.id)], [])
    for queue in ("left", "right"):
        h.equal(f"what waits in {queue}", h.bridge.counts().waiting[queue], 4)
        h.bridge.resume(queue)
    h.compare(sent)


@scenario("Z3", on=(STORED,), where=with_records)
def what_comes_back_waits_in_a_paused_queue(h: Harness) -> None:
    """What was delayed, is retried or is replayed comes back to a paused queue when it is due, and waits there."""
    h.start_worker(threads=4)
    (dead,) = h.begin(Plan(steps=(fail(),), policy="once", queue="left"))
    h.finished(dead.id)
    delay_s = h.scaled(_KNOWN_S + 3.0)
    (retried,) = h.begin(Plan(steps=(ask(delay_s), RETURN), queue="left"))
    delayed = h.send(Plan(steps=(RETURN,), queue="left", delay_s=delay_s))
    h.bridge.pause("left")
    h.leave_alone(_KNOWN_S + h.slack_s)
    h.bridge.dead.replay(dead.id)
    _waits(h, "left", 3)
    _rests(h, [dead, retried, delayed])
    h.equal("the starts", [len(h.starts(item.id)) for item in (dead, retried, delayed)], [1, 1, 0])
    _waits(h, "left", 3)
    h.bridge.resume("left")
    h.compare([retried, delayed])
    h.equal("the starts of what was replayed", len(h.starts(dead.id)), 2)


@scenario("Z1", on=(STORED,), where=with_records)
def a_pause_ends_by_itself(h: Harness) -> None:
    """A pause that has an end is over then, by the store's clock, and not before."""
    h.start_worker(threads=4)
    within_s = h.scaled(4.0)
    until = moment(h.bridge.now() + within_s)
    h.bridge.pause("left")
    h.bridge.pause("left", until=until)
    h.bridge.pause(task="contract.program.once", until=until)
    h.refused(ValueError, h.bridge.pause, "left", until=until - timedelta(hours=1))
    h.leave_alone(_KNOWN_S + h.slack_s)
    sent = [h.send(Plan(steps=(RETURN,), queue="left")), h.send(Plan(steps=(RETURN,), policy="once"))]
    sent_in_time = h.bridge.now() < until.timestamp()
    starts = [h.started(item.id, within_s=within_s + _FELT_S + h.patience_s).at for item in sent]
    early = [at for at in starts if at < until.timestamp()]
    h.check(not sent_in_time or not early, f"nothing should start before {until}, but some did at {early}")
    h.equal("what is paused", h.bridge.paused(), ())
    h.compare(sent)


@scenario("Z4", on=(STORED,), where=_with_records_and_processes)
def health_tells_that_a_queue_is_paused(h: Harness) -> None:
    """A paused queue is told from one that nobody consumes, and a paused task is no reason for a queue to be silent."""
    h.start_worker(queues=["left", "right"], threads=2)
    h.bridge.pause("left")
    h.bridge.pause(task="*")
    h.leave_alone(_KNOWN_S + h.slack_s)
    health = h.bridge.health("left", "right", timeout=h.scaled(15.0))
    h.equal("the health", (dict(health.queues), health.is_well), ({"left": "paused", "right": "consumed"}, True))
    h.equal("the health of paused queues alone", dict(h.bridge.health("left").queues), {"left": "paused"})
    h.bridge.resume("left")
    h.equal("the health", dict(h.bridge.health("left", timeout=h.scaled(15.0)).queues), {"left": "consumed"})
    h.bridge.resume(task="*")
