"""Django's connections around runs: closed or kept as the settings say, checked, and replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from taskbridge.bridge import default_bridge
from tests.django.project import Project, project
from tests.private_postgresql import PrivatePostgreSQL

TASKS: Final = "tests.django.site.ledger.tasks"
KINDS: Final = ("add", "add_in_atomic", "add_async", "add_in_atomic_async")

PAIRS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
WHOLE: Final = [(pair, threads) for pair in PAIRS for threads in (1, 4)]
PART: Final = [("celery+redis", 1), ("dramatiq+redis", 4)]
CHOSEN: Final = WHOLE if os.environ.get("TASKBRIDGE_TEST_CONNECTIONS") == "all" else PART
"""`TASKBRIDGE_TEST_CONNECTIONS=all pytest tests/django/test_connections.py` takes all pairs, with 1 and 4 threads."""

LOST: Final = 20  # tasks after the connections were lost


class Ledger:
    """The project with its orders in a PostgreSQL server, as the test itself sees them."""

    def __init__(self, site: Project, server: PrivatePostgreSQL) -> None:
        self.site = site
        self.server = server
        self._next = 0

    def ask(self, query: str) -> Any:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()  # type: ignore[arg-type]

    def send(self, kind: str, times: int) -> None:
        for _ in range(times):
            self._next += 1
            self.site.bridge.send(f"{TASKS}.{kind}", self._next)

    def wait(self) -> None:
        """Wait until all orders are there, or a task has failed."""
        self.site.until(lambda: self.rows() + self.dead() == self._next, f"{self._next} orders")

    def rows(self) -> int:
        return int(self.ask("SELECT count(*) FROM shop_order")[0][0])

    def dead(self) -> int:
        return len(self.site.bridge.dead_letters())

    def terminate(self) -> int:
        """Terminate the worker's sessions, and return how many there were."""
        return len(self.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'site'"))


@pytest.fixture
def make_ledger(tmp_path: Path, url_of: Callable[[str], str]) -> Iterator[Callable[..., Ledger]]:
    with PrivatePostgreSQL() as server:

        def make(pair: str, connections: str) -> Ledger:
            nonlocal made
            made = project(tmp_path, url_of(pair), database=server.url, SITE_CONNECTIONS=connections)
            site = made.__enter__()
            site.manage("migrate", "--run-syncdb", "--verbosity", "0")
            return Ledger(site, server)

        made: Any = None
        yield make
        made.__exit__(None, None, None)


@pytest.mark.parametrize(("pair", "threads"), CHOSEN)
def test_no_task_fails_after_connections_were_lost(pair: str, threads: int, make_ledger: Callable[..., Ledger]) -> None:
    ledger = make_ledger(pair, "kept")
    ledger.site.worker("--processes", "1", "--threads", str(threads))
    for kind in KINDS:
        ledger.send(kind, 2 * threads)
    ledger.wait()

    terminated = []
    for kind in KINDS:
        for _ in range(LOST // threads):
            terminated.append(ledger.terminate())
            ledger.send(kind, threads)
            ledger.wait()
    ledger.server.restart()
    for kind in KINDS:
        ledger.send(kind, LOST)
    ledger.wait()

    assert min(terminated) >= 1, "no connection was kept"
    assert ledger.dead() == 0, ledger.site.log()
    assert "the plain way" not in ledger.site.log()
