"""An outbox of SQLAlchemy's, relayed by real workers whoever is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.django.kills import count, project_on
from tests.private_postgresql import PrivatePostgreSQL
from tests.sessions.kills import Post


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with PrivatePostgreSQL() as server:
        yield {"postgresql": server.url, "sqlite": str(tmp_path_factory.mktemp("sessions") / "application.db")}


@pytest.mark.parametrize(
    ("pair", "database"),
    [
        ("celery+redis", "postgresql"),
        ("dramatiq+redis", "sqlite"),
        ("celery+amqp", "sqlite"),
        ("dramatiq+amqp", "postgresql"),
    ],
)
def test_killed_senders_lose_nothing_and_nothing_is_run_twice(
    pair: str,
    database: str,
    databases: dict[str, str],
    tmp_path: Path,
    url_of: Callable[[str], str],
    redis_server: Any,
) -> None:
    with project_on(tmp_path, url_of(pair), databases[database], redis_server.url, Post) as site:
        site.worker("--processes", "1", "--threads", "2")
        site.send("outbox", kills=10, twice=5)
        site.until(lambda: len(count(site.notes)) == 10, "the runs of what was sent")
        site.until(site.is_idle, "nothing to be left")
        site.close()  # which lets all end that runs
        assert count(site.notes) == dict.fromkeys(range(10), 1)
