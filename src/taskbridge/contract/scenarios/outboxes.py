"""OB1 and W2: flows in an application's outbox, which begin if, and only if, its transaction is committed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Final
from uuid import uuid4  # ids are others at each run: a namespace may be that of an environment before this one

from taskbridge import NoSuchRecord
from taskbridge.contract import deaths
from taskbridge.contract.application import Application
from taskbridge.contract.flow_plan import FlowPlan, grouping, single
from taskbridge.contract.flow_steps import Followed, begun, built, chain, parts, starts_of
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import OUTBOX, scenario, with_processes, with_records
from taskbridge.contract.tasks import Variant
from taskbridge.contract.workers import Worker

_RELAYED_S: Final = 1.0
"""How soon an outbox publishes what its sender has left there."""

_LEASED_S: Final = 6.0
"""For how long an entry is left to the worker that was told of it."""

_MANY: Final = 101  # members, whose calls are stored apart from their flow


class _RolledBack(Exception):
    """Ends a transaction."""


def _application(h: Harness) -> Application:
    if (application := h.environment.application) is None:
        h.fail("the environment should have an application")
    return application


def _of_a_step(name: str) -> FlowPlan:
    return chain(name, single(f"{name} 0"), single(f"{name} b"))


def _of_a_group(name: str) -> FlowPlan:
    return chain(name, grouping(*parts(f"{name} ", _MANY)), single(f"{name} b"))


def _is_empty(application: Application) -> bool:
    return not application.texts()


def _has_died(worker: Worker) -> bool:
    return worker.wait(0) is not None


@scenario("OB1", "W2", on=(OUTBOX,), where=with_records)
def a_flow_in_an_outbox_begins_once_when_it_is_committed(h: Harness) -> None:
    """A flow in an application's outbox begins once, at most a second after the commit, and never if there is none."""
    application = _application(h)
    h.start_worker(threads=4)  # of its own, for others may keep one busy for longer than what is measured
    plans, undone = [_of_a_step("step"), _of_a_group("members")], f"undone {uuid4().hex}"
    with suppress(_RolledBack), application.transaction():
        built(h, _of_a_step("undone")).using(id=undone).send()
        raise _RolledBack
    with application.transaction():
        handles = [built(h, plan).send() for plan in plans]
        copies = application.texts()
        application.put(copies)  # as if who begins them was killed before the entries are removed
        item = h.send(Plan(steps=(RETURN,)))
        h.pause(_RELAYED_S)
        for handle in handles:
            h.refused(NoSuchRecord, handle.status)
        h.equal("what has run before the commit", starts_of(h, "step 0", "members 0"), [])
    committed_at = h.bridge.now()

    flows = [Followed(h, plan, handle=handle) for plan, handle in zip(plans, handles, strict=True)]
    for followed in flows:
        mark = followed.plan.stages[0].parts[0].mark
        h.in_time(f"the start of {mark}", begun(h, mark).at - committed_at, _RELAYED_S + h.target.latest_s(0.0))
        followed.ends()
    application.put(copies)  # and once more, by another one, after their end
    h.until(partial(_is_empty, application), "the outbox to be empty")
    h.finished(item.id)
    for followed in flows:
        followed.went()
    h.equal("how often the message that was sent with them has run", len(h.starts(item.id)), 1)
    h.refused(NoSuchRecord, h.bridge.flow(undone).status)
    h.equal("what has run of the one that was rolled back", starts_of(h, "undone 0"), [])


_SENDS: Final = """
import json, os, signal
from taskbridge.contract.flow_plan import FlowPlan
def die(_):
    os.kill(os.getpid(), signal.SIGKILL)
with bridge.transactions.transaction():
    bridge.transactions.hold("", [], die)  # which comes before all else that waits for the commit
    FlowPlan.of(json.loads({plan!r})).built(tasks.parts).using(id={name!r}).send()
    if {is_early}:
        die(None)
"""


def _send_and_die(h: Harness, name: str, *, is_early: bool = False) -> FlowPlan:
    """Send a flow under this id in a process that is killed right after its commit, or right before that."""
    plan = _of_a_group(name)
    h.in_python(_SENDS.format(plan=json.dumps(asdict(plan)), name=name, is_early=is_early))
    return plan


@scenario("OB1", "W2", on=(OUTBOX,), where=lambda target: with_processes(target) or with_records(target))
def a_flow_in_an_outbox_begins_once_whoever_is_killed(h: Harness) -> None:
    """A flow in an application's outbox begins once, though its sender is killed, and the worker that begins it."""
    application = _application(h)
    early, *names = (f"{word} {uuid4().hex[:8]}" for word in ("early", *deaths.RELAYING))
    _send_and_die(h, early, is_early=True)
    plans: list[FlowPlan] = []
    for name, place in zip(names, deaths.RELAYING, strict=True):
        plans.append(_send_and_die(h, name))
        relaying = h.start_worker(queues=("vip",), variant=Variant(dies=place), answers=False)
        h.until(partial(_has_died, relaying), f"a worker to be killed as it begins flow {name}")
        h.environment.kill(relaying)
    h.start_worker(threads=4, answers=False)
    limit_s = _LEASED_S + _RELAYED_S + h.patience_s
    for name, plan in zip(names, plans, strict=True):
        begun(h, f"{name} 0", within_s=limit_s)
        handle: Any = h.bridge.flow(name)
        Followed(h, plan, handle=handle).ends(within_s=limit_s)
    h.until(partial(_is_empty, application), "the outbox to be empty", within_s=limit_s)
    h.idle()
    starts = [{len(starts_of(h, part.mark)) for stage in plan.stages for part in stage.parts} for plan in plans]
    h.equal("how often each step has started", starts, [{1}, {1}])
    h.refused(NoSuchRecord, h.bridge.flow(early).status)
    h.equal("what has run of the one that was not committed", starts_of(h, f"{early} 0"), [])
