"""Random flows, made by Hypothesis, in this process: what becomes of them is what the model of flows says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from taskbridge import Bridge, Call, FlowHandle
from taskbridge.contract.flow_model import Expected, differences
from taskbridge.contract.flow_plan import FlowPlan, Part, Stage, told
from taskbridge.contract.probe import Record, Records
from taskbridge.contract.program import fail
from taskbridge.contract.tasks import PROBE_FILE, QUEUES, Tasks
from taskbridge.stores.steps import entry_id
from tests.flow_programs import FlowProgram, programs

IN_CI = bool(os.environ.get("CI"))


class Virtual:
    """A bridge on which nothing runs by itself, and whose clock jumps."""

    def __init__(self, folder: Path) -> None:
        self.bridge = Bridge("inline://?threads=0", default_queue=QUEUES[0], queues=QUEUES)
        self.tasks = Tasks(self.bridge, folder)
        self.records = Records(folder / PROBE_FILE)

    def starts(self) -> list[Record]:
        return [record for record in self.records.all() if record.kind == "start"]

    def steps(self, plan: FlowPlan) -> int:
        """Return how many runs there were of what is no callback."""
        callbacks = {part.mark for part in plan.callbacks()}
        return len([start for start in self.starts() if start.data["mark"] not in callbacks])

    def send(self, program: FlowProgram) -> FlowHandle[Any]:
        flow = program.plan.built(self.tasks.parts)
        assert not isinstance(flow, Call)
        if program.delay_s:
            return flow.schedule(program.delay_s)
        if not program.twice:
            return flow.send()
        handle = flow.using(id="twice").send()
        assert not program.plan.built(self.tasks.parts).using(id="twice").send().is_new  # type: ignore[union-attr]
        return handle


def run_virtually(program: FlowProgram) -> list[str]:
    """Return in what a flow on the virtual clock differs from the model."""
    with tempfile.TemporaryDirectory() as folder:
        virtual = Virtual(Path(folder))
        bridge, plan, expected = virtual.bridge, program.plan, Expected()
        handle = virtual.send(program)
        if program.cancelled_after is not None:
            wanted = program.cancelled_after
            bridge.run_until(lambda: len(virtual.starts()) >= wanted)
            bridge.flows.advance(entry_id(handle.id, "again", 0))  # which changes nothing
            handle.cancel()
        steps = virtual.steps(plan)
        bridge.run_until_idle()
        broken = list[str]()
        if handle.status().state == "cancelled":
            expected.cancel(plan)
            broken += [] if virtual.steps(plan) == steps else ["something has started after it was cancelled"]
        else:
            broken += _compare(handle, expected.live(plan))
        healed = set[str]()
        for gate in program.retries:
            if handle.status().state == "done":
                break
            if gate:
                healed.add(gate)
                virtual.tasks.open(gate)
            handle.retry()
            bridge.run_until_idle()
            broken += _compare(handle, expected.live(plan, healed=healed))
        bridge.flows.advance(entry_id(handle.id, "again", 0))
        bridge.run_until_idle()
        return [*broken, *differences(plan, expected, virtual.starts()), *_left(bridge, handle)]


def _compare(handle: FlowHandle[Any], end: tuple[str, Any]) -> list[str]:
    state, value = handle.status().state, None
    if state == "done":
        value = told(handle.result(0))
    return [] if (state, value) == end else [f"it should end as {end}, but did as {(state, value)}"]


def _left(bridge: Bridge, handle: FlowHandle[Any]) -> list[str]:
    """Return in what the counts of a flow at its end are wrong."""
    status = handle.status()
    counts = status.waiting, status.running, status.done, status.dead, status.discarded, status.cancelled
    broken = [] if sum(counts) == status.total else [f"the counts don't add up: {status}"]
    if status.running or (status.state == "done" and status.waiting) or not status.is_final:
        broken.append(f"something is left: {status}")
    return broken


@settings(
    deadline=None,
    derandomize=IN_CI,
    max_examples=300,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=programs())
def test_flows_go_as_the_model_says(program: FlowProgram) -> None:
    broken = run_virtually(program)
    assert not broken, "\n".join([*broken, repr(program)])  # for Hypothesis shows what is as it is by default, too


# That the comparison itself can fail: a true story, told wrongly in each way, differs.

STORY = FlowPlan(
    stages=(
        Stage(parts=(Part(mark="a"), Part(mark="b", steps=(fail(),))), is_group=True, on_error="collect"),
        Stage(parts=(Part(mark="c"),), takes=True),
        Stage(parts=(Part(mark="d", steps=(fail(),)),)),
    ),
    failure=Part(mark="failure"),
    end=Part(mark="end"),
)


def told_of(change: Callable[[list[Record]], list[Record]]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        virtual, expected = Virtual(Path(folder)), Expected()
        virtual.send(FlowProgram(STORY, 0.0, False, None, ()))
        virtual.bridge.run_until_idle()
        expected.live(STORY)
        return differences(STORY, expected, change(virtual.starts()))


def given_otherwise(mark: str, given: Any) -> Callable[[list[Record]], list[Record]]:
    def change(starts: list[Record]) -> list[Record]:
        return [
            replace(each, data={**each.data, "given": given}) if each.data["mark"] == mark else each for each in starts
        ]

    return change


def twice(mark: str) -> Callable[[list[Record]], list[Record]]:
    return lambda starts: [*starts, *(each for each in starts if each.data["mark"] == mark)]


def without(mark: str) -> Callable[[list[Record]], list[Record]]:
    return lambda starts: [each for each in starts if each.data["mark"] != mark]


MARKS = (*"abcd", "failure", "end")

WRONG_STORIES: dict[str, Callable[[list[Record]], list[Record]]] = {
    **{f"{mark} did not start": without(mark) for mark in MARKS},
    **{f"{mark} started twice": twice(mark) for mark in MARKS},
    "an outcome is another": given_otherwise("c", [["done", "a"], ["discarded", None]]),
    "an outcome is missing": given_otherwise("c", [["done", "a"]]),
    "the end is another": given_otherwise("end", {"state": "done"}),
    "nothing was given": given_otherwise("c", None),
}


@pytest.mark.parametrize("story", WRONG_STORIES)
def test_a_wrong_story_differs_from_the_model(story: str) -> None:
    assert told_of(WRONG_STORIES[story]) != []


def test_the_true_story_does_not_differ_from_the_model() -> None:
    assert told_of(lambda starts: starts) == []
