"""Flows as plain data: what is sent, what a task returns by `become`, and what the model of flows reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from hashlib import sha256
from typing import Any, Final, cast

from typing_extensions import Self

from taskbridge import Call, Flow, Outcome, Task, group
from taskbridge.contract.program import RETURN, Brief, Step
from taskbridge.flows.states import OnError

_LONG: Final = 100

FlowTasks = Mapping[str, "Task[[Any, dict[str, Any]], object]"]
"""The tasks that do what parts say, by the names of their policies."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Part(Brief):
    """A step of a flow.

    Attributes:
        mark: What tells it from all others of an environment, and what it returns.
        steps: What its attempts do.
        policy: The name of a policy in `POLICIES`.
        queue: Where it is run; None leaves it to the bridge.
        heals: The name of a gate; once that is open, it returns, whatever its steps say.
        becomes: The flow that it returns in place of its mark.
    """

    mark: str
    steps: tuple[Step, ...] = (RETURN,)
    policy: str = "once"
    queue: str | None = None
    heals: str = ""
    becomes: FlowPlan | None = None

    def call(self, tasks: FlowTasks) -> Call[Any]:
        """Return the call of one that is given nothing."""
        return self.task(tasks).call(None, self.plain())

    def task(self, tasks: FlowTasks) -> Task[[Any, dict[str, Any]], object]:
        """Return its task."""
        return tasks[self.policy].using(queue=self.queue)

    def plain(self) -> dict[str, Any]:
        """Return it as it travels in a message."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Return the part that travelled in a message."""
        becomes, fields = plain["becomes"], dict(plain)
        fields["steps"] = tuple(Step(**step) for step in plain["steps"])
        fields["becomes"] = None if becomes is None else FlowPlan.of(becomes)
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Stage(Brief):
    """A single step, or a group.

    Attributes:
        parts: Its steps; one, if it is no group.
        is_group: Whether it is a group.
        at_once: The option of a group.
        on_error: The option of a group.
        takes: Whether a single step is given the result of the stage before.
    """

    parts: tuple[Part, ...]
    is_group: bool = False
    at_once: int | None = None
    on_error: OnError = "fail"
    takes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FlowPlan(Brief):
    """A flow: its stages, and its callbacks."""

    stages: tuple[Stage, ...]
    failure: Part | None = None
    end: Part | None = None

    def built(self, tasks: FlowTasks) -> Call[Any] | Flow[Any]:
        """Return the flow; a call, if it is one step and nothing else."""
        flow: Call[Any] | Flow[Any] | None = None
        for stage in self.stages:
            if stage.takes and flow is not None:
                flow = flow.then(stage.parts[0].task(tasks), stage.parts[0].plain())
                continue
            calls = (part.call(tasks) for part in stage.parts)
            step = _group(calls, stage) if stage.is_group else next(calls)
            flow = step if flow is None else flow.then_call(step)
        assert flow is not None, "a flow has a stage"
        if self.failure is not None:
            flow = flow.on_failure(self.failure.task(tasks), self.failure.plain())
        return flow if self.end is None else flow.on_end(self.end.task(tasks), self.end.plain())

    def parts(self) -> Iterator[Part]:
        """Return its parts, those of flows that they become too."""
        for part in (*(part for stage in self.stages for part in stage.parts), self.failure, self.end):
            if part is not None:
                yield part
            if part is not None and part.becomes is not None:
                yield from part.becomes.parts()

    def callbacks(self) -> Iterator[Part]:
        """Return those of its parts that are called at an end."""
        steps = (part for stage in self.stages for part in stage.parts)
        inner = (each for part in steps if part.becomes is not None for each in part.becomes.callbacks())
        yield from (part for part in (self.failure, self.end, *inner) if part is not None)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Return the plan that travelled in a message."""
        stages = tuple(_stage_of(**each) for each in plain["stages"])
        callbacks = {name: plain[name] and Part.of(plain[name]) for name in ("failure", "end")}
        return cls(stages=stages, **callbacks)


def _stage_of(parts: Sequence[Mapping[str, Any]], **others: Any) -> Stage:
    return Stage(parts=tuple(map(Part.of, parts)), **others)


def _group(calls: Iterator[Call[Any]], stage: Stage) -> Flow[Any]:
    if stage.on_error == "collect":
        return group(calls, at_once=stage.at_once, on_error="collect")
    return group(calls, at_once=stage.at_once, on_error=stage.on_error)


def single(mark: str, *steps: Step, takes: bool = True, **part: Any) -> Stage:
    """Return a stage of one step."""
    return Stage(parts=(Part(mark=mark, steps=steps or (RETURN,), **part),), takes=takes)


def grouping(*parts: Part, on_error: OnError = "fail", at_once: int | None = None) -> Stage:
    """Return a stage that is a group."""
    return Stage(parts=parts, is_group=True, on_error=on_error, at_once=at_once)


def told(given: Any) -> Any:
    """Return what a step was given, as JSON holds it and the model tells it: of long text its length and hash."""
    if isinstance(given, Outcome):
        return [given.state, told(given.value)]  # pyright: ignore[reportUnknownMemberType]
    if is_dataclass(given) and not isinstance(given, type):  # a FlowEnd
        return asdict(given)
    if isinstance(given, str):
        return given if len(given) < _LONG else f"{len(given)} {sha256(given.encode()).hexdigest()}"
    if isinstance(given, Sequence):  # a list, or results
        return [told(each) for each in cast("Sequence[object]", given)]
    return given
