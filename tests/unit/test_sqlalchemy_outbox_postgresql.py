"""Sends in the transactions of SQLAlchemy's sessions: published after the commit, or rows that workers publish."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, event, inspect
from sqlalchemy.engine.url import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    NoSuchRecord,
    SendError,
    SettingsError,
    UnsupportedError,
)
from taskbridge.integrations.sqlalchemy import SessionOutbox, after_commit, outbox_table
from taskbridge.stores.entries import loads_held
from taskbridge.testing import capture_sent
from taskbridge.transactions import Transactions
from tests.private_postgresql import PrivatePostgreSQL
from tests.unit.redis_helpers import wait_until


class Undo(Exception):
    """Rolls a block back."""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with PrivatePostgreSQL() as server:
        yield server.url.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture(scope="module")
def table() -> Table:
    return outbox_table(MetaData())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/application.db"
    found: str = request.getfixturevalue("postgresql")
    return found


@pytest.fixture
def engine(url: str, table: Table) -> Iterator[Engine]:
    engine = create_engine(url)
    table.metadata.drop_all(engine)
    table.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0", namespace="orders")
    bridge.task(name="note")(ran.append)
    ran.clear()
    yield bridge
    bridge.close()


ran: list[int] = []


@pytest.fixture
def outbox(bridge: Bridge, engine: Engine, table: Table) -> SessionOutbox:
    return SessionOutbox(bridge, engine, table)


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


def held(engine: Engine, table: Table) -> list[int]:
    """Return the first argument of each message in the outbox."""
    with engine.connect() as connection:
        texts = connection.scalars(table.select().with_only_columns(table.c.text).order_by(table.c.id)).all()
    return [loads_held(text).message.arguments()[0][0] for text in texts]


# After the commit


def test_a_message_is_published_when_the_session_commits(bridge: Bridge, sessions: sessionmaker[Session]) -> None:
    note = bridge.named("note")
    with sessions.begin() as session:
        handle = note.using(commit=after_commit(session)).send(1)
        note.using(commit=None).send(2)
        assert bridge.run_until_idle() == 1
        with pytest.raises(NoSuchRecord):
            handle.status()
    assert bridge.run_until_idle() == 1
    assert ran == [2, 1]


@pytest.mark.parametrize("end", [Session.rollback, Session.close])
def test_what_a_session_does_not_commit_is_not_sent(
    bridge: Bridge, sessions: sessionmaker[Session], end: Callable[[Session], None]
) -> None:
    with sessions() as session:
        note = bridge.named("note").using(commit=after_commit(session))
        note.send(1)
        end(session)
        note.send(2)
        session.commit()
        session.commit()
    bridge.run_until_idle()
    assert ran == [2]


def test_a_savepoint_that_is_rolled_back_takes_its_messages_along(
    bridge: Bridge, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        note = bridge.named("note").using(commit=after_commit(session))
        note.send(1)
        with session.begin_nested():
            note.send(2)
            with session.begin_nested() as inner:
                note.send(3)
                inner.rollback()
        with suppress(Undo), session.begin_nested():
            with session.begin_nested():
                note.send(4)
            raise Undo
        note.send(5)
        assert bridge.run_until_idle() == 0
    bridge.run_until_idle()
    assert ran == [1, 2, 5]


def test_what_many_sends_hold_is_published_together(
    bridge: Bridge, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[int] = []
    publish = bridge.broker.publish

    def noted(messages: Any, **options: Any) -> None:
        published.append(len(messages))
        publish(messages, **options)

    monkeypatch.setattr(bridge.broker, "publish", noted)
    with sessions.begin() as session:
        note = bridge.named("note").using(commit=after_commit(session))
        for number in range(5):
            with session.begin_nested():
                note.send(number)
        note.send_many(note.call(number) for number in range(5, 8))
    assert published == [8]


def test_a_broker_that_is_away_leaves_the_commit_and_the_session_as_they_are(
    bridge: Bridge,
    sessions: sessionmaker[Session],
    engine: Engine,
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BrokerUnavailable("nobody listens")

    row = {"namespace": "mine", "text": "0.0 sent\n{}"}
    with sessions() as session:
        handle = bridge.named("note").using(commit=after_commit(session)).send(1)
        session.execute(table.insert(), row)
        with monkeypatch.context() as broken:
            broken.setattr(bridge.broker, "publish", refuse)
            with pytest.raises(SendError) as caught:
                session.commit()
        assert caught.value.unsent == (handle.id,)
        assert not session.in_transaction()
        session.execute(table.insert(), row)
        session.commit()
    with engine.connect() as connection:
        assert len(connection.execute(table.select()).all()) == 2
    assert bridge.run_until_idle() == 0


@pytest.mark.parametrize("listens", ["to the session", "to all sessions"])
def test_what_is_sent_as_the_application_is_told_of_a_commit_is_a_part_of_it(
    listens: str, bridge: Bridge, sessions: sessionmaker[Session]
) -> None:
    note = bridge.named("note")
    numbers = iter(range(1, 10))

    def send(session: Session) -> None:
        note.using(commit=after_commit(session)).send(next(numbers))

    with sessions() as session:
        target = session if listens == "to the session" else Session
        event.listen(target, "after_commit", send)
        try:
            session.begin()
            with session.begin_nested():
                pass
            with suppress(Undo), session.begin_nested():
                with session.begin_nested():
                    pass
                raise Undo
            assert bridge.run_until_idle() == 0
            session.commit()
        finally:
            event.remove(target, "after_commit", send)
    bridge.run_until_idle()
    assert ran == [1, 3]  # 2 is of the savepoint that was rolled back


def test_a_session_that_is_done_with_is_not_kept(bridge: Bridge, sessions: sessionmaker[Session]) -> None:
    session = sessions()
    bridge.named("note").using(commit=after_commit(session)).send(1)
    session.commit()
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


# The outbox


def test_a_send_is_a_row_in_the_sessions_transaction(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    note = bridge.named("note")
    with suppress(Undo), sessions.begin() as session:
        note.using(commit=outbox.of(session)).send(1)
        raise Undo
    with sessions.begin() as session:
        mine = note.using(commit=outbox.of(session))
        handle = mine.send(2)
        with suppress(Undo), session.begin_nested():
            mine.send(3)
            raise Undo
        assert held(engine, table) == []
        assert session.connection().execute(table.select()).one().namespace == "orders"
    assert held(engine, table) == [2]

    assert bridge.run_until_idle() == 1
    assert handle.status().state == "done"
    assert held(engine, table) == []


def test_what_many_send_is_one_insert(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, outbox: SessionOutbox
) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    note = bridge.named("note")
    with sessions.begin() as session:
        # each asks for the session's transaction by itself
        bridge.send_many(note.using(commit=outbox.of(session)).call(number) for number in range(50))
    assert [each.split()[0] for each in statements] == ["INSERT"]
    assert bridge.run_until_idle() == 50


def test_background_threads_run_what_is_committed(
    engine: Engine, table: Table, sessions: sessionmaker[Session]
) -> None:
    bridge = Bridge("inline://?threads=1", namespace="orders")
    bridge.task(name="note")(ran.append)
    ran.clear()
    outbox = SessionOutbox(bridge, engine, table)
    try:
        with sessions.begin() as session:
            bridge.named("note").using(commit=outbox.of(session)).send(1)
        wait_until(lambda: ran == [1], timeout_s=60, saw=lambda: ran)
    finally:
        bridge.close()


def test_a_row_is_left_to_the_worker_that_claimed_it_until_its_lease_ends(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    with sessions.begin() as session:
        for number in range(3):
            bridge.named("note").using(commit=outbox.of(session)).send(number)
    first = outbox.due_entries(most=2, lease_s=600, timeout_s=1)
    second = outbox.due_entries(most=2, lease_s=600, timeout_s=1)
    assert [len(first), len(second)] == [2, 1]
    assert outbox.due_entries(most=2, lease_s=600, timeout_s=1) == []

    outbox.hand_on_entries([key for key, _ in second], timeout_s=1)
    assert outbox.due_entries(most=2, lease_s=600, timeout_s=1) == second
    outbox.remove_entries([key for key, _ in second], timeout_s=1)
    bridge.run_schedules(700)
    bridge.run_until_idle()
    assert ran == [0, 1]
    assert held(engine, table) == []


def test_rows_that_another_worker_claims_now_are_passed_over(bridge: Bridge, postgresql: str, table: Table) -> None:
    engine = create_engine(postgresql)
    table.metadata.drop_all(engine)
    table.metadata.create_all(engine)
    outbox = SessionOutbox(bridge, engine, table)
    with Session(engine) as session:
        for number in range(2):
            bridge.named("note").using(commit=outbox.of(session)).send(number)
        session.commit()
    with engine.begin() as other:
        [locked] = other.execute(table.select().order_by(table.c.id).limit(1).with_for_update()).all()
        found = outbox.due_entries(most=10, lease_s=600, timeout_s=1)
    assert len(found) == 1
    assert str(locked.id) not in dict(found)
    engine.dispose()


def test_a_database_that_passes_over_no_locked_rows_is_asked_for_no_locks(
    bridge: Bridge, tmp_path: Path, table: Table
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/application.db")
    table.metadata.create_all(engine)
    asked: list[str] = []
    oracle = make_url("oracle://").get_dialect()()
    event.listen(engine, "before_execute", lambda _, clause, *__: asked.append(str(clause.compile(dialect=oracle))))
    assert SessionOutbox(bridge, engine, table).due_entries(most=1, lease_s=1, timeout_s=1) == []
    assert len(asked) == 1
    assert "FOR UPDATE" not in asked[0]
    engine.dispose()


def test_rows_of_other_namespaces_are_left_alone(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    with sessions.begin() as session:
        bridge.named("note").using(commit=outbox.of(session)).send(1)
        session.execute(table.update().values(namespace="other"))
    assert bridge.run_until_idle() == 0
    assert held(engine, table) == [1]


def test_a_missing_table_says_what_to_do(
    bridge: Bridge, engine: Engine, table: Table, outbox: SessionOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    table.metadata.drop_all(engine)
    with pytest.raises(BrokerUnavailable, match=r"metadata\.create_all"):
        outbox.due_entries(most=1, lease_s=1, timeout_s=1)
    bridge.named("note").send(1)
    assert bridge.run_until_idle() == 1
    assert caplog.text.count("metadata.create_all") == 1


def test_an_applications_migrations_see_the_table(engine: Engine) -> None:
    metadata = MetaData()
    table = outbox_table(metadata, name="mine")
    assert metadata.tables == {"mine": table}
    metadata.create_all(engine)
    assert [each["name"] for each in inspect(engine).get_indexes("mine")] == ["mine_due"]
    metadata.drop_all(engine)


def test_captured_sends_are_in_no_outbox(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    note = bridge.named("note")
    with capture_sent(bridge) as sent, sessions.begin() as session:
        note.using(commit=outbox.of(session)).send(1)
        assert len(sent) == 1
    assert held(engine, table) == []


# Whose session


def test_a_send_that_names_no_session_is_refused(bridge: Bridge, outbox: SessionOutbox) -> None:
    transactions: Transactions = outbox
    assert bridge.transactions is transactions
    with pytest.raises(SettingsError, match=r"outbox\.of\(session\)"):
        bridge.named("note").using(commit="outbox").send(1)
    with pytest.raises(SettingsError, match=r"outbox\.of\(session\)"):
        bridge.named("note").on_commit.send(1)


def test_the_current_session_need_not_be_named(engine: Engine, table: Table, sessions: sessionmaker[Session]) -> None:
    bridge, current = Bridge("inline://?threads=0", namespace="orders", commit="outbox"), scoped_session(sessions)
    bridge.task(name="note")(ran.append)
    ran.clear()
    SessionOutbox(bridge, engine, table, current=current)
    note = bridge.named("note")
    note.send(1)
    note.on_commit.send(2)
    current.rollback()
    note.send(3)
    note.on_commit.send(4)
    assert bridge.run_until_idle() == 0
    current.commit()
    current.remove()
    bridge.run_until_idle()
    assert sorted(ran) == [3, 4]
    bridge.close()


def test_a_registry_means_its_session_of_now(
    bridge: Bridge, sessions: sessionmaker[Session], outbox: SessionOutbox
) -> None:
    current = scoped_session(sessions)
    bridge.named("note").using(commit=outbox.of(current)).send(1)
    bridge.named("note").using(commit=after_commit(current)).send(2)
    current.commit()
    current.remove()
    bridge.run_until_idle()
    assert sorted(ran) == [1, 2]


def test_without_a_store_the_outbox_is_refused(engine: Engine, table: Table, sessions: sessionmaker[Session]) -> None:
    bridge = Bridge("dramatiq+amqp://localhost//")
    outbox = SessionOutbox(bridge, engine, table)
    with sessions() as session, pytest.raises(UnsupportedError, match="TASKBRIDGE_STORE"):
        bridge.named("note").using(commit=outbox.of(session)).send(1)
    assert held(engine, table) == []


def test_workers_need_an_engine_that_threads_can_use(bridge: Bridge, table: Table) -> None:
    engine: Any = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(TypeError, match="create_engine"):
        SessionOutbox(bridge, engine, table)


# Coroutines


def async_url(url: str) -> str:
    return url.replace("sqlite:", "sqlite+aiosqlite:")


def test_coroutines_send_in_the_transaction_of_their_session(
    bridge: Bridge, url: str, engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    note = bridge.named("note")

    async def work() -> None:
        beside = create_async_engine(async_url(url))
        make = async_sessionmaker(beside)
        with suppress(Undo):
            async with make.begin() as session:
                await note.using(commit=outbox.of(session)).asend(1)
                await note.using(commit=after_commit(session)).asend(2)
                raise Undo
        async with make.begin() as session:
            await note.using(commit=outbox.of(session)).asend(3)
            await note.using(commit=after_commit(session)).asend(4)
            note.using(commit=after_commit(session)).send(5)
            await bridge.asend_many([note.using(commit=outbox.of(session)).call(6), note.call(7)])
            assert await asyncio.to_thread(bridge.run_until_idle) == 1
            with pytest.raises(TypeError, match="asend"):
                note.using(commit=outbox.of(session)).send(8)
        await beside.dispose()

    asyncio.run(work())
    assert held(engine, table) == [3, 6]
    bridge.run_until_idle()
    assert sorted(ran) == [3, 4, 5, 6, 7]


def test_a_commit_that_publishes_does_not_block_the_event_loop(
    bridge: Bridge, url: str, outbox: SessionOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = bridge.broker.publish

    async def work() -> None:
        loop, runs = asyncio.get_running_loop(), asyncio.Event()

        def slow(messages: Any, **options: Any) -> None:
            asyncio.run_coroutine_threadsafe(runs.wait(), loop).result(60)  # it would wait in vain on the loop
            publish(messages, **options)

        monkeypatch.setattr(bridge.broker, "publish", slow)
        beside = create_async_engine(async_url(url))
        async with AsyncSession(beside) as session:
            await bridge.named("note").using(commit=after_commit(session)).asend(1)
            loop.call_soon(runs.set)
            await asyncio.wait_for(session.commit(), 60)
        await beside.dispose()

    asyncio.run(work())
    assert bridge.run_until_idle() == 1


def test_a_plain_session_in_a_coroutine_is_used_in_its_own_thread(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table, outbox: SessionOutbox
) -> None:
    async def work() -> None:
        with sessions.begin() as session:  # of SQLite, which lets no other thread use it
            await bridge.named("note").using(commit=outbox.of(session)).asend(1)

    asyncio.run(work())
    assert held(engine, table) == [1]


def test_a_coroutine_sends_in_its_own_current_session(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table
) -> None:
    current = scoped_session(sessions)  # whose sessions belong to threads
    SessionOutbox(bridge, engine, table, current=current)
    note = bridge.named("note")

    async def work() -> None:
        await note.using(commit="outbox").asend(1)
        await note.on_commit.asend(2)
        await note.asend_many([note.using(commit="outbox").call(3)])
        assert held(engine, table) == []
        current.commit()

    asyncio.run(work())
    current.remove()
    assert held(engine, table) == [1, 3]
    bridge.run_until_idle()
    assert sorted(ran) == [1, 2, 3]


def test_only_sends_that_need_the_current_session_ask_for_it_and_in_the_task_that_sends(
    bridge: Bridge, sessions: sessionmaker[Session], engine: Engine, table: Table
) -> None:
    asked_in: list[Any] = []

    def nowhere() -> Session:
        asked_in.append(asyncio.current_task())
        raise LookupError("no session is current")

    SessionOutbox(bridge, engine, table, current=nowhere)
    note = bridge.named("note")

    async def work() -> None:
        await bridge.asend_many(note.call(number) for number in range(3))
        assert asked_in == []
        with pytest.raises(LookupError, match="no session"):
            await bridge.asend_many([note.using(commit="outbox").call(3)])
        assert set(asked_in) == {asyncio.current_task()}

    asyncio.run(work())
    assert bridge.run_until_idle() == 3


def test_a_send_that_is_cancelled_as_it_asks_for_the_current_session_leaves_no_thread(
    bridge: Bridge, engine: Engine, table: Table
) -> None:
    outbox = SessionOutbox(bridge, engine, table, current=lambda: pytest.fail("nobody waits"))
    asks = asyncio.Event()
    ended: list[BaseException] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def act() -> None:
            loop.call_soon_threadsafe(sending.cancel)
            try:
                outbox.session()
            except BaseException as exc:
                ended.append(exc)
                raise
            finally:
                loop.call_soon_threadsafe(asks.set)

        sending = asyncio.ensure_future(outbox.aside(act))
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(asks.wait(), 60)

    asyncio.run(work())
    assert len(ended) == 1


def test_without_sqlalchemy_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['sqlalchemy'] = None; import taskbridge.integrations.sqlalchemy"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False)
    assert "pip install 'taskbridge-queue[sqlalchemy]'" in done.stderr
