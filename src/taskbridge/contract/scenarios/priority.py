"""P: priority."""

from __future__ import annotations

from typing import Any, Final

from taskbridge import Priority
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step, hold
from taskbridge.contract.registry import ALONE, ORDINARY, STORED, scenario, with_processes_and_marks
from taskbridge.contract.scenarios.acknowledging import QUEUES
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import PRIORITIES

_LEVELS: Final[tuple[Priority, ...]] = ("low", "normal", "high", "critical")
_EACH: Final = 5
_SLACK: Final = 2
"""One slot, and one message that is prefetched for it."""

_LAST: Final[tuple[Priority, ...]] = ("low", "low", "low", "low", "low", "critical", "critical")
"""In the order in which they are sent: more low ones than may start before a higher one."""


@scenario("P1", on=(ORDINARY,))
def there_are_four_priorities(h: Harness) -> None:
    """There are four priorities, and normal is the default."""
    sent = [(h.send(Plan(steps=(RETURN,), priority=level, queue=PRIORITIES)), level) for level in _LEVELS]
    sent.append((h.send(Plan(steps=(RETURN,))), "normal"))
    sent.append((h.own(h.tasks.urgent.send([RETURN.plain()])), "high"))
    sent.append((h.own(h.tasks.urgent.using(priority="low").send([RETURN.plain()])), "low"))
    h.final(*(item.id for item, _ in sent))
    for item, level in sent:
        h.equal("the priority that the task was told", h.starts(item.id)[0].data["context"]["priority"], level)
    wrong: Any = "hihg"
    h.says(h.refused(ValueError, h.tasks.default.using, priority=wrong), "'high'")


@scenario("P2", "Q4", on=(ALONE,))
def higher_messages_overtake(h: Harness) -> None:
    """A higher message overtakes lower ones, also when it comes back."""
    queue = None if h.keeps_priorities() else PRIORITIES
    h.start_worker()
    _block(h, "first")
    waiting = [h.send(Plan(steps=(RETURN,), queue=queue, priority=level)) for level in _LEVELS for _ in range(5)]
    h.tasks.open("first")
    h.compare(waiting)
    _in_order(h, [item.id for item in waiting])
    again = Plan(steps=(Step(outcome="retry", after_s=0.5), RETURN), queue=queue, priority="high")
    _block(h, "second", before=again)
    lower = [h.send(Plan(steps=(RETURN,), queue=queue, priority="low")) for _ in range(5)]
    h.until(lambda: h.bridge.counts().delayed == 0, "the retry to come back", within_s=h.patience_s + 5)
    h.tasks.open("second")
    h.finished(*(item.id for item in lower))
    retry = next(start for start in h.environment.runs() if start.attempt == 2)
    ahead = [item for item in lower if h.starts(item.id)[0].at < retry.at]
    h.check(len(ahead) <= _SLACK, f"{len(ahead)} low messages started before a retry with priority high")


def _without_rabbitmqs_choice(target: Target) -> str:
    return "RabbitMQ decides which queue is next" if target.address.target == "celery+amqp" else ""


@scenario("P2", on=(ALONE,), where=_without_rabbitmqs_choice)
def queues_are_served_in_turn(h: Harness) -> None:
    """Priorities count within a queue: the higher messages of one don't hold up the lower ones of another."""
    h.start_worker(queues=["left", "right"])
    h.begin(Plan(steps=(hold("turn"),), queue="left"))
    plans = (
        Plan(steps=(RETURN,), queue="left", priority="critical"),
        Plan(steps=(RETURN,), queue="right", priority="low"),
    )
    sent = [h.send(plan) for _ in range(_EACH) for plan in plans]
    h.leave_alone(h.scaled(1.0))  # a queue that was empty is looked at now and then
    h.tasks.open("turn")
    h.finished(*(item.id for item in sent))
    starts = sorted((h.starts(item.id)[0] for item in sent), key=lambda start: start.at)
    queues = [start.data["context"]["queue"] for start in starts]
    last = len(queues) - 1 - queues[::-1].index("left")
    h.check(queues[:last].count("right") >= _EACH - _SLACK, f"the queues should have been served in turn: {queues}")


@scenario("P2", on=(STORED,), where=with_processes_and_marks)
def higher_messages_overtake_on_each_of_four_queues(h: Harness) -> None:
    """Higher messages overtake on each of four queues, though a long task keeps one of the two workers busy."""
    for _ in range(2):
        h.start_worker(queues=QUEUES)
    held = h.begin(Plan(steps=(hold("short"),)), Plan(steps=(hold("long"),)))
    sent = [h.send(Plan(steps=(RETURN,), queue=queue, priority=level)) for level in _LAST for queue in QUEUES]
    h.tasks.open("short")
    h.final(*(item.id for item in sent))
    for queue in QUEUES:
        _in_order(h, [item.id for item in sent if item.plan.queue == queue])
    h.tasks.open("long")
    h.finished(*(item.id for item in held))


def _block(h: Harness, gate: str, before: Plan | None = None) -> None:
    """Keep the only slot busy until a gate is opened, and let a plan have its first run before that."""
    if before is not None:
        first = h.send(before)
        h.until(lambda: h.records(first.id, "retrying"), "the first run of a plan")
    h.begin(Plan(steps=(hold(gate),)))


def _in_order(h: Harness, ids: list[str]) -> None:
    starts = sorted((h.starts(each)[0] for each in ids), key=lambda start: start.at)
    ranks = [_LEVELS.index(start.data["context"]["priority"]) for start in starts]
    for place, rank in enumerate(ranks):
        lower = sum(1 for before in ranks[:place] if before < rank)
        h.check(
            lower <= _SLACK, f"{lower} lower messages started before one of rank {rank}: the ranks in order are {ranks}"
        )
