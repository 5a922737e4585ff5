"""The store in a real PostgreSQL server: what only it has."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import psycopg
import psycopg.sql
import pytest

from taskbridge import Message, SettingsError, StoreNotReady
from taskbridge.contract.ports import free_port
from taskbridge.contract.stores.suite import run_all
from taskbridge.contract.stores.table import CHECKS
from taskbridge.settings import load
from taskbridge.stores.backend import ABSENT, BackendWithTables, Commit, Entry, Tally, Write
from taskbridge.stores.base import Claim, Store
from taskbridge.stores.records import Ending
from taskbridge.stores.sql.backend import open_store
from taskbridge.stores.sql.postgresql import BoundedConnection, PostgreSQL
from taskbridge.stores.sql.schema import VERSION
from tests.private_postgresql import PrivatePostgreSQL
from tests.unit.command_line import runner
from tests.unit.test_store_sql import (
    test_of_many_commits_that_make_texts_those_are_done_whose_texts_are_not_there as of_many_commits,
)


@pytest.fixture
def url(postgresql_server: PrivatePostgreSQL) -> str:
    """A database of the test's own, without tables."""
    with psycopg.connect(postgresql_server.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")
        connection.execute("CREATE DATABASE shop")
    return postgresql_server.url.replace("/postgres", "/shop")


def opened(url: str, **given: object) -> Store:
    settings, _ = load({"url": "inline://", "send_timeout": 5, **given}, environ={})
    return open_store(settings, url)


def init(store: Store) -> tuple[int, int]:
    assert isinstance(store.backend, BackendWithTables)
    return store.backend.init(timeout_s=20)


def a_message(number: int = 0) -> Message:
    return Message(id=f"id-{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=time.time())


def test_of_several_hosts_the_first_that_takes_writes_is_used(url: str) -> None:
    place = url.partition("@")[2].partition("/")[0]
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        dead = f"127.0.0.1:{free_port()},127.0.0.1:{silent.getsockname()[1]}"
        store = opened(f"{url.replace(place, f'{dead},{place}')}?target_session_attrs=read-write")
        assert init(store) == (0, VERSION)
        store.records.create([(a_message(), 0.0)], timeout_s=5)
        store.close()


def test_without_tables_one_line_says_what_to_do(url: str) -> None:
    store = opened(url.replace("taskbridge@", "taskbridge:secret@"))
    with pytest.raises(StoreNotReady, match=r"no tables yet: run `taskbridge store init`") as caught:
        store.records.create([(a_message(), 0.0)], timeout_s=5)
    assert "secret" not in str(caught.value)
    assert init(store) == (0, VERSION)
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    store.close()


def test_several_make_the_tables_at_once_and_one_does(url: str) -> None:
    stores = [opened(url) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(init, stores))
    assert sorted(made) == [(0, VERSION)] + [(VERSION, VERSION)] * 5
    for store in stores:
        store.close()


def test_the_privileges_that_the_page_on_security_names_are_enough(url: str) -> None:
    store = opened(url)
    init(store)
    store.close()
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS shop")
        connection.execute("CREATE ROLE shop LOGIN")
        for statement in page.partition("```sql\n")[2].partition("\n```")[0].splitlines():
            connection.execute(statement.encode())
    results = [*run_all(url.replace("taskbridge@", "shop@"), [CHECKS[name] for name in _OF_EACH_KIND])]
    assert [(each.scenario, each.outcome, each.why) for each in results if each.outcome != "passed"] == []


_OF_EACH_KIND = (
    "an_end_says_what_it_left",
    "a_replay_begins_anew",
    "a_cursor_tells_what_was_cancelled_since",
    "what_was_given_back_is_run",
    "a_pause_lasts",
    "the_outbox_tells_each_entry_to_one",
    "a_replay_is_counted_no_more",
    "a_group_is_kept_until_it_is_over",
    "whoever_waits_is_woken_by_another_process",
)


def test_any_number_of_watches_takes_one_connection(url: str) -> None:
    store = opened(url)
    init(store)
    stops = [store.records.watch(f"id-{number}", lambda: None) for number in range(50)]
    with psycopg.connect(url) as connection:
        listening = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND datname = 'shop'"
        ).fetchone()
    assert listening == (1,)
    for stop in stops:
        stop()
    store.close()


def test_who_waits_is_woken_at_once(url: str) -> None:
    """The time from an end to a wake, on an idle machine a millisecond; here only that nobody polls by the second."""
    store, other = opened(url), opened(url)
    init(store)
    took_s: list[float] = []
    for number in range(20):
        woken = threading.Event()
        stop = store.records.watch(f"id-{number}", woken.set)
        began = time.monotonic()
        other.records.ended(a_message(number), Ending(state="done", at=time.time()), timeout_s=5)
        assert woken.wait(20)
        took_s.append(time.monotonic() - began)
        stop()
    assert sorted(took_s)[10] < 0.25
    store.close()
    other.close()


def test_a_server_that_was_restarted_is_used_again_by_the_next_call(
    url: str, postgresql_server: PrivatePostgreSQL
) -> None:
    store = opened(url)
    init(store)
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    assert store.marks.claim(a_message(), timeout_s=5) is Claim.RUN
    postgresql_server.restart()
    assert store.records.get("id-0", timeout_s=5) is not None
    assert store.marks.claim(a_message(), timeout_s=5) is Claim.RUNNING
    store.close()


def test_a_mark_that_is_taken_away_while_it_is_claimed_lets_the_attempt_run(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other, message = opened(url), opened(url), a_message()
    init(store)
    other.marks.started(message)
    get, given_back = store.backend.get, list[bool]()

    def late(keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        if not given_back:
            given_back.append(True)
            other.marks.given_back(message, timeout_s=5)
        return get(keys, timeout_s=timeout_s)

    monkeypatch.setattr(store.backend, "get", late)
    assert store.marks.claim(message, timeout_s=5) is Claim.RUN
    assert given_back
    assert other.marks.claim(message, timeout_s=5) is Claim.RUNNING
    store.close()
    other.close()


def test_a_store_that_is_closed_leaves_no_connection(url: str) -> None:
    store = opened(url)
    init(store)
    stop = store.records.watch("id-0", lambda: None)
    store.records.create([(a_message(), 0.0)], timeout_s=5)
    store.marks.started(a_message())
    store.records.started(a_message(), worker="w:1", at=1.0)
    stop()
    store.close()
    deadline = time.monotonic() + 20
    left = (1,)
    while left != (0,) and time.monotonic() < deadline:
        time.sleep(0.05)
        with psycopg.connect(url.replace("/shop", "/postgres")) as connection:
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'").fetchone()
            assert row is not None
            left = (row[0],)
    assert left == (0,)


def test_a_worker_without_tables_says_in_one_line_what_to_do(url: str, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    (tmp_path / "shop.py").write_text("from taskbridge import task\n\n@task\ndef greet() -> None: ...\n")
    run = runner(tmp_path, TASKBRIDGE_URL="celery+redis://127.0.0.1:1", TASKBRIDGE_STORE=url)
    done = run("worker", "shop")
    assert done.returncode == 2
    assert "the store has no tables yet: run `taskbridge store init`" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_many_calls_at_once_take_a_few_connections(url: str) -> None:
    store = opened(url)
    init(store)
    store.records.create([(a_message(number), 0.0) for number in range(100)], timeout_s=5)
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda number: store.records.get(f"id-{number}", timeout_s=20), range(100)))
    assert None not in found
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'").fetchone()
    assert row is not None
    assert row[0] <= 21
    store.close()


def test_whoever_counts_and_uncounts_members_of_a_group_never_waits_for_the_other_in_a_circle(url: str) -> None:
    """PostgreSQL would refuse one of them, after a second."""
    store, total, key = opened(url), 64, "flow:f:group:0"
    init(store)
    backend, begun = store.backend, Barrier(6)

    def count(number: int) -> None:
        begun.wait()
        for turn in range(8):
            for index in range(number, total, 2):
                tally = Tally(key, total, index, "done", "1", Entry("flow", "f", 60.0), "always")
                backend.tally(Write(f"record:{turn}/{number}/{index}", ABSENT, "1"), tally, timeout_s=20)

    def uncount(number: int) -> None:
        begun.wait()
        for turn in range(20):
            members = [(key, index) for index in range(turn % 2, total, 2)]
            write = Write(f"replay:{number}/{turn}", ABSENT, "1")
            backend.commit([Commit([write], [Entry("flow", "f", 60.0)], (), members)], timeout_s=20)

    def look_after(number: int) -> None:
        begun.wait()
        for turn in range(20):
            backend.note_sent(key, turn + number, timeout_s=20)
            backend.end_groups([key, "flow:g:group:0"], kept_s=None if turn % 2 else 3600, timeout_s=20)
            backend.purge(timeout_s=20)

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(run, number) for run in (count, uncount, look_after) for number in range(2)]
        for each in tasks:
            each.result(timeout=120)
    ended = [each for each in backend.members(key, 0, total, timeout_s=5) if each is not None]
    [counts] = backend.counts_of([key], timeout_s=5)
    assert (counts.done, counts.bad) == (len(ended), 0)
    store.close()


def test_clearing_removes_what_the_namespace_has_stored_and_nothing_else(url: str) -> None:
    store, other = opened(url, namespace="one"), opened(url, namespace="other")
    init(store)
    for each in (store, other):
        each.records.create([(a_message(), 0.0)], timeout_s=5)
        each.records.cancel("id-0", at=1.0, timeout_s=5)
        each.ticks.begin("s", now=lambda: 1.0, timeout_s=5)
        each.ticks.claim("s", 2.0, claimant="c", now=1.0, lease_s=9.0, timeout_s=5)
        each.marks.started(a_message())
        tally = Tally("flow:f:group:0", 2, 0, "done", "1", Entry("flow", "f"), "last")
        each.backend.tally(Write("record:0", ABSENT, "1"), tally, timeout_s=5)
    assert isinstance(store.backend, BackendWithTables)
    store.backend.clear(timeout_s=5)
    assert store.records.get("id-0", timeout_s=5) is None
    assert store.records.cancelled_since("", timeout_s=5)[1] == []
    assert store.ticks.states(["s"], timeout_s=5) == {}
    assert other.records.get("id-0", timeout_s=5) is not None
    assert list(other.ticks.states(["s"], timeout_s=5)) == ["s"]
    assert other.marks.claim(a_message(), timeout_s=5) is Claim.RUNNING
    assert [each.backend.members("flow:f:group:0", 0, 1, timeout_s=5)[0] for each in (store, other)] == [
        None,
        ("done", "1"),
    ]
    for each in (store, other):
        each.close()


def test_the_checks_leave_nothing_behind(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        store = opened(url)
        init(store)
        store.close()
        results = list(run_all(url, [CHECKS["what_is_settled_stays_settled"], CHECKS["a_replay_begins_anew"]]))
        assert [result.outcome for result in results] == ["passed", "passed"]
        for table in ("text", "cancelled", "member", "group"):
            query = psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(f"taskbridge_{table}"))
            assert connection.execute(query).fetchone() == (0,), table


class TestServer:
    def test_what_was_committed_is_there_after_a_kill_and_after_a_pause(self) -> None:
        with PrivatePostgreSQL() as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept (number int)")
            server.kill()
            assert not server.is_running
            server.start()
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("INSERT INTO kept VALUES (1)")
                server.pause()
                server.resume()
                assert connection.execute("SELECT number FROM kept").fetchone() == (1,)

    def test_stop_leaves_no_process_and_no_folder(self) -> None:
        server = PrivatePostgreSQL().start()
        folder, connection = server.folder, psycopg.connect(server.url)
        server.pause()
        server.stop()
        server.stop()
        connection.close()
        assert not folder.exists()
        left = [place for place in Path("/proc").glob("[0-9]*/cwd") if _leads_to(place, folder)]
        assert left == []


def _leads_to(place: Path, folder: Path) -> bool:
    try:
        return str(folder) in os.readlink(place)
    except OSError:  # it has ended
        return False


@pytest.mark.parametrize("secret", ["secr%zzet", "secr et", "secr%00et"])
def test_a_url_that_can_not_be_read_shows_no_password(secret: str) -> None:
    with pytest.raises(SettingsError) as caught:
        opened(f"postgresql://user:{secret}@host/db")
    told = "".join(traceback.format_exception(caught.value))
    assert "secr" not in str(caught.value)
    assert "secr" not in told.partition("Traceback")[2].rpartition("SettingsError")[2]
    assert caught.value.__suppress_context__


def test_of_many_commits_those_are_done_whose_texts_are_not_there(url: str) -> None:
    store = opened(url)
    init(store)
    of_many_commits(store)
    store.close()


class Wire:
    """What libpq notes of a store's connections: once the server is ready for another query, a round trip is over."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = file
        self._output = file.open("wb")
        connect = PostgreSQL.connect

        def traced(database: PostgreSQL, deadline: float) -> BoundedConnection:
            connection = connect(database, deadline)
            connection.pgconn.trace(self._output.fileno())
            return connection

        monkeypatch.setattr(PostgreSQL, "connect", traced)

    def close(self) -> None:
        self._output.close()

    def round_trips(self) -> int:
        """Return how many there were since the store was opened."""
        return self._file.read_text(errors="replace").count("\tReadyForQuery\t")


def _beside(name: str, count: int) -> list[str]:
    return [f"{name} beside {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("writes", "beside", "entries", "trips"),
    [(1, 0, 0, 3), (2, 0, 0, 4), (2, 0, 1, 5), (1, 1, 0, 3), (2, 1, 0, 3), (2, 50, 0, 3), (2, 50, 1, 4)],
)
def test_a_commit_takes_few_round_trips(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, beside: int, entries: int, trips: int
) -> None:
    with closing(Wire(tmp_path / "wire", monkeypatch)) as wire, closing(opened(url)) as store:
        init(store)
        store.backend.ping(timeout_s=5)  # looks at the tables

        def made(name: str) -> tuple[list[bool], int]:
            texts = [[f"{name} {number}" for number in range(writes)]]
            texts += [[key] for key in _beside(name, beside)]
            posted = [[Entry(f"of {each[0]}", "entry", 0.0)][:entries] for each in texts]
            commits = [
                Commit([Write(key, ABSENT, "1") for key in keys], its) for keys, its in zip(texts, posted, strict=True)
            ]
            before = wire.round_trips()
            return store.backend.commit(commits, timeout_s=5), wire.round_trips() - before

        assert made("new") == ([True] * (1 + beside), trips)
        store.backend.create([(f"held {writes - 1}", "0", None)], timeout_s=5)
        done, more = made("held")
        assert done == [False] + [True] * beside
        assert more > trips, "where one is there, each is made by itself"
        found = store.backend.get([f"held {number}" for number in range(writes)], timeout_s=5)
        assert found == [None] * (writes - 1) + ["0"]
        beside_it = _beside("held", beside)
        assert store.backend.get(beside_it, timeout_s=5) == ["1"] * beside
        due = {each for each, _ in store.backend.due_entries(most=200, lease_s=60, timeout_s=5)}
        assert due == {f"of {each}" for each in ("new 0", *_beside("new", beside), *beside_it)[: 200 * entries]}
