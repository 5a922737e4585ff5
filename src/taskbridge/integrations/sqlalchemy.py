"""Sends as a part of a SQLAlchemy session's transaction: published after its commit, or as a row of it, the outbox.

A session is named with each send, by `using(commit=...)`. Nothing else would be safe: most applications have sessions
without any that is the current one, and what a dependency of FastAPI puts into a context is not there in the endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar, cast

from taskbridge.background import in_thread
from taskbridge.bridge import Bridge
from taskbridge.exceptions import BrokerUnavailable, SettingsError, needs
from taskbridge.transactions import OUTBOX, Commit

with needs("SQLAlchemy", "sqlalchemy"):
    from sqlalchemy import BigInteger, Column, Double, Engine, Index, Integer, MetaData, String, Table, Text, event
    from sqlalchemy.dialects.mysql import LONGTEXT
    from sqlalchemy.engine import Connection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session
    from sqlalchemy.util.concurrency import await_only

__all__ = ["AnySession", "SessionOutbox", "after_commit", "outbox_table"]

T = TypeVar("T")

AnySession: TypeAlias = Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any]
"""A session, or a registry of sessions, which means its current one."""

_Publish: TypeAlias = Callable[[Sequence[Any]], object]
_Held: TypeAlias = tuple[SessionTransaction | None, Sequence[Any], _Publish]

_KEY: Final = "taskbridge"  # in `Session.info`
_SKIPS_LOCKED: Final = ("postgresql", "mysql", "mariadb")

_Caller: TypeAlias = tuple[asyncio.AbstractEventLoop, "Callable[[], Session | AsyncSession | None]"]
_caller: Final[ContextVar[_Caller | None]] = ContextVar("taskbridge_caller", default=None)
"""In a thread that acts for a coroutine: its event loop, where alone sessions may be used, and what asks it which one
is current."""


def outbox_table(metadata: MetaData, *, name: str = "taskbridge_outboxentry", schema: str | None = None) -> Table:
    """Return the outbox's table, defined in an application's metadata, so that its migrations make it."""
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("namespace", String(52), nullable=False),
        Column("text", Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=False),
        Column("leased_until", Double, nullable=False, default=0.0, server_default="0"),
        Index(f"{name}_due", "namespace", "leased_until", "id"),
        schema=schema,
    )


def after_commit(session: AnySession) -> Commit:
    """Return the `commit` that publishes when a session's transaction is committed; it is begun if none is.

    If the transaction, or the savepoint that is open at the send, is rolled back or closed, nothing is sent. If the
    broker is away at the commit, what was committed stays so, and `session.commit()` raises `SendError`.
    """
    return Commit(("session",), _InSession(_current(session)))


class _Sends:
    """Makes sends a part of the transaction of a session; see `taskbridge.transactions.Sends`."""

    outbox: Any  # a `SessionOutbox`; None for sends that go to none

    def session(self) -> Session | AsyncSession | None:
        raise NotImplementedError

    def open_on(self, databases: Sequence[str]) -> Sequence[str]:
        self._found()
        return databases[:1]  # all mean the one transaction

    def hold(self, database: str, held: Sequence[Any], publish: _Publish) -> None:
        found = self._found()
        session = found.sync_session if isinstance(found, AsyncSession) else found
        if not session.in_transaction():
            session.begin()
        waiting = _waiting(session)
        waiting.is_async = session is not found
        waiting.held.append((_innermost(session), held, publish))

    def put(self, texts: Sequence[str], then: Callable[[], object] | None) -> None:
        """Insert entries in the session's transaction; call `then` when they are committed."""
        session, caller, outbox = self._found(), _caller.get(), cast("SessionOutbox", self.outbox)
        insert, rows = outbox.table.insert(), [{"namespace": outbox.namespace, "text": text} for text in texts]
        if caller is not None:
            asyncio.run_coroutine_threadsafe(_execute(session, insert, rows), caller[0]).result()
        elif isinstance(session, AsyncSession):
            raise TypeError("a send in the transaction of an AsyncSession is awaited: asend, not send")
        else:
            session.execute(insert, rows)
        if then is not None:
            self.hold("", [None], lambda _: then())

    async def aside(self, act: Callable[[], T]) -> T:
        """Do as `Sends.aside` says; only if the act asks for the current session, the coroutine looks for it."""
        loop, answer = asyncio.get_running_loop(), Future["Session | AsyncSession | None"]()
        is_asked: asyncio.Future[bool] = loop.create_future()

        def say(value: bool) -> None:
            if not is_asked.done():
                is_asked.set_result(value)

        def ask() -> Session | AsyncSession | None:
            loop.call_soon_threadsafe(say, True)
            return answer.result()

        def run() -> T:
            _caller.set((loop, ask))  # for this act alone: the thread has a context of its own
            try:
                return act()
            finally:
                loop.call_soon_threadsafe(say, False)

        acting = asyncio.ensure_future(in_thread(run))
        try:
            answer.set_result(self.session() if await is_asked else None)
        except BaseException as exc:
            answer.set_exception(exc)  # which the act raises
            if not isinstance(exc, Exception):
                acting.cancel()
                raise
        return await acting

    def _found(self) -> Session | AsyncSession:
        if (session := self.session()) is None:
            raise SettingsError("commit", "no session is named: using(commit=outbox.of(session)), say")
        return session


@dataclass(frozen=True, slots=True)
class _InSession(_Sends):
    named: Session | AsyncSession
    outbox: SessionOutbox | None = None

    def session(self) -> Session | AsyncSession:
        return self.named


