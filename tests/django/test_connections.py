"""Django's connections around runs: closed or kept as the settings say, checked, and replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import django
import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import override_settings

from taskbridge import Bridge, default_bridge
from taskbridge.engines.base import INLINE_THREADS
from tests.django.project import Project, project
from tests.django.site.ledger import tasks
from tests.django.site.shop.models import Order
from tests.private_postgresql import PrivatePostgreSQL

TASKS: Final = "tests.django.site.ledger.tasks"
KINDS: Final = ("add", "add_in_atomic", "add_async", "add_in_atomic_async")

PAIRS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
WHOLE: Final = [(pair, threads) for pair in PAIRS for threads in (1, 4)]
# CI runs these tests on two releases of Django: on both together, each engine with 1 and with 4 threads.
OLDER: Final = [("celery+redis", 1), ("dramatiq+amqp", 4)]
NEWER: Final = [("celery+amqp", 4), ("dramatiq+redis", 1)]
PART: Final = OLDER if django.VERSION < (6, 0) else NEWER
IS_WHOLE: Final = os.environ.get("TASKBRIDGE_TEST_CONNECTIONS") == "all"
CHOSEN: Final = WHOLE if IS_WHOLE else PART
WAYS: Final = ("kept", "pool") if IS_WHOLE else ("kept",)
"""`TASKBRIDGE_TEST_CONNECTIONS=all pytest tests/django/test_connections.py` takes all pairs, with 1 and 4 threads.

It takes ten minutes, and needs psycopg_pool.
"""

LOST: Final = 20  # tasks after the connections were lost


class Ledger:
    """The project with its orders in a PostgreSQL server, as the test itself sees them."""

    def __init__(self, site: Project, server: PrivatePostgreSQL) -> None:
        self.site = site
        self._server = server
        self._connection = psycopg.connect(server.url, autocommit=True)
        self._sent = 0

    def restart(self) -> None:
        """Restart the server."""
        self._connection.close()
        self._server.restart()
        self._connection = psycopg.connect(self._server.url, autocommit=True)

    def send(self, kind: str, times: int) -> None:
        for _ in range(times):
            self._sent += 1
            self.site.bridge.send(f"{TASKS}.{kind}", self._sent)

    def wait(self) -> None:
        """Wait until all orders are there, or a task has failed."""
        self.site.until(lambda: self._orders() + self.dead() == self._sent, f"{self._sent} orders")

    def _orders(self) -> int:
        return len(self._connection.execute("SELECT 1 FROM shop_order").fetchall())

    def dead(self) -> int:
        return len(self.site.bridge.dead_letters())

    def sessions(self) -> list[int]:
        """Return the process ids of the worker's sessions."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'site'"
        return [pid for (pid,) in self._connection.execute(query).fetchall()]

    def terminate(self) -> int:
        """Terminate the worker's sessions, and return how many there were."""
        pids = self.sessions()
        for pid in pids:
            self._connection.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
        return len(pids)

    def close(self) -> None:
        self._connection.close()


MakeLedger = Callable[[str, str], AbstractContextManager[Ledger]]


