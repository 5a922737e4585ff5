"""Random flows, made by Hypothesis: what becomes of them on a target is what the model of flows says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from taskbridge import Message
from taskbridge.contract.flow_plan import FlowPlan, Part
from taskbridge.contract.flow_steps import Followed, sent_by
from taskbridge.contract.harness import Harness
from taskbridge.contract.registry import with_marks, with_records
from tests.contract.stored import open_stored
from tests.flow_programs import FlowProgram, programs

LOST_S = 60.0
"""How much longer it takes at most if workers are killed: each time the lease, and what comes after it."""


@pytest.fixture(scope="session")
def harness(target_url: str, target_store: str | None) -> Iterator[Harness]:
    with ExitStack() as stack:
        h = open_stored(stack, target_url, store=target_store)
        if with_records(h.target):
            pytest.skip(with_records(h.target))
        h.start_worker(queues=("contract",), threads=8)
        if not h.target.in_process:
            h.start_worker(queues=("vip",), supervised=True, answers=False)  # which some parts kill
        yield h


def _marked(plan: FlowPlan, prefix: str) -> FlowPlan:
    """Return a plan whose marks, and gates, are no other plan's."""

    def part_of(part: Part) -> Part:
        becomes = None if part.becomes is None else _marked(part.becomes, prefix)
        queue = part.queue if part.steps[0].kill else None
        heals = part.heals and prefix + part.heals
        return replace(part, mark=prefix + part.mark, becomes=becomes, heals=heals, queue=queue)

    stages = tuple(replace(stage, parts=tuple(map(part_of, stage.parts))) for stage in plan.stages)
    callbacks = {name: part and part_of(part) for name in ("failure", "end") for part in (getattr(plan, name),)}
    return replace(plan, stages=stages, **callbacks)


# Shrinking would cost seconds a try here; what fails here and not in one process is not about the flow's size.
@settings(
    deadline=None,
    derandomize=True,
    max_examples=2,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(data=st.data())
def test_flows_go_as_the_model_says_on_every_target(harness: Harness, data: st.DataObject) -> None:
    h, kills = harness, not harness.target.in_process
    batch = [data.draw(programs(kills=kills and number == 0, cancels=False)) for number in range(12)]
    _run(h, batch)


def _run(h: Harness, batch: list[FlowProgram]) -> None:
    run = f"{h.bridge.now():.3f} "
    flows: list[tuple[FlowProgram, str, Followed]] = []
    for number, program in enumerate(batch):
        prefix = f"{run}{number} "
        with sent_by(h) as sent:
            flows.append((program, prefix, Followed(h, _marked(program.plan, prefix))))
        if program.twice and not with_marks(h.target):
            _deliver_again(h, sent)
    within_s = h.patience_s + LOST_S
    for program, prefix, followed in flows:
        healed = list[str]()
        status = followed.ends(within_s=within_s)
        for gate in program.retries:
            if status.state == "done":
                break
            if gate:
                healed.append(prefix + gate)
                h.tasks.open(prefix + gate)
            followed.handle.retry()
            status = followed.ends(healed=healed, within_s=within_s)
    h.idle(within_s=within_s)
    for _, _, followed in flows:
        followed.went()


def _deliver_again(h: Harness, sent: list[Message]) -> None:
    if sent:
        h.bridge.broker.publish([replace(message, redelivered=1) for message in sent], timeout_s=h.patience_s)
