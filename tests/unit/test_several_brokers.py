"""One application on two brokers, as docs/scaling.md has it: a bridge each, and workers that are started for one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers import PrivateRedis

SHOP = """
import os
from zlib import crc32
from taskbridge import Bridge

main = Bridge("celery+" + os.environ["MAIN"])
bulk = Bridge("dramatiq+" + os.environ["BULK"])
shards = (main, bulk)


def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        print(os.environ["WORKER"], *words, file=notes)


@bulk.task(results=False)
def index(document: int) -> None:
    note("index", document)


@main.task(queue="orders")
def place(order: int) -> None:
    note("place", order)
    index.send(order)


def charge(customer: str) -> None:
    note("charge", customer)


charges = [shard.task(name="charge", queue="money")(charge) for shard in shards]


def charge_of(customer: str):
    return charges[crc32(customer.encode()) % len(charges)]
"""

SEND = """
import shop
shop.place.send(7)
for customer in ("ada", "bob", "cleo", "dan"):
    shop.charge_of(customer).send(customer)
"""

EXPECTED = [
    "bulk charge dan",
    "bulk index 7",
    "main charge ada",
    "main charge bob",
    "main charge cleo",
    "main place 7",
]


@contextmanager
def worker(bridge: str, folder: Path, env: dict[str, str]) -> Generator[None]:
    command = [sys.executable, "-m", "taskbridge", "worker", f"shop:{bridge}", "--processes", "1", "--threads", "2"]
    with (folder / f"{bridge}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**env, "WORKER": bridge}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_each_task_runs_on_the_broker_of_its_bridge_and_each_key_on_that_of_its_shard(
    redis_server: PrivateRedis, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    notes = tmp_path / "notes"
    with ExitStack() as stack:
        other = stack.enter_context(PrivateRedis(appendonly=False))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TASKBRIDGE_")}
        env = {**kept, "MAIN": redis_server.url, "BULK": other.url}
        env |= {"TASKBRIDGE_NAMESPACE": f"several-{time.time_ns()}", "NOTES": str(notes), "WORKER": "none"}
        subprocess.run([sys.executable, "-c", SEND], cwd=tmp_path, env=env, check=True, timeout=120)
        for bridge in ("main", "bulk"):
            stack.enter_context(worker(bridge, tmp_path, env))

        deadline = time.monotonic() + 180
        while not notes.exists() or len(notes.read_text().splitlines()) < len(EXPECTED):
            assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in tmp_path.glob("*.log")]
            time.sleep(0.05)

    assert sorted(notes.read_text().splitlines()) == EXPECTED
