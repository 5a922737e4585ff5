"""Attempt marks in an SQL database. They mean what they mean in Redis: see `taskbridge.stores.redis.marks`.

A mark is written by one statement that waits for the database, but not for its disk: a mark that only this process
knew of would be lost with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from math import inf
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, delete, select, tuple_, update

from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.base import Claim
from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import MARKS, WORKERS

_log = logging.getLogger("taskbridge.store")

_ENDED: Final = "ended"
_LOST: Final = "|lost"
"""What ends the mark of a process that has found the attempt lost, and is to decide about it."""
_STARTED_KEPT_S: Final = 7 * 86400.0
_AFTER_END_S: Final = 60.0
_LONGEST_LIFE_S: Final = 8.0
"""A worker on RabbitMQ counts as dead after this: rule A2 asks for 10 s there, whatever the lease."""
_WRITE_S: Final = 2.0
"""How long a mark may take to write; a run doesn't wait longer for it."""
_PAUSE_S: Final = 1.0
"""How long marks are not written after a failure."""
_PURGED_TOGETHER: Final = 500
_DEAD_FOR_S: Final = 86400.0
_CLOSING_S: Final = 1.0


class SqlMarks:
    """Keeps marks in an SQL database."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._mine: _Process | None = None

    def started(self, message: Message) -> None:
        """Mark an attempt as started by this process; waits for 2 s at most."""
        process = self._process()
        process.running[message.life, message.attempt] = monotonic()
        process.mark(message, process.name, _STARTED_KEPT_S)

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended; waits for 2 s at most."""
        process, key = self._process(), (message.life, message.attempt)
        process.running.pop(key, None)
        process.mark(message, _ENDED, self._settings.lease_s + _AFTER_END_S)
        process.deciding.discard(key)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away."""
        process, key = self._process(), (message.life, message.attempt)
        process.unmark([key], timeout_s)
        process.running.pop(key, None)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away."""
        process = self._process()
        process.unmark(list(process.running), timeout_s)
        process.running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Ask, in one step, what may be done with a message, and mark it as this process's."""
        process, key = self._process(), (message.life, message.attempt)
        if not process.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        try:
            claim = process.claim(message, timeout_s)
        except BaseException:
            process.deciding.discard(key)
            raise
        if claim is Claim.RUN:
            process.running[key] = monotonic()
        if claim is not Claim.LOST:
            process.deciding.discard(key)
        return claim

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt's mark is this process's; asked if this process may have looked dead."""
        process = self._process()
        started_at = process.running.get((message.life, message.attempt))
        if started_at is None or process.lived_since(started_at):
            return True
        with self._database.reading(timeout_s=timeout_s) as connection:
            owner = connection.execute(select(MARKS.c.owner).where(*process.key(message))).scalar()
        if owner is None or owner.removesuffix(_LOST) == process.name:
            return True
        process.running.pop((message.life, message.attempt), None)
        return False

    def prepare(self) -> None:
        """Connect and say that this process is alive."""
        self._process()

    def stood_still(self) -> bool:
        """Return whether the store may have missed a sign of life of this process in the last lease's time."""
        mine = self._mine
        if mine is None or mine.pid != os.getpid():
            return False
        return not mine.lived_since(monotonic() - self._settings.lease_s)

    def close(self) -> None:
        """Stop saying that this process is alive."""
        with self._lock:
            mine, self._mine = self._mine, None
        if mine is not None and mine.pid == os.getpid():
            mine.close()

    def _process(self) -> _Process:
        mine = self._mine
        if mine is not None and mine.pid == os.getpid():
            return mine
        with self._lock:
            if self._mine is None or self._mine.pid != os.getpid():
                self._mine = _Process(self._settings, self._database)
            return self._mine


