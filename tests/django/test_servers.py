"""Web servers that fork their processes after the application was loaded, and has sent something."""

from __future__ import annotations

import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from taskbridge.contract.ports import free_port
from tests.django.project import project


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp"])
def test_what_processes_of_gunicorn_send_arrives(
    pair: str, tmp_path: Path, url_of: Callable[[str], str], store_of: Callable[[str], str | None]
) -> None:
    database, port, sent_by = str(tmp_path / "site.sqlite3"), free_port(), Counter[str]()
    settings = "python:tests.django.site.gunicorn_settings"
    store = store_of(pair)
    more = {} if store is None else {"TASKBRIDGE_STORE": store}
    with project(tmp_path, url_of(pair), database=database, **more) as site:
        site.manage("migrate", "--run-syncdb", "--verbosity", "0")
        address = f"127.0.0.1:{port}"
        application = "tests.django.site.wsgi:application"
        site.start("-m", "gunicorn", "--config", settings, "--bind", address, application, until="Booting worker")
        site.worker("--processes", "1", "--threads", "2")

        def send() -> bool:
            number = sent_by.total()
            with urllib.request.urlopen(f"http://{address}/{number}", timeout=60) as answer:
                sent_by[answer.read().decode()] += 1
            return len(sent_by) == 2 and min(sent_by.values()) >= 3

        site.until(send, "both processes to have sent")

        def arrived() -> bool:
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                found: int = connection.execute("SELECT count(*) FROM shop_order").fetchone()[0]
            return found == sent_by.total()

        site.until(arrived, f"{sent_by.total()} orders")
