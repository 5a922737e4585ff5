"""What the ticks of stores have in common: what a call makes of a schedule is decided here, and a store keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from taskbridge.stores.ticks import ScheduleState, TickClaim

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule as it is kept.

    Attributes:
        state: What is known of it; None if nobody has begun with it.
        claims: The ticks that are claimed and not settled: who has claimed each, and until when.
    """

    state: ScheduleState | None = None
    claims: Mapping[float, tuple[str, float]] = field(default_factory=dict[float, tuple[str, float]])

    def is_settled(self, planned_at: float) -> bool:
        """Return whether a tick is settled."""
        return self.state is not None and planned_at <= self.state.settled_until


Decide = Callable[[Plan], "tuple[T, Plan | None]"]
"""Given a schedule, returns the answer to whoever asks, and what is to replace the schedule; None is to leave it."""


class StoredTicks(ABC):
    """Ticks whose changes are decided here."""

    def begin(self, schedule: str, *, at: float, timeout_s: float) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until `at`."""

        def decide(plan: Plan) -> tuple[ScheduleState, Plan | None]:
            if plan.state is not None:
                return plan.state, None
            state = ScheduleState(settled_until=at)
            return state, replace(plan, state=state)

        return self._change(schedule, decide, timeout_s)

    def claim(
        self, schedule: str, planned_at: float, *, claimant: str, now: float, lease_s: float, timeout_s: float
    ) -> TickClaim:
        """Claim a tick."""

        def decide(plan: Plan) -> tuple[TickClaim, Plan | None]:
            if plan.is_settled(planned_at):
                return TickClaim.SETTLED, None
            owner, until = plan.claims.get(planned_at, ("", 0.0))
            if owner and owner != claimant and until > now:
                return TickClaim.CLAIMED, None
            claims = {**plan.claims, planned_at: (claimant, now + lease_s)}
            return TickClaim.AGAIN if owner else TickClaim.OURS, replace(plan, claims=claims)

        return self._change(schedule, decide, timeout_s)

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back, if it is still this claimant's."""

        def decide(plan: Plan) -> tuple[None, Plan | None]:
            if plan.claims.get(planned_at, ("", 0.0))[0] != claimant:
                return None, None
            left = {instant: claim for instant, claim in plan.claims.items() if instant != planned_at}
            return None, replace(plan, claims=left)

        self._change(schedule, decide, timeout_s)

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled."""

        def decide(plan: Plan) -> tuple[None, Plan | None]:
            if plan.is_settled(planned_at):
                return None, None
            state = ScheduleState(settled_until=planned_at) if plan.state is None else plan.state
            state = replace(state, settled_until=planned_at, missed=state.missed + missed)
            if message_id:
                state = replace(state, last_id=message_id, last_planned_at=planned_at)
            left = {instant: claim for instant, claim in plan.claims.items() if instant > planned_at}
            return None, Plan(state=state, claims=left)

        self._change(schedule, decide, timeout_s)

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on."""

        def decide(plan: Plan) -> tuple[None, Plan | None]:
            state = ScheduleState(settled_until=at) if plan.state is None else plan.state
            return None, replace(plan, state=replace(state, paused=paused))

        self._change(schedule, decide, timeout_s)

    @abstractmethod
    def _change(self, schedule: str, decide: Decide[T], timeout_s: float) -> T:
        """Decide about a schedule, replace it, in one step, and return the answer; raises BrokerUnavailable."""
