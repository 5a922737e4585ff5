"""The reference model of flows: what the rules W say must become of a plan, and how that is compared with what did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from taskbridge.contract.flow_plan import FlowPlan, Part, Stage
from taskbridge.contract.probe import Record
from taskbridge.contract.program import POLICIES


class _Outcome(NamedTuple):
    """How a part ends, what it returns, how often it starts, and whether it returns the flow that it becomes."""

    state: str
    value: Any
    starts: int
    becomes: bool = False


class Expected:
    """What must have become of a flow, after one life or several.

    Attributes:
        least: How often each part starts at least, by its mark.
        most: And at most.
        given: What may be given to each part; of a flow's end, the flow's state.
    """

    def __init__(self) -> None:
        self.least: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.given: defaultdict[str, list[Any]] = defaultdict(list)
        self._over: dict[str, _Outcome] = {}  # what is done, or was collected, and is not run again
        self._unsure: set[str] = set()  # what others may have kept from being done

    def live(self, plan: FlowPlan, *, healed: Collection[str] = (), surely: bool = True) -> tuple[str, Any]:
        """Add a life of a flow, and return its state and result."""
        state, value = self._end(plan, healed)
        given: Any = None
        for stage in plan.stages:
            outcomes = [self._outcome(part, healed) for part in stage.parts]
            bad = [outcome for outcome in outcomes if outcome.state != "done"]
            for part, outcome in zip(stage.parts, outcomes, strict=True):
                is_sure = surely and (stage.on_error != "fail" or not bad or (len(bad) == 1 and outcome is bad[0]))
                self._add(part, outcome, given if stage.takes else None, healed=healed, surely=is_sure)
                if is_sure and (outcome.state == "done" or stage.on_error == "collect"):
                    self._over[part.mark] = outcome._replace(starts=0, becomes=False)
            if bad and stage.on_error != "collect":
                break
            given = _passed(stage, outcomes)
        self._call_back(plan, state, healed=healed, surely=surely)
        return state, value

    def cancel(self, plan: FlowPlan) -> None:
        """Add a life of a flow that was cancelled before its end."""
        self.live(replace(plan, failure=None, end=None), surely=False)
        self._call_back(plan, "cancelled", healed=(), surely=True)

    def _call_back(self, plan: FlowPlan, state: str, *, healed: Collection[str], surely: bool) -> None:
        for callback in (plan.failure if state == "failed" else None, plan.end):
            if callback is not None:
                outcome = self._outcome(callback, healed)
                self._add(callback, outcome, state, healed=healed, surely=surely)
                if not surely:  # for its flow may be cancelled
                    self.given[callback.mark] += ["done", "failed", "cancelled"]

    def _end(self, plan: FlowPlan, healed: Collection[str]) -> tuple[str, Any]:
        value: Any = None
        for stage in plan.stages:
            outcomes = [self._outcome(part, healed) for part in stage.parts]
            if stage.on_error != "collect" and any(each.state != "done" for each in outcomes):
                return "failed", None
            value = _passed(stage, outcomes)
        return "done", value

    def _outcome(self, part: Part, healed: Collection[str]) -> _Outcome:
        if part.mark in self._over:
            return self._over[part.mark]
        most = POLICIES[part.policy].max_attempts or 1
        for attempt in range(1, most + 1):
            step = part.steps[min(attempt, len(part.steps)) - 1]
            if part.heals in healed or (step.outcome == "return" and not step.kill):
                if part.becomes is None:
                    return _Outcome("done", part.mark, attempt)
                state, value = self._end(part.becomes, healed)
                return _Outcome("done" if state == "done" else "dead", value, attempt, becomes=True)
            if step.outcome == "discard":
                return _Outcome("discarded", None, attempt)
        return _Outcome("dead", None, most)

    def _add(self, part: Part, outcome: _Outcome, given: Any, *, healed: Collection[str], surely: bool) -> None:
        self.most[part.mark] += outcome.starts
        self.given[part.mark].append(given)
        if not surely:
            self._unsure.add(part.mark)
        elif part.mark not in self._unsure:
            self.least[part.mark] += outcome.starts
        if part.becomes is not None and outcome.becomes:
            self.live(part.becomes, healed=healed, surely=surely)
            if outcome.state == "dead":
                self._unsure.add(part.mark)  # a replay may run it, or only what it has become
        if outcome.state == "done" and surely:
            self.least[part.mark] = max(1, self.least[part.mark])


def _passed(stage: Stage, outcomes: list[_Outcome]) -> Any:
    if stage.on_error == "collect":
        return [[each.state, each.value if each.state == "done" else None] for each in outcomes]
    return [each.value for each in outcomes] if stage.is_group else outcomes[0].value


def differences(plan: FlowPlan, expected: Expected, starts: Iterable[Record]) -> list[str]:
    """Return in what ways a flow went another way than it must, as sentences."""
    seen: Mapping[str, list[Record]] = {part.mark: [] for part in plan.parts()}
    for start in starts:
        seen.get(str(start.data.get("mark")), []).append(start)
    broken: list[str] = []
    for mark, records in seen.items():
        least, most, count = expected.least[mark], expected.most[mark], len(records)
        if not least <= count <= most:
            broken.append(f"{mark} should start {least} to {most} times, but started {count} times")
        for record in records:
            given: Any = record.data["given"]
            given = cast("Any", given)["state"] if isinstance(given, dict) else given
            if given not in expected.given[mark]:
                broken.append(f"{mark} should be given one of {expected.given[mark]!r}, but was given {given!r}")
    return broken
