"""Members of groups that have ended, a row each, and how many have, which is in several rows.

A member counts once, for its row is made once. It is counted in one of 16 rows (shards), by its index, so that members
that end at the same time seldom wait for each other. Who completes a shard then locks the group's own row, shard -1,
until it commits: so the last of these sees what all others have counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from taskbridge.settings import Settings
from taskbridge.stores.backend import COUNTED, BackendWithTables, Counted, Counts, Tallied, Tally
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.schema import Run

TOGETHER: Final = 500
"""How many rows whose time is over one call removes at most."""

_SHARDS: Final = 16
_OWN: Final = -1


class _Statements:
    """The statements about groups."""

    def __init__(self, database: Database) -> None:
        now, light = database.now, database.light
        its, kept = "namespace = :namespace AND key = :key", f"(until IS NULL OR until > {now})"
        over = f"EXISTS (SELECT 1 FROM taskbridge_group WHERE {its} AND shard = {_OWN} AND until <= {now})"
        columns = "done, dead, discarded, cancelled"
        update = "ON CONFLICT (namespace, key, shard) DO UPDATE SET"
        self.end: Final = f"""INSERT INTO taskbridge_member (namespace, key, number, ended, text)
            SELECT :namespace, :key, :number, :ended, :text WHERE NOT {over} ON CONFLICT DO NOTHING RETURNING 1"""
        self.open: Final = f"DELETE FROM taskbridge_member WHERE {its} AND number = :number RETURNING ended"
        self.add: Final = f"""INSERT INTO taskbridge_group AS g (namespace, key, shard, {columns}, sent)
            VALUES (:namespace, :key, :shard, :done, :dead, :discarded, :cancelled, :sent)
            {update} done = g.done + excluded.done, dead = g.dead + excluded.dead,
            discarded = g.discarded + excluded.discarded, cancelled = g.cancelled + excluded.cancelled,
            sent = CASE WHEN excluded.sent > g.sent THEN excluded.sent ELSE g.sent END
            RETURNING done + dead + discarded + cancelled"""
        sums = ", ".join(f"CAST(sum({each}) AS BIGINT)" for each in COUNTED)
        self.counts: Final = f"""SELECT key, {sums}, max(sent) FROM taskbridge_group
            WHERE namespace = :namespace AND key {database.among}
            GROUP BY key HAVING max(CASE WHEN {kept} THEN 0 ELSE 1 END) = 0"""
        self.members: Final = f"""SELECT number, ended, text FROM taskbridge_member
            WHERE {its} AND number >= :first AND number < :stop AND NOT {over}"""
        self.gap: Final = f"""SELECT number + 1 FROM taskbridge_member AS m
            WHERE {its} AND NOT EXISTS (SELECT 1 FROM taskbridge_member AS n
            WHERE n.namespace = m.namespace AND n.key = m.key AND n.number = m.number + 1)
            ORDER BY number LIMIT 1"""
        self.expire: Final = f"""INSERT INTO taskbridge_group (namespace, key, shard, {columns}, sent, until)
            VALUES (:namespace, :key, {_OWN}, 0, 0, 0, 0, 0, {now} + :kept_s) {update} until = excluded.until"""
        self.keep: Final = f"UPDATE taskbridge_group SET until = NULL WHERE {its} AND until > {now}"
        self.forget: Final = tuple(
            f"DELETE FROM taskbridge_{each} WHERE {its} AND {over}" for each in ("member", "group")
        )
        old, joined = f"g.shard = {_OWN} AND g.until <= {now}", "m.namespace = g.namespace AND m.key = g.key"
        self.purges: Final = (
            f"""DELETE FROM taskbridge_member WHERE (namespace, key, number) IN (
            SELECT m.namespace, m.key, m.number FROM taskbridge_group AS g JOIN taskbridge_member AS m ON {joined}
            WHERE {old} LIMIT {TOGETHER} {database.skip_locked}) RETURNING {light}""",
            f"""DELETE FROM taskbridge_group WHERE (namespace, key) IN (
            SELECT g.namespace, g.key FROM taskbridge_group AS g WHERE {old} AND NOT EXISTS (
            SELECT 1 FROM taskbridge_member AS m WHERE {joined}) LIMIT {TOGETHER}) RETURNING {light}""",
        )


class SqlGroups(BackendWithTables):
    """The part of the backend that is about groups.

    Every transaction locks members before shards, and shards before the group's own row, so that no two wait for each
    other. A group whose time is over counts as unknown, and is removed before anything is made of the same key.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._namespace = settings.namespace
        self._database = database
        self._groups = _Statements(database)

    def counts_of(self, keys: Sequence[str], *, timeout_s: float) -> list[Counts]:
        rows = self._database.run(self._groups.counts, self._its(keys=self._database.keys(keys)), timeout_s=timeout_s)
        found = {key: Counts(*numbers) for key, *numbers in rows}
        return [found.get(key, Counts()) for key in keys]

    def members(self, key: str, first: int, count: int, *, timeout_s: float) -> list[tuple[Counted, str | None] | None]:
        values = self._its(key=key, first=first, stop=first + count)
        rows = self._database.run(self._groups.members, values, timeout_s=timeout_s)
        found = {number: (ended, text) for number, ended, text in rows}
        return [found.get(index) for index in range(first, first + count)]

    def first_open(self, key: str, total: int, *, timeout_s: float) -> int | None:
        number = 0
        if self.members(key, 0, 1, timeout_s=timeout_s) != [None]:
            [(number,)] = self._database.run(self._groups.gap, self._its(key=key), timeout_s=timeout_s)
        return number if number < total else None

    def note_sent(self, key: str, sent: int, *, timeout_s: float) -> None:
        with self._database.transaction(timeout_s=timeout_s) as run:
            self._forget(run, key)
            self._add(run, key, _OWN, sent=sent)

    def end_groups(self, keys: Sequence[str], *, kept_s: float | None, timeout_s: float) -> None:
        with self._database.transaction(timeout_s=timeout_s) as run:
            for key in sorted(keys):
                if kept_s is not None:
                    self._forget(run, key)
                run(self._groups.keep if kept_s is None else self._groups.expire, self._its(key=key, kept_s=kept_s))

    def _count(self, run: Run, tally: Tally) -> Tallied:
        """Count a member; how many have ended is exact as the last one is counted."""
        values = self._its(key=tally.key, number=tally.index, ended=tally.ended, text=tally.text)
        is_new = bool(run(self._groups.end, values))
        if not is_new:  # or the group is over
            self._forget(run, tally.key)
            is_new = bool(run(self._groups.end, values))
        if is_new:
            shard = tally.index % _SHARDS
            ended = self._add(run, tally.key, shard, tally.ended, 1)
            if ended >= (tally.total - shard + _SHARDS - 1) // _SHARDS:
                self._add(run, tally.key, _OWN)
        [(_, *counts, _)] = run(self._groups.counts, self._its(keys=self._database.keys([tally.key])))
        return Tallied(sum(counts), is_new)

    def _uncount(self, run: Run, members: Collection[tuple[str, int]]) -> None:
        """Count members no more; those of a shard together, as others lock them."""
        for key, index in sorted(members, key=lambda each: (each[0], each[1] % _SHARDS, each[1])):
            for (ended,) in run(self._groups.open, self._its(key=key, number=index)):
                self._add(run, key, index % _SHARDS, ended, -1)

    def _add(self, run: Run, key: str, shard: int, ended: str = "", by: int = 0, *, sent: int = 0) -> int:
        """Add to the counts of a row, which is locked from then on, and return how many have ended by it."""
        numbers = {each: by if each == ended else 0 for each in COUNTED}
        [(count,)] = run(self._groups.add, self._its(key=key, shard=shard, sent=sent, **numbers))
        return int(count)

    def _forget(self, run: Run, key: str) -> None:
        for statement in self._groups.forget:
            run(statement, self._its(key=key))

    def _its(self, **values: Any) -> dict[str, Any]:
        return {"namespace": self._namespace, **values}
