"""O1: whether queues are consumed."""

from __future__ import annotations

from typing import Final

from taskbridge.contract.harness import Harness
from taskbridge.contract.probe import Record
from taskbridge.contract.program import Plan, hold
from taskbridge.contract.registry import ALONE, scenario, with_a_server, with_processes
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target

_TIMEOUT_S: Final = 4.0
_LONG_S: Final = 15.0
_ANSWER_S: Final = 3.0
"""An answer comes at once: long before nobody waits for it any more."""


def _with_workers_elsewhere(target: Target) -> str:
    return with_processes(target) or with_a_server(target)


@scenario("O1", on=(ALONE,), where=_with_workers_elsewhere)
def health_tells_who_consumes(h: Harness) -> None:
    """A queue that is consumed is told from one whose workers are busy, and from one that hangs or has none."""
    worker = h.start_worker(queues=["left", "right"], threads=2)
    _is(h, {"left": "consumed", "right": "consumed"}, "with an idle worker")
    _is(h, {"vip": "silent", "left": "consumed"}, "with a worker of other queues")
    if h.target.address.broker == "amqp":  # which drops what has expired a moment after that, and not at once
        h.until(lambda: not any(h.bridge.counts().waiting.values()), "nothing to be left of probes")
    h.equal("what is left of probes", h.bridge.counts().waiting, dict.fromkeys(h.bridge.counts().waiting, 0))

    running = h.begin(*[Plan(steps=(hold("busy"),), queue="left") for _ in range(2)])
    _is(h, {"left": "busy", "right": "busy"}, "with a worker whose slots are all taken")
    h.tasks.open("busy")
    h.final(*(sent.id for sent in running))
    _is(h, {"left": "consumed"}, "with a worker that was busy")

    worker.pause()
    try:
        _is(h, {"left": "silent"}, "with a worker that hangs")
    finally:
        worker.resume()
    _is(h, {"left": "consumed"}, "with a worker that goes on")
    h.equal(
        "the hooks that heard of a probe", [record for record in h.environment.records.all() if _is_probe(record)], []
    )


def _is_probe(record: Record) -> bool:
    return str(record.data.get("task", "")).startswith("taskbridge.")


def _is(h: Harness, expected: dict[str, str], when: str) -> None:
    all_answer = set(expected.values()) == {"consumed"}
    with Stopwatch() as watch:
        health = h.bridge.health(*expected, timeout=h.scaled(_LONG_S if all_answer else _TIMEOUT_S))
    h.equal(f"the health {when}", dict(health.queues), expected)
    h.equal(f"whether that is well {when}", health.is_well, "silent" not in expected.values())
    if all_answer:
        h.in_time(f"an answer {when}", watch.took_s, _ANSWER_S)


@scenario("O1", on=(ALONE,), where=_with_workers_elsewhere)
def children_answer_probes(h: Harness) -> None:
    """A worker of processes answers too, and says when all are taken; one that is about to stop does neither."""
    worker = h.start_worker(queues=["left"], processes=2)
    _is(h, {"left": "consumed"}, "with idle processes")
    running = h.begin(*[Plan(steps=(hold("busy"),), queue="left") for _ in range(2)])
    _is(h, {"left": "busy"}, "with processes that are all taken")
    h.tasks.open("busy")
    h.final(*(sent.id for sent in running))
    _is(h, {"left": "consumed"}, "with processes that are free again")
    h.begin(*[Plan(steps=(hold("last"),), queue="left") for _ in range(2)])
    worker.terminate()

    def is_silent() -> bool:
        return dict(h.bridge.health("left", timeout=_TIMEOUT_S).queues) == {"left": "silent"}

    # It may have said that it is busy before the signal came. All is to be over before the grace is.
    h.until(is_silent, "processes that are about to stop to say nothing", within_s=h.spec.grace_s - _TIMEOUT_S - 2)
    h.tasks.open("last")