@pytest.fixture
def make_ledger(tmp_path: Path, url_of: Callable[[str], str], store_of: Callable[[str], str | None]) -> MakeLedger:
    """Makes the project on a pair, with a PostgreSQL server of the test's own; its connections are kept, or not."""

    @contextmanager
    def make(pair: str, connections: str) -> Generator[Ledger]:
        url, store = url_of(pair), store_of(pair)
        more = {"SITE_CONNECTIONS": connections} | ({} if store is None else {"TASKBRIDGE_STORE": store})
        with (
            PrivatePostgreSQL() as server,
            project(tmp_path, url, database=server.url, **more) as site,
            closing(Ledger(site, server)) as ledger,
        ):
            site.manage("migrate", "--run-syncdb", "--verbosity", "0")
            yield ledger

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "threads"), CHOSEN)
@pytest.mark.parametrize("way", WAYS)
def test_no_task_fails_after_connections_were_lost(pair: str, threads: int, way: str, make_ledger: MakeLedger) -> None:
    with make_ledger(pair, way) as ledger:
        ledger.site.worker("--processes", "1", "--threads", str(threads))
        for kind in KINDS:
            ledger.send(kind, 2 * threads)
        ledger.wait()

        terminated = list[int]()
        for kind in KINDS:
            for _ in range(LOST // threads):
                terminated.append(ledger.terminate())
                ledger.send(kind, threads)
                ledger.wait()
        ledger.restart()
        for kind in KINDS:
            ledger.send(kind, LOST)
        ledger.wait()

        assert ledger.dead() == 0, ledger.site.log()
        assert "hook failed" not in ledger.site.log()
        assert min(terminated) >= 1, "no connection was kept"
        assert "the plain way" not in ledger.site.log()


@pytest.mark.parametrize(("pair", "threads"), CHOSEN)
def test_a_connection_that_is_not_kept_is_closed_after_each_run(
    pair: str, threads: int, make_ledger: MakeLedger
) -> None:
    with make_ledger(pair, "closed") as ledger:
        ledger.site.worker("--processes", "1", "--threads", str(threads))
        for kind in KINDS:
            ledger.send(kind, 2 * threads)
        ledger.wait()

        assert ledger.dead() == 0, ledger.site.log()
        ledger.site.until(lambda: not ledger.sessions(), "the last session to end")


# In this process, on `inline://`


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The settings of the default database, which is a file here; this thread has a connection of its own to it."""
    settings: dict[str, Any] = connections.settings["default"]
    monkeypatch.setitem(settings, "NAME", str(tmp_path / "site.sqlite3"))
    former = connections["default"]
    del connections["default"]
    call_command("migrate", run_syncdb=True, verbosity=0)
    yield settings
    connection.close()
    connections["default"] = former


@pytest.fixture
def in_thread(database: dict[str, Any]) -> Iterator[Bridge]:
    """The default bridge, whose messages run in one thread of their own."""
    with default_bridge().temporarily(url="inline://?threads=1") as _:
        yield default_bridge()


ASK_S: Final = 120


@pytest.mark.parametrize(("task", "thread"), [(tasks.where, INLINE_THREADS), (tasks.where_async, "taskbridge-orm")])
@pytest.mark.parametrize("age", [0, None])
def test_the_thread_that_uses_the_orm_keeps_its_connection_as_the_setting_says(
    task: Any,
    thread: str,
    age: int | None,
    in_thread: Bridge,
    database: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(database, "CONN_MAX_AGE", age)
    runs = [task.send().result(timeout=ASK_S) for _ in range(3)]

    assert all(name.startswith(thread) for name, _, _ in runs), runs
    assert len({name for name, _, _ in runs}) == 1
    assert [before is None for _, before, _ in runs] == [True, age == 0, age == 0]


def test_coroutines_that_run_at_a_time_use_the_orm_at_a_time(database: dict[str, Any]) -> None:
    tasks.meeting.reset()
    with default_bridge().temporarily(url="inline://?threads=2"):
        runs = [tasks.meet.send(), tasks.meet.send()]
        assert len({run.result(timeout=ASK_S) for run in runs}) == 2


class NotedCache(LocMemCache):
    """A cache that tells what becomes of it."""

    log: Final[list[str]] = []

    def __init__(self, name: str, params: dict[str, Any]) -> None:
        super().__init__(name, params)
        self.log.append(f"{name} made")
        self._noted = name

    def close(self, **kwargs: Any) -> None:
        self.log.append(f"{self._noted} closed")


def test_caches_that_runs_use_are_closed_after_each_and_kept_and_others_are_not_made(in_thread: Bridge) -> None:
    backend = f"{__name__}.NotedCache"
    names = ("default", "used", "unused")
    NotedCache.log.clear()
    with override_settings(CACHES={name: {"BACKEND": backend, "LOCATION": name} for name in names}):
        for number in range(3):
            tasks.remember.send(number).result(timeout=ASK_S)
            tasks.nothing.send().result(timeout=ASK_S)

    assert [each for each in NotedCache.log if "made" in each] == ["used made"]
    assert NotedCache.log.count("used closed") == 6


def test_a_transaction_that_a_run_left_open_is_no_matter_of_the_next_run(in_thread: Bridge) -> None:
    tasks.leave_atomic_open.send().result(timeout=ASK_S)
    tasks.add.send(1).result(timeout=ASK_S)

    assert Order.objects.count() == 1


@pytest.mark.parametrize("url", ["inline://?threads=0", "inline://?at_send=1"])
def test_what_runs_in_the_callers_thread_uses_its_transaction_and_leaves_its_connection_alone(
    url: str, database: dict[str, Any]
) -> None:
    connection.ensure_connection()
    mine = connection.connection
    with default_bridge().temporarily(url=url), transaction.atomic():
        handles = [tasks.add.send(1), tasks.count_async.send(), tasks.add_async.send(2), tasks.count_async.send()]
        default_bridge().run_until_idle()
        counts = [handle.result(timeout=ASK_S) for handle in handles]
        transaction.set_rollback(True)

    assert counts == [None, 1, None, 2]
    assert Order.objects.count() == 0
    assert connection.connection is mine


def test_a_coroutine_runs_where_an_async_test_drives_the_bridge(database: dict[str, Any]) -> None:
    """The thread of the test waits for the coroutine, so that it can't run its ORM calls, as asgiref has it."""

    async def drive() -> None:
        tasks.add_async.send(1)
        await sync_to_async(default_bridge().run_until_idle)()

    async_to_sync(drive)()
    assert Order.objects.count() == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # as in Celery, which forks
def test_a_forked_process_inherits_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(connections["default"], "close_pool", lambda: closed.append(os.getpid()), raising=False)
    child = os.fork()
    if not child:
        os._exit(len(closed) - 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert closed == [os.getpid()]