class SessionOutbox(_Sends):
    """The outbox in an application's database; it sets itself as `bridge.transactions`, and workers look into it.

    Args:
        bridge: Whose messages it is for. It needs a store.
        engine: Where the table is, for workers; with `AsyncSession`s, another engine for the same database.
        table: What `outbox_table` returned.
        current: Returns the session of sends that name none, by `commit="outbox"` or `on_commit`, such as a
            `scoped_session`.
    """

    may_hold: bool = True  # who makes one uses it, so workers look often

    def __init__(
        self,
        bridge: Bridge,
        engine: Engine,
        table: Table,
        *,
        current: Callable[[], Session | AsyncSession] | None = None,
    ) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"workers look by threads: SessionOutbox takes what create_engine makes, not {engine!r}")
        self.table: Table = table
        self.outbox: SessionOutbox = self  # for it is the bridge's transactions, too
        self._bridge = bridge
        self._engine = engine
        self._of_current = current
        bridge.transactions = self

    def of(self, session: AnySession) -> Commit:
        """Return the `commit` that makes a send an INSERT in a session's transaction."""
        return Commit(OUTBOX, _InSession(_current(session), self))

    @property
    def namespace(self) -> str:
        """That of the bridge."""
        return self._bridge.settings.namespace

    # As the bridge's transactions: those of the current session

    def session(self) -> Session | AsyncSession | None:
        """Return the current session; None if there is no telling."""
        if self._of_current is None:
            return None
        caller = _caller.get()
        return self._of_current() if caller is None else caller[1]()

    # For workers

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        """Return ids and texts of due entries; where the database can, those that others claim now are passed over."""
        key, now = self.table.c.id, self._bridge.now()
        is_due = (self.table.c.namespace == self.namespace) & (self.table.c.leased_until <= now)
        due = self.table.select().where(is_due).order_by(self.table.c.leased_until, key).limit(most)
        lease = self.table.update().values(leased_until=now + lease_s)
        with self._asked() as connection:
            if connection.dialect.name in _SKIPS_LOCKED:
                if found := connection.execute(due.with_for_update(skip_locked=True)).all():
                    connection.execute(lease.where(key.in_([each.id for each in found])))
            else:
                seen = connection.execute(due).all()
                found = [each for each in seen if connection.execute(lease.where(is_due, key == each.id)).rowcount]
        return [(str(each.id), each.text) for each in found]

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Delete entries."""
        with self._asked() as connection:
            connection.execute(self.table.delete().where(self.table.c.id.in_(map(int, ids))))

    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Have entries be due at once."""
        with self._asked() as connection:
            connection.execute(self.table.update().where(self.table.c.id.in_(map(int, ids))).values(leased_until=0.0))

    def leave(self) -> None:
        """Do nothing: each look has given its connection back to the pool."""

    @contextmanager
    def _asked(self) -> Generator[Connection]:
        """Enter with a connection in a transaction; raise the database's errors as `BrokerUnavailable`."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            problem = str(getattr(exc, "orig", None) or exc).strip()
            remedy = "; if the table is missing, make it by metadata.create_all or a migration"
            named = remedy if self.table.name in problem else ""
            raise BrokerUnavailable(f"the outbox {self.table.fullname!r}: {problem}{named}") from exc


@dataclass(slots=True)
class _Waiting:
    """What waits for the commit of one session, in order: in which transaction or savepoint, and who publishes it.

    Attributes:
        is_async: Whether coroutines use the session.
        held: What waits.
        committed: The transaction or savepoint that is committed, and not yet ended.
    """

    is_async: bool = False
    held: list[_Held] = field(default_factory=list["_Held"])
    committed: SessionTransaction | None = None


# Of all sessions, and from the start: none can be listened to while it tells others of a commit, who may send then.


@event.listens_for(Session, "after_commit")
def _note_commit(session: Session) -> None:
    _waiting(session).committed = _innermost(session)


@event.listens_for(Session, "after_transaction_end")
def _end(session: Session, transaction: SessionTransaction) -> None:
    """Forget what a transaction or savepoint holds that was not committed; else leave it to the outer one, or publish.

    Not before the end, for what `publish` raises would leave the session in its transaction.
    """
    waiting, outer = _waiting(session), transaction.parent
    is_committed = waiting.committed is transaction
    if is_committed:
        waiting.committed = None
        if outer is not None:
            waiting.held = [(outer if of is transaction else of, held, act) for of, held, act in waiting.held]
    ended = [each for each in waiting.held if each[0] is transaction]
    waiting.held = [each for each in waiting.held if each[0] is not transaction]
    for publish, some in groupby(ended if is_committed else (), lambda each: each[2]):
        act = partial(publish, [each for _, held, _ in some for each in held])
        if waiting.is_async:
            await_only(in_thread(act))
        else:
            act()


def _waiting(session: Session) -> _Waiting:
    waiting: _Waiting = session.info.setdefault(_KEY, _Waiting())
    return waiting


def _innermost(session: Session) -> SessionTransaction | None:
    """Return the savepoint that a session is in, or else its transaction."""
    return session.get_nested_transaction() or session.get_transaction()


def _current(session: AnySession) -> Session | AsyncSession:
    return session() if isinstance(session, (scoped_session, async_scoped_session)) else session


async def _execute(session: Session | AsyncSession, *what: Any) -> None:
    if isinstance(session, AsyncSession):
        await session.execute(*what)
    else:
        session.execute(*what)
