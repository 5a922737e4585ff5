"""Ticks of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskbridge import locks
from taskbridge.stores.ticks import ScheduleState, TickClaim


class MemoryTicks:
    """Keeps schedules and claims in tables."""

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._states: dict[str, ScheduleState] = {}
        self._claims: dict[str, dict[float, tuple[str, float]]] = {}

    def begin(self, schedule: str, *, at: float, timeout_s: float) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until `at`."""
        with self._lock:
            return self._states.setdefault(schedule, ScheduleState(settled_until=at))

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        with self._lock:
            return {name: self._states[name] for name in schedules if name in self._states}

    def claim(
        self, schedule: str, planned_at: float, *, claimant: str, now: float, lease_s: float, timeout_s: float
    ) -> TickClaim:
        """Claim a tick."""
        with self._lock:
            state = self._states.get(schedule)
            if state is not None and planned_at <= state.settled_until:
                return TickClaim.SETTLED
            claims = self._claims.setdefault(schedule, {})
            owner, until = claims.get(planned_at, ("", 0.0))
            if owner and owner != claimant and until > now:
                return TickClaim.CLAIMED
            claims[planned_at] = claimant, now + lease_s
            return TickClaim.AGAIN if owner else TickClaim.OURS

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back, if it is still this claimant's."""
        with self._lock:
            claims = self._claims.get(schedule, {})
            if planned_at in claims and claims[planned_at][0] == claimant:
                del claims[planned_at]

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled."""
        with self._lock:
            state = self._states.get(schedule)
            if state is not None and planned_at <= state.settled_until:
                return
            state = ScheduleState(settled_until=planned_at) if state is None else state
            state = replace(state, settled_until=planned_at, missed=state.missed + missed)
            if message_id:
                state = replace(state, last_id=message_id, last_planned_at=planned_at)
            self._states[schedule] = state
            claims = self._claims.pop(schedule, {})
            if left := {instant: claim for instant, claim in claims.items() if instant > planned_at}:
                self._claims[schedule] = left

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on."""
        with self._lock:
            state = self._states.get(schedule, ScheduleState(settled_until=at))
            self._states[schedule] = replace(state, paused=paused)
