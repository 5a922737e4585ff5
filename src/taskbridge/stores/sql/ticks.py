"""Ticks in an SQL database: a row for each schedule, and one for each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, delete, select, update

from taskbridge.stores.planning import Decide, Plan, StoredTicks
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import SCHEDULES, TICKS
from taskbridge.stores.ticks import ScheduleState

T = TypeVar("T")

_UNKNOWN: Final = -1e300
"""Until when a schedule is settled that was claimed before anybody had begun with it."""


class SqlTicks(StoredTicks):
    """Keeps schedules and claims in an SQL database. Whoever changes anything of a schedule locks its row first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._namespace = database.namespace

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        chosen = select(SCHEDULES).where(SCHEDULES.c.namespace == self._namespace, SCHEDULES.c.name.in_(schedules))
        with self._database.reading(timeout_s=timeout_s) as connection:
            rows = connection.execute(chosen).all()
        return {row.name: _state(row) for row in rows if row.settled_until != _UNKNOWN}

    def _change(self, schedule: str, decide: Decide[T], timeout_s: float) -> T:
        with self._database.writing(timeout_s=timeout_s) as connection:
            answer, plan = decide(self._locked(connection, schedule))
            if plan is not None:
                self._write(connection, schedule, plan)
            return answer

    def _locked(self, connection: Connection, schedule: str) -> Plan:
        """Return a schedule, and keep others from changing it until the transaction ends."""
        its = SCHEDULES.c.namespace == self._namespace, SCHEDULES.c.name == schedule
        chosen = select(SCHEDULES).where(*its).with_for_update()
        row = connection.execute(chosen).first()
        if row is None:
            new = self._row(schedule, ScheduleState(settled_until=_UNKNOWN))
            connection.execute(self._database.insert(SCHEDULES).values(new).on_conflict_do_nothing())
            row = connection.execute(chosen).one()
        claims = connection.execute(select(TICKS).where(*self._claims(schedule))).all()
        return Plan(
            state=None if row.settled_until == _UNKNOWN else _state(row),
            claims={claim.planned_at: (claim.claimant, claim.until) for claim in claims},
        )

    def _write(self, connection: Connection, schedule: str, plan: Plan) -> None:
        if plan.state is not None:
            its = SCHEDULES.c.namespace == self._namespace, SCHEDULES.c.name == schedule
            connection.execute(update(SCHEDULES).where(*its).values(self._row(schedule, plan.state)))
        connection.execute(delete(TICKS).where(*self._claims(schedule)))
        key = {"namespace": self._namespace, "schedule": schedule}
        rows = [
            {**key, "planned_at": planned_at, "claimant": claimant, "until": until}
            for planned_at, (claimant, until) in plan.claims.items()
        ]
        if rows:
            connection.execute(TICKS.insert(), rows)

    def _claims(self, schedule: str) -> tuple[Any, Any]:
        return TICKS.c.namespace == self._namespace, TICKS.c.schedule == schedule

    def _row(self, schedule: str, state: ScheduleState) -> dict[str, Any]:
        return {
            "namespace": self._namespace,
            "name": schedule,
            "settled_until": state.settled_until,
            "paused": int(state.paused),
            "last_id": state.last_id,
            "last_planned_at": state.last_planned_at,
            "missed": state.missed,
        }


def _state(row: Any) -> ScheduleState:
    return ScheduleState(
        settled_until=row.settled_until,
        paused=bool(row.paused),
        last_id=row.last_id,
        last_planned_at=row.last_planned_at,
        missed=row.missed,
    )
