"""A worker process that has nothing to do holds few connections to Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers import PrivateRedis

MOST = 8

SETTLES_WITHIN_S = 120.0

SHOP = """
import os
from taskbridge import Bridge

bridge = Bridge(os.environ["URL"])


@bridge.task
def add(a: int, b: int) -> int:
    return a + b
"""

USE = """
import shop
handles = shop.add.send_many([shop.add.call(number, 1) for number in range(200)])
assert [each.result(timeout=180) for each in handles] == [number + 1 for number in range(200)]
"""


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_at_rest_holds_at_most_eight_connections(engine: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TASKBRIDGE_")}
    command = [sys.executable, "-m", "taskbridge", "worker", "shop", "--processes", "1", "--threads", "8"]
    with PrivateRedis(appendonly=False) as server, redis.Redis.from_url(server.url) as client:
        env = {**kept, "URL": f"{engine}+{server.url}"}
        with (tmp_path / "worker.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=env, check=True, timeout=300)
            held = settled(client)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)

    assert len(held) <= MOST, "\n".join(held)


def settled(client: Any) -> list[str]:
    """Return the connections besides the own one as soon as they are few, or those that are there in the end."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while True:
        held = [str(each) for each in client.client_list() if each["cmd"] != "client|list"]
        if len(held) <= MOST or time.monotonic() > deadline:
            return held
        time.sleep(0.5)
