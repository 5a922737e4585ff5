"""Random flows for Hypothesis, and what is done to them: what becomes of them is compared with the model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from hypothesis import strategies as st

from taskbridge.contract.flow_plan import FlowPlan, Part, Stage
from taskbridge.contract.program import DISCARD, KILL, RETURN, Step, fail

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
    plan = _plan(draw, numbers, 0, kills=kills)
    return FlowProgram(
        plan=plan,
        delay_s=draw(st.sampled_from((0.0, 0.0, 0.0, 1.0))),
        twice=draw(st.booleans()),
        cancelled_after=draw(st.sampled_from((None, None, None, 0, 1, 2, 4))) if cancels else None,
        retries=draw(st.sampled_from(((), ("",), ("first",), ("", "first"), ("first", "second")))),
    )


def _plan(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool) -> FlowPlan:
    stages = [_stage(draw, numbers, depth, kills=kills) for _ in range(draw(st.integers(1, 3)))]
    failure, end = (_part(draw, numbers, _MOST_NESTED) if draw(st.booleans()) else None for _ in range(2))
    if depth == 0 and failure is None and end is None and sum(len(stage.parts) for stage in stages) <= len(stages):
        end = _part(draw, numbers, _MOST_NESTED)  # one step would be a message, and an empty group has no bridge
    return FlowPlan(stages=(Stage(**{**_fields(stages[0]), "takes": False}), *stages[1:]), failure=failure, end=end)


def _fields(stage: Stage) -> dict[str, object]:
    return {name: getattr(stage, name) for name in ("parts", "is_group", "at_once", "on_error", "takes")}


def _stage(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool) -> Stage:
    if draw(st.booleans()):
        return Stage(parts=(_part(draw, numbers, depth, kills=kills),), takes=draw(st.booleans()))
    return Stage(
        parts=tuple(_part(draw, numbers, depth, kills=kills) for _ in range(draw(st.integers(0, 6)))),
        is_group=True,
        at_once=draw(st.sampled_from((None, None, 1, 2, 10))),
        on_error=draw(st.sampled_from(("fail", "wait", "collect"))),
    )


def _part(draw: st.DrawFn, numbers: count[int], depth: int, *, kills: bool = False) -> Part:
    mark = f"m{next(numbers)}"
    kind = draw(st.sampled_from(("good", "good", "good", "later", "bad", "gone", "lost", "flow")))
    heals = draw(st.sampled_from(("", *GATES)))
    if kind == "flow" and depth < _MOST_NESTED:
        return Part(mark=mark, becomes=_plan(draw, numbers, depth + 1, kills=False))
    if kind == "lost" and kills:
        steps, policy = draw(st.sampled_from((((KILL,), "once"), ((KILL, RETURN), "twice"))))
        return Part(mark=mark, steps=steps, policy=policy, queue="vip", heals=heals)
    chosen: dict[str, tuple[Step, ...]] = {"later": (fail(), RETURN), "bad": (fail(),), "gone": (DISCARD,)}
    policy = "twice" if kind == "later" else draw(st.sampled_from(("once", "twice")))
    return Part(mark=mark, steps=chosen.get(kind, (RETURN,)), policy=policy, heals=heals if kind != "good" else "")
