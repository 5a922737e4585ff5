"""The store in SQLite: what only SQL has."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from taskbridge import Bridge, BrokerUnavailable, Message, SettingsError, StoreNotReady
from taskbridge.settings import load
from taskbridge.stores.backend import ABSENT, BackendWithTables, Commit, Entry, Tally, Write
from taskbridge.stores.base import Claim, Store
from taskbridge.stores.records import Ending
from taskbridge.stores.sql import schema
from taskbridge.stores.sql.backend import SqlBackend, open_store
from taskbridge.stores.sql.sqlite import Sqlite


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with_store = opened(url)
    yield with_store
    with_store.close()


def opened(url: str, **given: object) -> Store:
    settings, _ = load({"url": "inline://", "send_timeout": 1, **given}, environ={})
    return open_store(settings, url)


@contextmanager
def database(folder: Path) -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "store.db")) as connection, connection:
        yield connection


def init(store: Store) -> tuple[int, int]:
    assert isinstance(store.backend, BackendWithTables)
    return store.backend.init(timeout_s=20)


def a_message(number: int = 0) -> Message:
    return Message(id=f"id-{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=time.time())


def test_many_cancellations_are_told_part_by_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.stores.records.CANCELLATIONS_AT_ONCE", 3)
    messages = [a_message(number) for number in range(7)]
    store.records.create([(each, 0.0) for each in messages], timeout_s=5)
    for each in messages:
        store.records.cancel(each.id, at=1.0, timeout_s=5)
    told, cursor = list[int](), ""
    while found := store.records.cancelled_since(cursor, timeout_s=5)[1]:
        cursor, _ = store.records.cancelled_since(cursor, timeout_s=5)
        told.append(len(found))

    assert told == [3, 3, 1]


@pytest.mark.parametrize(("writes", "beside", "trips"), [(1, 0, 3), (2, 0, 4), (1, 1, 3), (2, 1, 3), (2, 50, 3)])
def test_a_commit_takes_few_round_trips(
    store: Store, monkeypatch: pytest.MonkeyPatch, writes: int, beside: int, trips: int
) -> None:
    store.backend.ping(timeout_s=5)  # makes the tables
    said: list[str] = []

    def written(_: Sqlite, statement: str) -> str:
        said.append(statement)
        return statement

    monkeypatch.setattr(Sqlite, "written", written)
    commits = [Commit([Write(str(number), ABSENT, "1") for number in range(writes)])]
    commits += [Commit([Write(f"beside {number}", ABSENT, "1")]) for number in range(beside)]
    assert store.backend.commit(commits, timeout_s=5) == [True] * len(commits)
    assert len(said) + len(["BEGIN", "COMMIT"]) == trips, said


def test_of_many_commits_that_make_texts_those_are_done_whose_texts_are_not_there(store: Store) -> None:
    def commit(number: int) -> Commit:
        writes = [Write(f"{name}{number}", ABSENT, f"{name}\nrest") for name in ("key", "record")]
        return Commit(writes, [Entry(f"id{number}", "entry")])

    backend = store.backend
    assert backend.commit([commit(1), commit(2)], timeout_s=5) == [True, True]
    backend.remove(["key2"], timeout_s=5)
    given = [commit(number) for number in (3, 2, 4, 4, 5)]
    assert backend.commit(given, timeout_s=5) == [True, False, True, False, True]
    keys = [f"{name}{number}" for name in ("key", "record") for number in range(1, 6)]
    missing = [key for key, text in zip(keys, backend.get(keys, timeout_s=5), strict=True) if text is None]
    assert missing == ["key2"]
    ids = {each for each, _ in backend.due_entries(most=10, lease_s=60, timeout_s=5)}
    assert ids == {f"id{number}" for number in range(1, 6)}


def test_sqlite_makes_its_tables_when_it_is_first_used_by_several_processes_at_once(url: str) -> None:
    program = (
        "import sys\nfrom taskbridge import Bridge\n"
        "store = Bridge('inline://', store=sys.argv[1]).store\nstore.ping(timeout_s=20)\n"
        "print(store.backend.init(timeout_s=20))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(4)
    ]
    assert [process.communicate()[0].strip() for process in processes] == [f"({schema.VERSION}, {schema.VERSION})"] * 4


def test_tables_of_a_later_release_are_left_alone(url: str, store: Store, tmp_path: Path) -> None:
    store.ping(timeout_s=5)
    with database(tmp_path) as connection:
        connection.execute("UPDATE taskbridge_schema SET version = 99")
    later = opened(url)
    with pytest.raises(StoreNotReady, match=rf"version 99, and this release knows {schema.VERSION}; update taskbridge"):
        init(later)
    with pytest.raises(StoreNotReady, match="taskbridge store init"):
        later.records.get("x", timeout_s=5)
    later.close()


def test_tables_of_an_earlier_release_are_brought_up_to_date(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    before, after = schema.VERSION, schema.VERSION + 1
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, ("ALTER TABLE taskbridge_text ADD COLUMN note TEXT",))
    )
    monkeypatch.setattr(schema, "VERSION", after)
    newer = opened(url)
    with pytest.raises(StoreNotReady, match=rf"have version {before}, not {after}.*taskbridge store init"):
        newer.records.get("id-0", timeout_s=5)
    assert init(newer) == (before, after)
    assert init(newer) == (after, after)
    assert newer.records.get("id-0", timeout_s=5) is not None
    newer.close()


def test_tables_without_groups_get_them(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        before.setattr(schema, "VERSION", 3)
        store.records.create([(a_message(), 0.0)], timeout_s=5)
    newer = opened(url)
    assert init(newer) == (3, 4)
    assert count(newer, 0, total=1)
    assert newer.records.get("id-0", timeout_s=5) is not None
    newer.close()


def count(store: Store, index: int, *, total: int) -> bool | None:
    """Count a member of a group as done."""
    tally = Tally("flow:f:group:0", total, index, "done", "1", Entry("flow", "f"), "last")
    return store.backend.tally(Write(f"record:{index}", ABSENT, "1"), tally, timeout_s=20)


def test_what_is_over_of_groups_is_removed_in_parts(store: Store, tmp_path: Path) -> None:
    for index in range(600):
        count(store, index, total=600)
    store.backend.end_groups(["flow:f:group:0"], kept_s=0.001, timeout_s=5)
    deadline = time.monotonic() + 20
    while store.backend.counts_of(["flow:f:group:0"], timeout_s=5)[0].ended:
        assert time.monotonic() < deadline
    assert [store.backend.purge(timeout_s=5) for _ in range(3)] == [True, False, False]
    with database(tmp_path) as connection:
        for table in ("taskbridge_member", "taskbridge_group"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_migration_that_fails_leaves_the_tables_as_they_were(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ping(timeout_s=5)
    broken = ("ALTER TABLE taskbridge_text ADD COLUMN note TEXT", "ALTER TABLE nowhere ADD COLUMN note TEXT")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(BrokerUnavailable, match="nowhere"):
        init(store)
    with database(tmp_path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(taskbridge_text)")]
    assert "until" in columns
    assert "note" not in columns


def test_a_database_that_another_keeps_locked_is_unavailable_in_time_and_works_again(
    store: Store, tmp_path: Path
) -> None:
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"no answer in time|locked"):
        store.records.cancel("id-0", at=1.0, timeout_s=0.5)
    assert time.monotonic() - began < 2
    other.execute("ROLLBACK")
    other.close()
    record = store.records.cancel("id-0", at=1.0, timeout_s=5)
    assert record is not None
    assert record.state == "cancelled"


def test_only_its_owner_may_read_a_file_that_is_made(store: Store, tmp_path: Path) -> None:
    store.ping(timeout_s=5)
    store.records.get("a", timeout_s=5)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes
    assert set(modes.values()) == {"0o600"}, modes


def test_the_mode_of_a_file_that_is_there_stays(url: str, tmp_path: Path) -> None:
    file = tmp_path / url.rpartition("/")[2]
    file.touch()
    file.chmod(0o640)
    with closing(opened(url)) as store:
        store.ping(timeout_s=5)
    assert oct(file.stat().st_mode & 0o777) == "0o640"


def test_a_database_that_can_not_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is no database, and not even a folder")
    for place in (tmp_path / "file", tmp_path / "file" / "store.db", tmp_path / "nowhere" / "store.db"):
        store = opened(f"sqlite:///{place}")
        with pytest.raises(BrokerUnavailable, match="the store does not answer"):
            store.ping(timeout_s=1)
        store.close()


def test_what_is_old_is_removed_a_bounded_number_at_once(url: str, tmp_path: Path) -> None:
    store = opened(url, result_ttl=0.2)
    store.records.create([(a_message(number), 0.0) for number in range(1100)], timeout_s=5)
    with database(tmp_path) as connection:
        connection.execute("UPDATE taskbridge_text SET until = 1")
    left, more = list[int](), list[bool]()
    for _ in range(4):
        more.append(store.backend.purge(timeout_s=5))
        with database(tmp_path) as connection:
            left.append(connection.execute("SELECT count(*) FROM taskbridge_text").fetchone()[0])
    assert left == [600, 100, 0, 0]
    assert more == [True, True, False, False]
    store.close()


def test_a_forked_process_has_connections_of_its_own(store: Store) -> None:
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    woken = threading.Event()
    stop = store.records.watch("id-0", woken.set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if child == 0:
        try:
            store.records.started(a_message(), worker="child:1", at=time.time())
            store.records.ended(a_message(), Ending(state="done", at=time.time(), result_json="1"), timeout_s=5)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert woken.wait(20)
    record = store.records.get("id-0", timeout_s=5)
    assert record is not None
    assert record.state == "done"
    assert [attempt.worker for attempt in record.attempts] == ["child:1"]
    stop()


def test_a_worker_removes_marks_and_records_whose_time_is_over(url: str, tmp_path: Path) -> None:
    store = opened(url, lease=0.4)
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    store.marks.started(a_message())
    with database(tmp_path) as connection:
        connection.execute("UPDATE taskbridge_text SET until = 1")
    deadline = time.monotonic() + 20
    left = 2
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        with database(tmp_path) as connection:
            left = connection.execute("SELECT count(*) FROM taskbridge_text WHERE until = 1").fetchone()[0]
    assert left == 0
    store.close()


def test_a_url_that_names_no_file_or_database_is_refused() -> None:
    files = (
        "sqlite://",
        "sqlite:///",
        "sqlite://host/file.db",
        "sqlite:////srv/jobs#1.db",
        "sqlite:///jobs.db?mode=ro",
    )
    for wrong in (*files, "postgresql://host", "postgresql://host:x/db"):
        with pytest.raises(SettingsError):
            Bridge("inline://", store=wrong)


def test_an_inline_bridge_uses_a_store_that_it_is_given(url: str) -> None:
    bridge = Bridge("inline://", store=url)
    assert bridge.store is not None
    assert isinstance(bridge.store.backend, SqlBackend)
    assert bridge.marks is None
    bridge.close()


def test_a_claim_whose_answer_never_came_is_answered_the_same_again(url: str, store: Store) -> None:
    gone, never, lost = opened(url), a_message(1), a_message(2)
    gone.marks.started(lost)
    gone.close()
    worker = store.marks._me.get()

    for message, answer in ((never, Claim.RUN), (lost, Claim.LOST)):
        assert store.marks.claim(message, timeout_s=5) is answer
        worker.running.clear()
        worker.deciding.clear()
        assert store.marks.claim(message, timeout_s=5) is answer
    store.marks.ended(lost)
    assert store.marks.claim(lost, timeout_s=5) is Claim.ENDED
