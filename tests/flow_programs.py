"""Random flows for Hypothesis, and what is done to them: what becomes of them is compared with the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

from hypothesis import strategies as st

from taskbridge.contract.flow_plan import FlowPlan, Part, Stage
from taskbridge.contract.program import DISCARD, KILL, RETURN, Step, fail
from taskbridge.flows.states import OnError

GATES = ("first", "second")
"""The gates that let sick parts return, in the order in which they may be opened."""

_MOST_NESTED = 2


@dataclass(frozen=True)
class FlowProgram:
    """A flow, and what is done to it.

    Attributes:
        plan: The flow.
        delay_s: How long after it was sent its first stage is due.
        twice: Whether it is sent twice under one id, and each of its first messages delivered twice where that is told.
        cancelled_after: After how many starts it is cancelled; None is never.
        retries: What is done once it has ended, one after another, until it is done: it goes on, with this gate open.
    """

    plan: FlowPlan
    delay_s: float
    twice: bool
    cancelled_after: int | None
    retries: tuple[str, ...]


@st.composite
def programs(draw: st.DrawFn, *, kills: bool = False, cancels: bool = True) -> FlowProgram:
    numbers = count()
    plan = _plan(draw, numbers, 0, kills=kills, sick=True)
    return FlowProgram(
        plan=plan,
        delay_s=draw(st.sampled_from((0.0, 0.0, 0.0, 1.0))),
        twice=draw(st.booleans()),
        cancelled_after=draw(st.sampled_from((None, None, None, 0, 1, 2, 4))) if cancels else None,
        retries=draw(st.sampled_from(((), ("",), ("first",), ("", "first"), ("first", "second")))),
    )


def _plan(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool, sick: bool) -> FlowPlan:
    first, *others = [_stage(draw, numbers, depth, kills=kills, sick=sick) for _ in range(draw(st.integers(1, 3)))]
    stages = (replace(first, takes=False), *others)
    failure, end = (_part(draw, numbers, _MOST_NESTED) if draw(st.booleans()) else None for _ in range(2))
    if depth == 0 and failure is None and end is None and sum(len(stage.parts) for stage in stages) <= len(stages):
        end = _part(draw, numbers, _MOST_NESTED)  # one step would be a message, and an empty group has no bridge
    return FlowPlan(stages=stages, failure=failure, end=end)


def _stage(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool, sick: bool) -> Stage:
    if draw(st.booleans()):
        return Stage(parts=(_part(draw, numbers, depth, kills=kills, sick=sick),), takes=draw(st.booleans()))
    on_error: OnError = draw(st.sampled_from(("fail", "wait", "collect")))
    sick = sick and on_error != "collect"  # what was collected stays so: nobody could say when that was
    members = [_part(draw, numbers, depth, kills=kills, sick=sick) for _ in range(draw(st.integers(0, 6)))]
    at_once = draw(st.sampled_from((None, None, 1, 2, 10)))
    return Stage(parts=tuple(members), is_group=True, at_once=at_once, on_error=on_error)


def _part(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool = False, sick: bool = False) -> Part:
    mark = f"m{next(numbers)}"
    kind = draw(st.sampled_from(("good", "good", "good", "later", "bad", "gone", "lost", "flow")))
    if kind == "flow" and depth < _MOST_NESTED:
        return Part(mark=mark, becomes=_plan(draw, numbers, depth + 1, kills=False, sick=sick))
    heals = draw(st.sampled_from(("", *GATES))) if sick and kind != "good" else ""
    if kind == "lost" and kills:
        steps, policy = draw(st.sampled_from((((KILL,), "once"), ((KILL, RETURN), "twice"))))
        return Part(mark=mark, steps=steps, policy=policy, queue="vip", heals=heals)
    chosen: dict[str, tuple[Step, ...]] = {"later": (fail(), RETURN), "bad": (fail(),), "gone": (DISCARD,)}
    policy = "twice" if kind == "later" else draw(st.sampled_from(("once", "twice")))
    return Part(mark=mark, steps=chosen.get(kind, (RETURN,)), policy=policy, heals=heals)
