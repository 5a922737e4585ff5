"""Ticks in an SQL database: a row for each schedule, and one for each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import SCHEDULES, TICKS
from taskbridge.stores.ticks import ScheduleState, TickClaim

_UNKNOWN: Final = -1e300
"""Until when a schedule is settled that was claimed before anybody had begun with it."""


class SqlTicks:
    """Keeps schedules and claims in an SQL database. Who changes anything of a schedule locks its row first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._namespace = database.namespace

    def begin(self, schedule: str, *, at: float, timeout_s: float) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until `at`."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            return self._locked(connection, schedule, settled_until=at)

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        chosen = select(SCHEDULES).where(SCHEDULES.c.namespace == self._namespace, SCHEDULES.c.name.in_(schedules))
        with self._database.reading(timeout_s=timeout_s) as connection:
            rows = connection.execute(chosen).all()
        return {row.name: _state(row) for row in rows if row.settled_until != _UNKNOWN}

    def claim(
        self, schedule: str, planned_at: float, *, claimant: str, now: float, lease_s: float, timeout_s: float
    ) -> TickClaim:
        """Claim a tick."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            if planned_at <= self._locked(connection, schedule, settled_until=_UNKNOWN).settled_until:
                return TickClaim.SETTLED
            tick = self._tick(schedule, planned_at)
            claim = connection.execute(select(TICKS.c.claimant, TICKS.c.until).where(*tick)).first()
            row = {"claimant": claimant, "until": now + lease_s}
            if claim is None:
                key = {"namespace": self._namespace, "schedule": schedule, "planned_at": planned_at}
                connection.execute(TICKS.insert().values({**key, **row}))
                return TickClaim.OURS
            if claim.claimant != claimant and claim.until > now:
                return TickClaim.CLAIMED
            connection.execute(update(TICKS).where(*tick).values(row))
            return TickClaim.AGAIN

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back, if it is still this claimant's."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            self._locked(connection, schedule, settled_until=_UNKNOWN)
            tick = self._tick(schedule, planned_at)
            connection.execute(delete(TICKS).where(*tick, TICKS.c.claimant == claimant))

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            state = self._locked(connection, schedule, settled_until=_UNKNOWN)
            if planned_at <= state.settled_until:
                return
            row: dict[str, Any] = {"settled_until": planned_at, "missed": state.missed + missed}
            if message_id:
                row |= {"last_id": message_id, "last_planned_at": planned_at}
            connection.execute(update(SCHEDULES).where(*self._is(schedule)).values(row))
            done = (
                TICKS.c.namespace == self._namespace,
                TICKS.c.schedule == schedule,
                TICKS.c.planned_at <= planned_at,
            )
            connection.execute(delete(TICKS).where(*done))

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on."""
        with self._database.writing(timeout_s=timeout_s) as connection:
            self._locked(connection, schedule, settled_until=at)
            connection.execute(update(SCHEDULES).where(*self._is(schedule)).values(paused=int(paused)))

    def _locked(self, connection: Connection, schedule: str, *, settled_until: float) -> ScheduleState:
        """Return what is known of a schedule, and keep others from changing it; make it known if it isn't."""
        chosen = select(SCHEDULES).where(*self._is(schedule)).with_for_update()
        row = connection.execute(chosen).first()
        if row is None:
            new = {
                "namespace": self._namespace,
                "name": schedule,
                "settled_until": settled_until,
                "paused": 0,
                "last_id": "",
                "missed": 0,
            }
            connection.execute(self._database.insert(SCHEDULES).values(new).on_conflict_do_nothing())
            row = connection.execute(chosen).one()
        if row.settled_until == _UNKNOWN != settled_until:
            connection.execute(update(SCHEDULES).where(*self._is(schedule)).values(settled_until=settled_until))
            row = connection.execute(chosen).one()
        return _state(row)

    def _tick(self, schedule: str, planned_at: float) -> tuple[Any, Any, Any]:
        return (
            TICKS.c.namespace == self._namespace,
            TICKS.c.schedule == schedule,
            TICKS.c.planned_at == planned_at,
        )

    def _is(self, schedule: str) -> tuple[Any, Any]:
        return SCHEDULES.c.namespace == self._namespace, SCHEDULES.c.name == schedule


def _state(row: Any) -> ScheduleState:
    return ScheduleState(
        settled_until=row.settled_until,
        paused=bool(row.paused),
        last_id=row.last_id,
        last_planned_at=row.last_planned_at,
        missed=row.missed,
    )
