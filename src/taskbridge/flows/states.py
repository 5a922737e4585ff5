"""What is known of a flow: its state, its counts, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, Literal, TypeVar, get_args

from taskbridge.retry import ErrorInfo

R_co = TypeVar("R_co", covariant=True)

OnError = Literal["fail", "wait", "collect"]
"""What the first member of a group that ends badly does: it fails the flow, or it does so when all have ended, or the
outcomes are collected."""

FlowState = Literal["running", "done", "failed", "cancelled"]
"""`running`: some of its steps have not ended. `done`: the last one returned. `failed`: a step ended badly.
`cancelled`: it was cancelled before its end."""

STATES: Final[tuple[FlowState, ...]] = get_args(FlowState)
FINAL: Final[frozenset[FlowState]] = frozenset({"done", "failed", "cancelled"})

Bad = Literal["dead", "discarded", "cancelled"]
"""How a step ends badly."""


@dataclass(frozen=True, kw_only=True)
class FlowEnd:
    """How a flow ended; what `on_failure` and `on_end` give to their tasks.

    Attributes:
        id: The flow's id.
        name: What the flow is called: the name of its first step's task.
        state: `done`, `failed` or `cancelled`.
        step: The first step that ended badly: its message's id; empty if none did.
        task: Its task's name.
        ended: How it ended: `dead`, `discarded`, `cancelled`, or empty.
        reason: Why, as `Status.reason` says.
        error_type: The type of its last error, if there was one.
        error: What that error said.
    """

    id: str
    name: str
    state: str
    step: str = ""
    task: str = ""
    ended: str = ""
    reason: str = ""
    error_type: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Generic[R_co]):
    """How a member of a group ended, with `on_error="collect"`.

    Attributes:
        state: `done`, `dead`, `discarded` or `cancelled`.
        value: What it returned, if it is done.
        reason: Why it is dead or discarded.
        error: Its last error; None if there was none.
    """

    state: Literal["done", "dead", "discarded", "cancelled"]
    value: R_co | None = None
    reason: str = ""
    error: ErrorInfo | None = None

    @property
    def is_done(self) -> bool:
        """Whether it returned."""
        return self.state == "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowStatus:
    """What is known of a flow; it costs the same however many steps there are.

    Attributes:
        id: The flow's id.
        name: The name of its first step's task.
        state: `running`, or its end: `done`, `failed`, `cancelled`.
        created_at: When it was sent, in UTC.
        ended_at: When it came to its end, in UTC.
        stage: The number of the stage that it is at, or ended at; 1 is the first. A step or a group is a stage.
        stages: How many stages there are.
        total: How many steps the stages have, members of groups each; without callbacks.
        waiting: How many have not begun, as far as is known: they wait for the stages before, or for `at_once`.
        running: How many are with the broker or a worker, at most.
        done: How many returned.
        dead: How many are dead.
        discarded: How many were discarded, or have expired.
        cancelled: How many were cancelled.
        oldest: The message id of the first step of this stage that has not ended; empty if all have.
        end: How it ended badly; None if it did not.
        parent: The id of the message whose task returned it by `become`; empty if it was sent.
        is_stalled: Whether what it waits for (its oldest step or, at its end, a callback) is with no broker and no
            worker: `retry` publishes it again.
    """

    id: str
    name: str
    state: FlowState
    created_at: datetime
    ended_at: datetime | None
    stage: int
    stages: int
    total: int
    waiting: int
    running: int
    done: int
    dead: int
    discarded: int
    cancelled: int
    oldest: str = ""
    end: FlowEnd | None = None
    parent: str = ""
    is_stalled: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it is at its end, which it leaves only by a replay."""
        return self.state in FINAL
