"""Texts in an SQL database. Each write is one statement, which on PostgreSQL is one round trip."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable
from taskbridge.locks import PerProcess
from taskbridge.logs import logger
from taskbridge.settings import Settings
from taskbridge.stores.backend import ABSENT, NEW, Commit, Entry, Listed, ListKind, Page, Rank, Tally, Write
from taskbridge.stores.base import Store
from taskbridge.stores.sql.database import Database, Transaction, Values
from taskbridge.stores.sql.groups import TOGETHER, SqlGroups
from taskbridge.stores.sql.schema import TABLES, Run

_log = logger("taskbridge.store")

_SOON_S: Final = 2.0  # how long a write may take that nobody waits for: a run does, after all
_PAUSE_S: Final = 1.0  # how long none is done after a failure


class _Statements:
    """The statements about texts. What changes one returns a row if it was changed.

    Marks are written lightly: by statements that wait for the database, but not for its disk. A mark that only this
    process knew of would be lost with it.
    """

    def __init__(self, database: Database) -> None:
        now, until, light = database.now, f"{database.now} + :kept_s", database.light
        key = "namespace = :namespace AND key = :key"
        keys = f"namespace = :namespace AND key {database.among}"
        kept = f"(until IS NULL OR until > {now})"
        insert = f"""INSERT INTO taskbridge_text AS t (namespace, key, head, rest, told, until)
            VALUES (:namespace, :key, :head, :rest, :tells, {until}) ON CONFLICT"""
        replace = """(namespace, key) DO UPDATE
            SET head = excluded.head, rest = excluded.rest, told = excluded.told, until = excluded.until"""
        old = f"SELECT namespace, key FROM taskbridge_text WHERE until < {now} LIMIT {TOGETHER} {database.skip_locked}"
        self.find: Final = f"SELECT key, head, rest FROM taskbridge_text WHERE {keys} AND {kept}"
        self.create: Final = f"{insert} DO NOTHING"
        self.put: Final = f"{insert} {replace} RETURNING {light}"
        self.make: Final = f"{insert} {replace} WHERE t.head = :seen OR t.until <= {now}"
        self.begin: Final = f"{self.make} RETURNING {database.notify}"
        self.go_on: Final = f"""UPDATE taskbridge_text
            SET head = :head, rest = :rest, told = :tells, until = {until} WHERE {key} AND head = :seen AND {kept}
            RETURNING {database.notify}"""
        self.end: Final = f"DELETE FROM taskbridge_text WHERE {key} AND head = :seen RETURNING key"
        self.remove: Final = f"DELETE FROM taskbridge_text WHERE {keys} RETURNING {light}"
        due = f"namespace = :namespace AND due_at <= {now}"
        one, ids = "namespace = :namespace AND id = :id", f"namespace = :namespace AND id {database.among}"
        first = f"SELECT id FROM taskbridge_outbox WHERE {due} ORDER BY due_at LIMIT :most {database.skip_locked}"
        self.post: Final = f"""INSERT INTO taskbridge_outbox (namespace, id, text, due_at)
            VALUES (:namespace, :id, :text, {now} + :in_s)
            ON CONFLICT (namespace, id) DO UPDATE SET text = excluded.text, due_at = excluded.due_at"""
        self.post_earlier: Final = f"{self.post} WHERE taskbridge_outbox.due_at > excluded.due_at"
        self.hasten: Final = f"UPDATE taskbridge_outbox SET due_at = {now} + :in_s WHERE {one}"
        self.is_due: Final = f"SELECT 1 FROM taskbridge_outbox WHERE {due} LIMIT 1"
        self.due: Final = f"""UPDATE taskbridge_outbox SET due_at = {now} + :lease_s
            WHERE namespace = :namespace AND id IN ({first}) RETURNING id, text, {light}"""
        self.sent: Final = f"DELETE FROM taskbridge_outbox WHERE {ids} RETURNING {light}"
        self.purge: Final = f"DELETE FROM taskbridge_text WHERE (namespace, key) IN ({old}) RETURNING {light}"
        old = old.replace("taskbridge_text", "taskbridge_listing").replace("key", "id")
        self.forget: Final = f"DELETE FROM taskbridge_listing WHERE (namespace, id) IN ({old}) RETURNING {light}"
        self.list: Final = f"""INSERT INTO taskbridge_listing (namespace, id, state, queue, at, until)
            VALUES (:namespace, :id, :state, :queue, :at, {until}) ON CONFLICT (namespace, id) DO UPDATE
            SET state = excluded.state, queue = excluded.queue, at = excluded.at, until = excluded.until"""
        self.list_one: Final = f"{self.list} RETURNING {light}"
        self.unlist: Final = f"DELETE FROM taskbridge_listing WHERE {one} AND state = :state"
        cancelled = "FROM taskbridge_cancelled WHERE namespace = :namespace"
        number = f"CAST({now} * 1000000 AS BIGINT)"  # grows even when all have been forgotten
        self.cancel: Final = f"""INSERT INTO taskbridge_cancelled (namespace, number, life, until)
            SELECT :namespace, CASE WHEN max(number) >= {number} THEN max(number) + 1 ELSE {number} END, :life, {until}
            {cancelled}"""
        self.cancelled: Final = f"SELECT number, life {cancelled} AND number > :number ORDER BY number LIMIT :most"
        self.forget_cancelled: Final = f"DELETE {cancelled} AND until < {now}"
        self.latest: Final = f"""SELECT id, at FROM taskbridge_listing
            WHERE namespace = :namespace AND state = :name AND (at, id) < (:at, :id) AND {kept}
            ORDER BY at DESC, id DESC LIMIT :most"""
        self.count: Final = f"""SELECT state, count(*) FROM taskbridge_listing
            WHERE namespace = :namespace AND state {database.among} AND {kept} GROUP BY state"""
        self.earliest: Final = f"""SELECT id, at FROM taskbridge_listing
            WHERE namespace = :namespace AND queue = :name AND {kept} ORDER BY at, id LIMIT :most"""


class SqlBackend(SqlGroups):
    """Keeps texts in a table."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self._statements = _Statements(database)
        self._silent_until = 0.0
        self._notifications = PerProcess(database.notifications)

    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        its = self._its(keys=self._database.keys(keys))
        rows = self._database.run(self._statements.find, its, timeout_s=timeout_s)
        found = {key: f"{head}\n{rest}" if rest else head for key, head, rest in rows}
        return [found.get(key) for key in keys]

    def create(self, entries: Sequence[tuple[str, str, float | None]], *, timeout_s: float) -> None:
        self._database.run_all(self._statements.create, [self._values(*each) for each in entries], timeout_s=timeout_s)

    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        if len(writes) == 1 and not writes[0].cancels:
            return [self._write(partial(self._database.run, timeout_s=timeout_s), writes[0])]
        with self._database.transaction(timeout_s=timeout_s) as run:
            return [self._write(run, each) for each in writes]

    def commit(self, commits: Sequence[Commit], *, timeout_s: float) -> list[bool]:
        """Do each of these wholly or not at all, in one transaction.

        Their texts are locked in the order of their keys, and before members and entries, as everybody does: so no two
        wait for each other.
        """
        done = [False] * len(commits)
        has_begun = False
        try:
            with self._database.transaction(timeout_s=timeout_s) as run:
                has_begun = True
                order = sorted(range(len(commits)), key=lambda each: _last_key(commits[each]))
                if self._are_made(run, [commits[number] for number in order]):
                    done = [True] * len(commits)
                else:
                    for number in order:
                        done[number] = self._commit(run, commits[number], is_alone=len(commits) == 1)
                carried = [commit for commit, is_done in zip(commits, done, strict=True) if is_done]
                self._uncount(run, {member for commit in carried for member in commit.uncounts})
                self._put_in(
                    run, sorted((each for commit in carried for each in commit.entries), key=lambda each: each.id)
                )
        except StoreUnavailable as exc:
            exc.maybe_taken = has_begun  # nobody knows of a COMMIT that was not answered
            raise
        return done

    def _are_made(self, run: Transaction, commits: Sequence[Commit]) -> bool:
        """Make the texts of several commits that only make some, as `_commit` does, but in one round trip for all.

        Returns False if nothing was done: one of them does something else, or what it makes is there.
        """
        writes = [write for commit in commits for write in sorted(commit.writes, key=lambda each: each.key)]
        if len(commits) == 1 or any(each.seen != ABSENT or each.text is None or each.tells for each in writes):
            return False
        rows = [{**self._values(each.key, each.text or "", each.kept_s), "seen": each.seen} for each in writes]
        if run.all(self._statements.make, rows) == len(rows):
            return True
        run("ROLLBACK", {})
        run(self._database.begin, {})
        return False

    def _commit(self, run: Run, commit: Commit, *, is_alone: bool) -> bool:
        is_saved = not is_alone and len(commit.writes) > 1  # savepoints cost round trips, and PostgreSQL remembers few
        if is_saved:
            run("SAVEPOINT one", {})
        is_done = all(self._write(run, write) for write in sorted(commit.writes, key=lambda each: each.key))
        if not is_done and is_alone:
            run("ROLLBACK", {})
            run(self._database.begin, {})
        elif not is_done and is_saved:
            run("ROLLBACK TO SAVEPOINT one", {})
        if is_saved:
            run("RELEASE SAVEPOINT one", {})
        return is_done

    def tally(self, write: Write, tally: Tally, *, timeout_s: float) -> bool | None:
        with self._database.transaction(timeout_s=timeout_s) as run:
            if not self._write(run, write):
                return None
            is_posted = tally.is_posted(all_ended=self._count(run, tally))
            if is_posted:
                self._post(run, tally.entry, self._statements.post_earlier)
            return is_posted

    def _put_in(self, run: Transaction, entries: Sequence[Entry]) -> None:
        """Put entries in the outbox in their order, all at once if they are new."""
        if len(entries) > 1 and all(each.text is not None for each in entries):
            run.all(self._statements.post, [self._posted(each) for each in entries])
            return
        for each in entries:
            self._post(run, each, self._statements.hasten if each.text is None else self._statements.post)

    def _post(self, run: Run, entry: Entry, statement: str) -> None:
        run(statement, self._posted(entry))

    def _posted(self, entry: Entry) -> dict[str, Any]:
        return self._its(id=entry.id, text=entry.text, in_s=entry.in_s)

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        """Return entries of the outbox that are due; nothing is written if there are none."""
        if not self._database.run(self._statements.is_due, self._its(), timeout_s=timeout_s):
            return []
        values = self._its(most=most, lease_s=lease_s)
        rows = self._database.run(self._statements.due, values, timeout_s=timeout_s)
        return [(row[0], row[1]) for row in rows]

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        values = self._its(keys=self._database.keys(list(ids)))
        self._database.run(self._statements.sent, values, timeout_s=timeout_s)

    def _write(self, run: Run, write: Write) -> bool:
        if write.text is None:
            return bool(run(self._statements.end, self._its(key=write.key, seen=write.seen)))
        values = {**self._values(write.key, write.text, write.kept_s, tells=write.tells), "seen": write.seen}
        is_done = bool(run(self._statements.begin if write.seen in (NEW, ABSENT) else self._statements.go_on, values))
        if is_done and write.cancels:
            self._note_cancellation(run, write)
        return is_done

    def _note_cancellation(self, run: Run, write: Write) -> None:
        """Put a cancellation where `cancelled_since` finds it; numbers are committed in their order."""
        self._database.lock(run, self._namespace)
        run(self._statements.cancel, self._its(life=write.cancels, kept_s=write.cancellation_kept_s))
        run(self._statements.forget_cancelled, self._its())

    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        self._database.run(self._statements.put, self._values(key, text, kept_s), timeout_s=timeout_s)

    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        self._tried(f"{key} can't be written", self._statements.put, [self._values(key, text, kept_s)])

    def _tried(self, problem: str, statement: str, values: Sequence[Values]) -> None:
        """Carry a statement out for each of several values; if that fails, none is tried for a second."""
        if not values or monotonic() < self._silent_until:
            return
        try:
            self._database.run_all(statement, values, timeout_s=_SOON_S)
        except BrokerUnavailable as exc:
            _log.warning("%s: %s", problem, exc.problem)
            self._silent_until = monotonic() + _PAUSE_S

    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        its = self._its(keys=self._database.keys(list(keys)))
        self._database.run(self._statements.remove, its, timeout_s=timeout_s)

    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        values = self._its(number=int(cursor or "0"), most=most)
        found = self._database.run(self._statements.cancelled, values, timeout_s=timeout_s)
        return str(found[-1][0]) if found else cursor, [life for _, life in found]

    def watch(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        return self._notifications.get().watch(key, wake)

    def purge(self, *, timeout_s: float) -> bool:
        purges = self._statements.purge, self._statements.forget, *self._groups.purges
        return max(len(self._database.run(each, {}, timeout_s=timeout_s)) for each in purges) >= TOGETHER

    def list_soon(self, entries: Sequence[Listed]) -> None:
        rows = [
            self._its(id=each.id, state=each.state, queue=each.queue, at=each.at, kept_s=each.kept_s)
            for each in sorted(entries, key=lambda each: each.id)  # in order, so that no two lock each other
            if each.state is not None
        ]
        gone = [self._its(id=each.id, state=state) for each in entries if each.state is None for state in each.formers]
        problem, statements = "messages can't be listed", self._statements
        self._tried(problem, statements.list_one if len(rows) == 1 else statements.list, rows)
        self._tried(problem, statements.unlist, gone)

    def listed(self, kind: ListKind, names: Sequence[str], *, before: Rank, most: int, timeout_s: float) -> list[Page]:
        deadline, found = monotonic() + timeout_s, list[Page]()
        statement = self._statements.latest if kind == "state" else self._statements.earliest
        for name in names:
            values = self._its(name=name, at=before[0], id=before[1], most=most)
            rows = self._database.run(statement, values, timeout_s=deadline - monotonic())
            found.append([(key, at) for key, at in rows])
        return found

    def count_listed(self, names: Sequence[str], *, timeout_s: float) -> list[int]:
        values = self._its(keys=self._database.keys(names))
        found: dict[str, int] = dict(self._database.run(self._statements.count, values, timeout_s=timeout_s))
        return [found.get(name, 0) for name in names]

    def ping(self, *, timeout_s: float) -> None:
        self._database.run("SELECT 1", {}, timeout_s=timeout_s)

    def time(self, *, timeout_s: float) -> float:
        return float(self._database.run(f"SELECT {self._database.now}", {}, timeout_s=timeout_s)[0][0])

    def init(self, *, timeout_s: float) -> tuple[int, int]:
        return self._database.make_tables(timeout_s=timeout_s)

    def clear(self, *, timeout_s: float) -> None:
        with self._database.transaction(timeout_s=timeout_s) as run:
            for table in TABLES:
                run(f"DELETE FROM {table} WHERE namespace = :namespace", self._its())

    def close(self) -> None:
        self._notifications.close()
        self._database.close()

    def _values(self, key: str, text: str, kept_s: float | None, *, tells: bool = False) -> dict[str, Any]:
        head, _, rest = text.partition("\n")
        return self._its(key=key, head=head, rest=rest, tells=tells, kept_s=kept_s)


def _last_key(commit: Commit) -> str:
    return max((each.key for each in commit.writes), default="")


def open_store(settings: Settings, url: str) -> Store:
    """Return a store, which connects when it is first used; `NotInstalledError` without the database's client."""
    if url.startswith("sqlite:"):
        from taskbridge.stores.sql.sqlite import Sqlite

        return Store(settings, SqlBackend(settings, Sqlite(settings, url)))
    from taskbridge.stores.sql.postgresql import PostgreSQL  # here, for SQLite needs no psycopg

    return Store(settings, SqlBackend(settings, PostgreSQL(settings, url)))
