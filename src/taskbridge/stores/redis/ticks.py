"""Ticks in Redis: a hash for each schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskbridge.brokers.redis.client import Client
from taskbridge.settings import Settings
from taskbridge.stores.redis import scripts
from taskbridge.stores.ticks import ScheduleState, TickClaim

_FIELDS = ("settled", "paused", "last_id", "last_at", "missed")


class RedisTicks:
    """Keeps schedules and claims in a Redis database."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._namespace = settings.namespace
        self._client = client

    def begin(self, schedule: str, *, at: float, timeout_s: float) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until `at`."""
        found = self._client.run(scripts.BEGIN, (self._key(schedule),), (repr(at),), timeout_s=timeout_s)
        return _state(found)

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        if not schedules:
            return {}
        asked = [("HMGET", self._key(name), *_FIELDS) for name in schedules]
        found = self._client.execute(asked, timeout_s=timeout_s)
        rows = [found] if len(asked) == 1 else found
        return {name: _state(row) for name, row in zip(schedules, rows, strict=True) if row[0] is not None}

    def claim(
        self, schedule: str, planned_at: float, *, claimant: str, now: float, lease_s: float, timeout_s: float
    ) -> TickClaim:
        """Claim a tick."""
        args = (repr(float(planned_at)), claimant, repr(now), repr(now + lease_s))
        answer = self._client.run(scripts.CLAIM_TICK, (self._key(schedule),), args, timeout_s=timeout_s)
        return TickClaim(answer.decode())

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back, if it is still this claimant's."""
        args = (repr(float(planned_at)), claimant)
        self._client.run(scripts.RELEASE_TICK, (self._key(schedule),), args, timeout_s=timeout_s)

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled."""
        args = (repr(float(planned_at)), message_id, missed)
        self._client.run(scripts.SETTLE, (self._key(schedule),), args, timeout_s=timeout_s)

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on."""
        args = (int(paused), repr(at))
        self._client.run(scripts.PAUSE, (self._key(schedule),), args, timeout_s=timeout_s)

    def _key(self, schedule: str) -> str:
        return f"{self._namespace}:schedule:{schedule}"


def _state(row: Sequence[Any]) -> ScheduleState:
    settled, paused, last_id, last_at, missed = row
    return ScheduleState(
        settled_until=float(settled),
        paused=paused == b"1",
        last_id="" if last_id is None else last_id.decode(),
        last_planned_at=None if last_at is None else float(last_at),
        missed=0 if missed is None else int(missed),
    )
