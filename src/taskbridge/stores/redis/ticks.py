"""Ticks in Redis: a hash for each schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

from taskbridge.brokers.redis.client import Client
from taskbridge.settings import Settings
from taskbridge.stores.planning import Decide, Plan, StoredTicks
from taskbridge.stores.redis.scripts import Fields, fields_of, write
from taskbridge.stores.ticks import ScheduleState

T = TypeVar("T")


class RedisTicks(StoredTicks):
    """Keeps schedules in a Redis database."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._namespace = settings.namespace
        self._client = client

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        if not schedules:
            return {}
        asked = [("HGETALL", self._key(name)) for name in schedules]
        found = self._client.execute(asked, timeout_s=timeout_s)
        rows = [found] if len(asked) == 1 else found
        states = {name: _plan(fields_of(row)).state for name, row in zip(schedules, rows, strict=True)}
        return {name: state for name, state in states.items() if state is not None}

    def _change(self, schedule: str, decide: Decide[T], timeout_s: float) -> T:
        key, deadline = self._key(schedule), monotonic() + timeout_s
        found: Any = self._client.execute([("HGETALL", key)], timeout_s=timeout_s)
        while True:
            fields = fields_of(found)
            answer, plan = decide(_plan(fields))
            if plan is None:
                return answer
            found = write(
                self._client,
                (key,),
                version=int(fields.get("version", "0")),
                fields=_fields(plan),
                timeout_s=deadline - monotonic(),
            )
            if found is None:
                return answer

    def _key(self, schedule: str) -> str:
        return f"{self._namespace}:schedule:{schedule}"


def _fields(plan: Plan) -> Fields:
    claims = {f"c:{instant!r}": f"{until!r} {claimant}" for instant, (claimant, until) in plan.claims.items()}
    state = plan.state
    if state is None:
        return claims
    return {
        "settled": state.settled_until,
        "paused": int(state.paused),
        "last_id": state.last_id,
        "last_at": state.last_planned_at,
        "missed": state.missed,
        **claims,
    }


def _plan(fields: Mapping[str, str]) -> Plan:
    claims: dict[float, tuple[str, float]] = {}
    for name, value in fields.items():
        if name.startswith("c:"):
            until, _, claimant = value.partition(" ")
            claims[float(name[2:])] = claimant, float(until)
    if "settled" not in fields:
        return Plan(claims=claims)
    state = ScheduleState(
        settled_until=float(fields["settled"]),
        paused=fields.get("paused") == "1",
        last_id=fields.get("last_id", ""),
        last_planned_at=float(fields["last_at"]) if "last_at" in fields else None,
        missed=int(fields.get("missed", "0")),
    )
    return Plan(state=state, claims=claims)
