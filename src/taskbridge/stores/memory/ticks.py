"""Ticks of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from taskbridge.locks import Lock
from taskbridge.stores.planning import Decide, Plan, StoredTicks
from taskbridge.stores.ticks import ScheduleState

T = TypeVar("T")


class MemoryTicks(StoredTicks):
    """Keeps schedules in a table."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._plans: dict[str, Plan] = {}

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        with self._lock:
            known = {name: self._plans[name].state for name in schedules if name in self._plans}
        return {name: state for name, state in known.items() if state is not None}

    def _change(self, schedule: str, decide: Decide[T], timeout_s: float) -> T:
        with self._lock:
            answer, plan = decide(self._plans.get(schedule, Plan()))
            if plan is not None:
                self._plans[schedule] = plan
            return answer