class _Process:
    """This process, as the store knows it: its name, what it runs, and the thread that says it is alive."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.pid = os.getpid()
        self.name = f"{socket.gethostname()}:{self.pid}:{secrets.token_hex(4)}"
        self.running: dict[tuple[str, int], float] = {}
        self.deciding: set[tuple[str, int]] = set()
        self._database = database
        self._namespace = database.namespace
        self._timeout_s = settings.send_timeout_s
        on_rabbitmq = settings.url.broker == "amqp"
        self._life_s = min(settings.lease_s, _LONGEST_LIFE_S) if on_rabbitmq else settings.lease_s
        self._seen_at = monotonic()
        self._lapsed_at = -inf
        self._silent_until = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._say_alive()
        self._thread = threading.Thread(target=self._stay_alive, name="taskbridge-marks", daemon=True)
        self._thread.start()

    def decides(self, key: tuple[str, int]) -> bool:
        """Return whether the caller is to decide about an attempt: no other thread does."""
        with self._lock:
            if key in self.deciding:
                return False
            self.deciding.add(key)
            return True

    def lived_since(self, moment: float) -> bool:
        """Return whether the store has known this process for alive all the time since then."""
        return monotonic() - self._seen_at < self._life_s and self._lapsed_at < moment

    def key(self, message: Message) -> tuple[Any, Any, Any]:
        """Return the conditions that a message's mark meets."""
        return (
            MARKS.c.namespace == self._namespace,
            MARKS.c.life == message.life,
            MARKS.c.attempt == message.attempt,
        )

    def mark(self, message: Message, owner: str, kept_s: float) -> None:
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

    def unmark(self, keys: list[tuple[str, int]], timeout_s: float) -> None:
        """Remove marks."""
        if not keys:
            return
        theirs = MARKS.c.namespace == self._namespace, tuple_(MARKS.c.life, MARKS.c.attempt).in_(keys)
        with self._database.single(timeout_s=timeout_s) as connection:
            connection.execute(delete(MARKS).where(*theirs))

    def claim(self, message: Message, timeout_s: float) -> Claim:
        """Say what may be done with a message, in one transaction."""
        is_running_here = (message.life, message.attempt) in self.running
        with self._database.writing(timeout_s=timeout_s) as connection:
            mark = self._made_or_found(connection, message)
            if mark is None:
                return Claim.RUN
            if mark == _ENDED:
                return Claim.ENDED
            owner = mark.removesuffix(_LOST)
            if owner == self.name and is_running_here:
                return Claim.RUNNING
            if owner == self.name:  # of a claim whose answer never came: it gets the same again
                return Claim.LOST if owner != mark else Claim.RUN
            if self._is_alive(connection, owner):
                return Claim.RUNNING
            row = self._row(message, self.name + _LOST, _STARTED_KEPT_S)
            connection.execute(update(MARKS).where(*self.key(message)).values(row))
            return Claim.LOST

    def _made_or_found(self, connection: Connection, message: Message) -> str | None:
        """Return whose mark there is, and keep others from changing it; None if there was none, and it is made."""
        row = self._row(message, self.name, _STARTED_KEPT_S)
        insert = self._database.insert(MARKS).values(row).on_conflict_do_nothing().returning(MARKS.c.attempt)
        while connection.execute(insert).first() is None:
            found = select(MARKS.c.owner).where(*self.key(message)).with_for_update()
            mark: str | None = connection.execute(found).scalar()
            if mark is not None:
                return mark  # else it was taken away between the two
        return None

    def _is_alive(self, connection: Connection, name: str) -> bool:
        its = WORKERS.c.namespace == self._namespace, WORKERS.c.name == name
        found = connection.execute(select(WORKERS.c.name).where(*its, WORKERS.c.until > self._database.now()))
        return found.first() is not None

    def _row(self, message: Message, owner: str, kept_s: float) -> dict[str, Any]:
        return {
            "namespace": self._namespace,
            "life": message.life,
            "attempt": message.attempt,
            "owner": owner,
            "until": time.time() + kept_s,
        }

    def _say_alive(self) -> bool:
        said_at = monotonic()
        until = self._database.now() + self._life_s
        insert = self._database.insert(WORKERS)
        insert = insert.values(namespace=self._namespace, name=self.name, until=until)
        insert = insert.on_conflict_do_update(
            index_elements=[WORKERS.c.namespace, WORKERS.c.name], set_={"until": insert.excluded.until}
        )
        try:
            with self._database.single(timeout_s=min(self._timeout_s, self._life_s)) as connection:
                connection.execute(insert)
        except BrokerUnavailable as exc:
            _log.info("the store does not answer: %s", exc.problem)
            return False
        if monotonic() - self._seen_at >= self._life_s:
            self._lapsed_at = said_at
        self._seen_at = said_at
        return True

    def _stay_alive(self) -> None:
        while not self._stop.wait(self._life_s / 4):
            if self._say_alive():
                self._purge()
            else:
                _log.warning("the store does not answer; this worker may be taken for dead")

    def _purge(self) -> None:
        """Remove marks and workers whose time is over, a bounded number at once."""
        key = MARKS.c.namespace, MARKS.c.life, MARKS.c.attempt
        old = select(*key).where(MARKS.c.until < time.time()).limit(_PURGED_TOGETHER)
        if not self._database.is_sqlite:
            old = old.with_for_update(skip_locked=True)
        try:
            with self._database.single(timeout_s=self._timeout_s) as connection:
                removed = connection.execute(delete(MARKS).where(tuple_(*key).in_(old))).rowcount
            with self._database.single(timeout_s=self._timeout_s) as connection:
                connection.execute(delete(WORKERS).where(WORKERS.c.until < self._database.now() - _DEAD_FOR_S))
        except BrokerUnavailable as exc:
            _log.info("old marks are not removed now: %s", exc.problem)
            return
        if removed >= _PURGED_TOGETHER and not self._stop.is_set():
            self._purge()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_CLOSING_S)  # else it could give a connection back to a pool that is closed
        mine = WORKERS.c.namespace == self._namespace, WORKERS.c.name == self.name
        try:
            with self._database.single(timeout_s=self._timeout_s) as connection:
                connection.execute(delete(WORKERS).where(*mine))
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")
