"""Workers and senders on a Redis that permits less than usual, or closes connections sooner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers import MANAGED, PrivateRedis

ENGINES = ("celery", "dramatiq")

MOST_LINES = 60
"""How many warnings and errors a worker may log in 8 s; a third of it is usual."""

SHOP = """
import logging, os
from taskbridge import Bridge, Every, RetryPolicy, current

logging.basicConfig()
bridge = Bridge(os.environ["URL"], retry=RetryPolicy(max_attempts=2, min_delay=0.1))


@bridge.task
def add(a: int, b: int) -> int:
    return a + b


@bridge.task
def again() -> int:
    if current().attempt == 1:
        raise ValueError("once")
    return current().attempt
"""

USE = """
import shop
handles = [shop.add.send(1, 2), shop.again.send(), shop.add.schedule(2, 1, 2)]  # one is waited for
print([each.result(timeout=90) for each in handles])
shop.add.schedule(60, 1, 1).cancel()
assert shop.bridge.health(timeout=60).is_well
"""


@contextmanager
def shop_on(url: str, folder: Path) -> Generator[dict[str, str]]:
    """Start a worker, and yield the environment of senders."""
    (folder / "shop.py").write_text(SHOP)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TASKBRIDGE_")}
    env = {**kept, "URL": url, "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "taskbridge", "worker", "shop", "--processes", "1", "--log-level", "DEBUG"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        yield env
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "worker.log").read_text()


def use(folder: Path, env: dict[str, str]) -> str:
    """Send, and return what is printed and logged."""
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{done.stderr}\n{(folder / 'worker.log').read_text()}"
    assert "[3, 2, 3]" in done.stdout
    return done.stderr


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("args", [MANAGED, ("--timeout", "3")], ids=["managed", "timeout"])
def test_all_is_done(engine: str, args: Sequence[str], tmp_path: Path) -> None:
    with (
        PrivateRedis(appendonly=False, extra_args=args) as server,
        shop_on(f"{engine}+{server.url}", tmp_path) as env,
    ):
        use(tmp_path, env)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_permission_for_channels_results_are_looked_for(engine: str, tmp_path: Path) -> None:
    with PrivateRedis(appendonly=False) as server:
        server.command("ACL", "SETUSER", "shop", "on", ">secret", "~*", "resetchannels", "+@all")
        with shop_on(f"{engine}+{server.url.replace('//', '//shop:secret@')}", tmp_path) as env:
            told = use(tmp_path, env)
            assert told.count("does not permit SUBSCRIBE") == 1
            assert "permit &taskbridge*" in told
            log = (tmp_path / "worker.log").read_text()
            assert log.count("not permitted") <= 3, log


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_whose_password_was_changed_says_so_in_few_lines_and_goes_on(engine: str, tmp_path: Path) -> None:
    with PrivateRedis(appendonly=False) as server, redis.Redis(port=server.port) as client:
        client.config_set("requirepass", "first")
        with shop_on(f"{engine}+{server.url.replace('//', '//:first@')}", tmp_path) as env:
            use(tmp_path, env)
            before = loud(tmp_path)
            client.config_set("requirepass", "second")
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            time.sleep(8)
            said = loud(tmp_path)[len(before) :]
            client.config_set("requirepass", "first")
            assert any("refuses the credentials" in line for line in said)
            assert len(said) < MOST_LINES, "\n".join(said)
            use(tmp_path, env)


def loud(folder: Path) -> list[str]:
    """Return the warnings and errors that a worker has logged so far."""
    lines = (folder / "worker.log").read_text().splitlines()
    return [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]


@pytest.mark.parametrize("engine", ENGINES)
def test_idle_workers_keep_their_connections_where_silent_ones_are_closed(engine: str, tmp_path: Path) -> None:
    with (
        PrivateRedis(appendonly=False, extra_args=("--timeout", "3")) as server,
        shop_on(f"{engine}+{server.url}", tmp_path) as env,
    ):
        use(tmp_path, env)
        time.sleep(8)  # a first connection is lost before it is known how soon
        with redis.Redis(port=server.port) as client:
            before, at_first, listening = connected(client), ids(client), set[str]()
            for _ in range(10):
                time.sleep(1)
                listening |= {each["id"] for each in client.client_list() if listens(each)}
            log = (tmp_path / "worker.log").read_text()
            assert listening
            # Two threads that ask at once may swap theirs, once in a while.
            assert len(listening - (at_first & ids(client))) <= 1, log
            # What is asked every second needs a connection beside another one now and then, and one of them is closed
            # again: whichever was used first.
            assert connected(client) - before <= 9, log


def ids(client: Any) -> set[str]:
    """Return the ids of the connections that a server has."""
    return {each["id"] for each in client.client_list()}


def connected(client: Any) -> int:
    """Return how many connections a server has had so far."""
    return int(client.info("stats")["total_connections_received"])


def listens(connection: Mapping[str, str]) -> bool:
    """Tell whether a worker waits on a connection until it is told of something."""
    return "b" in connection["flags"] or connection["sub"] != "0" or connection["psub"] != "0"
