"""With a namespace in braces, all keys that a bridge, its workers and their engine use on Redis share one hash slot."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from tests.servers import PrivateRedis

NAMESPACE = "{shop}"

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')

SHOP = """
import os
from datetime import timedelta
from taskbridge import Bridge, Every, Results, Retry, RetryPolicy, current

bridge = Bridge(os.environ["URL"], namespace="{shop}", retry=RetryPolicy(max_attempts=2, min_delay=0.1))


@bridge.task(queue="orders")
def add(a: int, b: int) -> int:
    return a + b


@bridge.task
def again() -> int:
    if current().attempt == 1:
        raise Retry(after=timedelta(seconds=0.1))
    return current().attempt


@bridge.task
def count(results: Results[int], extra: int) -> int:
    return len(results) + extra


@bridge.task
def fails() -> None:
    raise ValueError("no")
"""

USE = """
import shop
from datetime import timedelta
from taskbridge import group
later = shop.add.schedule(timedelta(seconds=60), 1, 1)
later.cancel()
handles = [shop.add.using(priority=each).send(1, 2) for each in ("low", "normal", "high", "critical")]
handles += shop.add.send_many([shop.add.call(1, 2)] * 3) + [shop.add.schedule(timedelta(seconds=0.2), 1, 2)]
assert [each.result(timeout=60) for each in handles] == [3] * len(handles)
assert shop.again.send().result(timeout=60) == 2
flow = group([shop.add.call(1, 2), shop.again.call()], at_once=1).then(shop.count, 5)
assert flow.send().result(timeout=60) == 7
dead = shop.fails.send()
try:
    dead.result(timeout=60)
except Exception as exc:
    print(type(exc).__name__)
assert len(shop.bridge.dead.list().entries) == 1
assert shop.bridge.health(timeout=60).is_well
shop.bridge.dead.purge([each.id for each in shop.bridge.dead.list().entries])
shop.bridge.close()
"""


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_all_keys_of_a_run_share_one_hash_slot(engine: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TASKBRIDGE_")}
    with PrivateRedis(appendonly=False) as server, redis.Redis.from_url(server.url) as client:
        env = {**kept, "URL": f"{engine}+{server.url}"}
        with monitored(server.url) as commands, worker(tmp_path, env):
            done = subprocess.run(
                [sys.executable, "-c", USE],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            log = (tmp_path / "worker.log").read_text()
            assert done.returncode == 0, f"{done.stderr}\n{log}"
            time.sleep(1.5)  # what the threads of a worker do now and then

        keys = {*keys_of(client, commands), *client.keys("*")}
    assert len(keys) > 20, keys
    assert {key for key in keys if slot_of(key) != slot_of(NAMESPACE)} == set()


def slot_of(key: bytes | str) -> int:
    """Return the hash slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


@contextmanager
def worker(folder: Path, env: dict[str, str]) -> Generator[None]:
    command = [sys.executable, "-m", "taskbridge", "worker", "shop", "--processes", "1", "--threads", "2"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def monitored(url: str) -> Generator[list[tuple[str, ...]]]:
    """Note every command that the server carries out, those of scripts too, until the end of the context."""
    commands: list[tuple[str, ...]] = []
    with redis.Redis.from_url(url, socket_timeout=None) as client, client.monitor() as monitor:
        connection: Any = monitor.connection

        def note() -> None:
            while commands[-1:] != [("PING", "end")]:
                line = connection.read_response(disable_decoding=True).decode()
                commands.append(tuple(each.replace('\\"', '"') for each in _WORD.findall(line)))

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        yield commands
        with redis.Redis.from_url(url) as other:
            other.execute_command("PING", "end")
        thread.join(30)
    assert not thread.is_alive()


def keys_of(client: Any, commands: Iterable[tuple[str, ...]]) -> set[bytes]:
    """Return the keys that these commands name."""
    keys: set[bytes] = set()
    for command in set(commands):
        with suppress(redis.ResponseError):  # it has no keys
            found = client.execute_command("COMMAND GETKEYS", *command)
            keys.update(each.encode() if isinstance(each, str) else each for each in found)
    return keys
