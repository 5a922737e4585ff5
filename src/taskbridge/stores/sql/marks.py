"""Attempt marks in an SQL database. They mean what they mean in Redis: see `taskbridge.stores.marking`.

A mark is written by one statement that waits for the database, but not for its disk: a mark that only this process
knew of would be lost with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from time import monotonic
from typing import Any, Final

from sqlalchemy import delete, select, tuple_, update

from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.marking import ENDED, STARTED_KEPT_S, Key, StoredMarks, Worker
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import MARKS, WORKERS

_log = logging.getLogger("taskbridge.store")

_WRITE_S: Final = 2.0
"""How long a mark may take to write; a run doesn't wait longer for it."""
_PAUSE_S: Final = 1.0
"""How long marks are not written after a failure."""
_DEAD_FOR_S: Final = 86400.0


class SqlMarks(StoredMarks):
    """Keeps marks in an SQL database."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings)
        self._database = database
        self._namespace = database.namespace
        self._silent_until = 0.0

    def _write_started(self, worker: Worker, message: Message) -> None:
        self._write(message, worker.name, STARTED_KEPT_S)

    def _write_ended(self, message: Message) -> None:
        self._write(message, ENDED, self._ended_kept_s)

    def _write(self, message: Message, owner: str, kept_s: float) -> None:
        """Write a mark; if that fails, none is written for a second."""
        if monotonic() < self._silent_until:
            return
        row = self._row(message, owner, kept_s)
        insert = self._database.insert(MARKS).values(row)
        insert = insert.on_conflict_do_update(
            index_elements=[MARKS.c.namespace, MARKS.c.life, MARKS.c.attempt],
            set_={"owner": insert.excluded.owner, "until": insert.excluded.until},
        )
        try:
            with self._database.single(timeout_s=_WRITE_S) as connection:
                connection.execute(insert)
        except BrokerUnavailable as exc:
            _log.warning("task %s, id %s: its mark can't be written: %s", message.task, message.id, exc.problem)
            self._silent_until = monotonic() + _PAUSE_S

    def _remove(self, keys: Collection[Key], timeout_s: float) -> None:
        theirs = MARKS.c.namespace == self._namespace, tuple_(MARKS.c.life, MARKS.c.attempt).in_(keys)
        with self._database.single(timeout_s=timeout_s) as connection:
            connection.execute(delete(MARKS).where(*theirs))

    def _make(self, worker: Worker, message: Message, timeout_s: float) -> str | None:
        row = self._row(message, worker.name, STARTED_KEPT_S)
        insert = self._database.insert(MARKS).values(row).on_conflict_do_nothing().returning(MARKS.c.attempt)
        found = select(MARKS.c.owner).where(*self._key(message))
        with self._database.single(timeout_s=timeout_s) as connection:
            while connection.execute(insert).first() is None:
                mark: str | None = connection.execute(found).scalar()
                if mark is not None:
                    return mark  # else it was taken away between the two
        return None

    def _take_over(self, message: Message, owner: str, new_owner: str, timeout_s: float) -> bool:
        row = self._row(message, new_owner, STARTED_KEPT_S)
        change = update(MARKS).where(*self._key(message), MARKS.c.owner == owner).values(row)
        with self._database.single(timeout_s=timeout_s) as connection:
            return connection.execute(change).rowcount == 1

    def _is_alive(self, name: str, timeout_s: float) -> bool:
        its = WORKERS.c.namespace == self._namespace, WORKERS.c.name == name
        alive = select(WORKERS.c.name).where(*its, WORKERS.c.until > self._database.now())
        with self._database.reading(timeout_s=timeout_s) as connection:
            return connection.execute(alive).first() is not None

    def _owner(self, message: Message, timeout_s: float) -> str | None:
        with self._database.reading(timeout_s=timeout_s) as connection:
            owner: str | None = connection.execute(select(MARKS.c.owner).where(*self._key(message))).scalar()
        return owner

    def _say_alive(self, worker: Worker) -> None:
        until = self._database.now() + worker.life_s
        insert = self._database.insert(WORKERS)
        insert = insert.values(namespace=self._namespace, name=worker.name, until=until)
        insert = insert.on_conflict_do_update(
            index_elements=[WORKERS.c.namespace, WORKERS.c.name], set_={"until": insert.excluded.until}
        )
        with self._database.single(timeout_s=min(self._settings.send_timeout_s, worker.life_s)) as connection:
            connection.execute(insert)

    def _say_gone(self, worker: Worker) -> None:
        mine = WORKERS.c.namespace == self._namespace, WORKERS.c.name == worker.name
        with self._database.single(timeout_s=self._settings.send_timeout_s) as connection:
            connection.execute(delete(WORKERS).where(*mine))

    def _tidy(self) -> None:
        """Remove marks and workers whose time is over, a bounded number at once."""
        timeout_s = self._settings.send_timeout_s
        try:
            while self._me.peek() is not None and self._database.purge(MARKS, timeout_s=timeout_s):
                continue
            with self._database.single(timeout_s=timeout_s) as connection:
                connection.execute(delete(WORKERS).where(WORKERS.c.until < self._database.now() - _DEAD_FOR_S))
        except BrokerUnavailable as exc:
            _log.info("old marks are not removed now: %s", exc.problem)

    def _row(self, message: Message, owner: str, kept_s: float) -> dict[str, Any]:
        return {
            "namespace": self._namespace,
            "life": message.life,
            "attempt": message.attempt,
            "owner": owner,
            "until": time.time() + kept_s,
        }

    def _key(self, message: Message) -> tuple[Any, Any, Any]:
        """Return the conditions that a message's mark meets."""
        return (
            MARKS.c.namespace == self._namespace,
            MARKS.c.life == message.life,
            MARKS.c.attempt == message.attempt,
        )
