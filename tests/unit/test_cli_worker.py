"""`taskbridge worker` runs tasks on every target that has a server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import PrivateRedis

SHOP = """
import os, time
from pathlib import Path
from taskbridge import Bridge, RetryPolicy

bridge = Bridge("inline://", namespace=os.environ["SHOP_NAMESPACE"], grace=60, retry=RetryPolicy.never())

def write(text: str) -> None:
    with open(os.environ["SHOP_LOG"], "a") as log:
        log.write(f"{text}\\n")

@bridge.task(queue="email")
def mail(user: int) -> None:
    write(f"mail {user} {os.getpid()}")

@bridge.task
def pack(order: int) -> None:
    write(f"pack {order} {os.getpid()}")

@bridge.task
def hold(order: int) -> None:
    write(f"hold {order} {os.getpid()}")
    deadline = time.monotonic() + 60
    while Path(os.environ["SHOP_LOG"]).read_text().count("hold ") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    write(f"held {order} {os.getpid()}")
"""


class Shop:
    """An application on a target, whose own choice of a url is another."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.log = folder / "log"
        self.log.touch()
        (folder / "shop.py").write_text(SHOP)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
        self.env = {**inherited, "SHOP_LOG": str(self.log), "SHOP_NAMESPACE": f"cli-{uuid4().hex[:8]}"}
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"worker-{len(self.workers)}").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskbridge", "worker", "shop", "--url", self.url, *options],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.workers.append(process)
        return process

    def said(self, worker: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"worker-{self.workers.index(worker)}").read_text(errors="replace")

    def send(self, code: str) -> None:
        env = {**self.env, "TASKBRIDGE_APP_URL": self.url}
        loading = "from taskbridge.loading import load_bridge\nload_bridge('shop')\nfrom shop import *\n"
        subprocess.run([sys.executable, "-c", loading + code], cwd=self.folder, env=env, check=True, timeout=60)

    def wrote(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(f"{word} ")]

    def wait_for(self, condition: Callable[[], object], *, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            seen = "\n".join(self.said(worker) for worker in self.workers)
            assert time.monotonic() < deadline, f"not in time; tasks: {self.log.read_text()}; workers: {seen[-5000:]}"
            time.sleep(0.05)

    def wait_ready(self, worker: subprocess.Popen[bytes]) -> None:
        self.wait_for(lambda: "taskbridge: ready\n" in self.said(worker))


@pytest.fixture
def shop(tmp_path: Path, target: str, target_url: str) -> Generator[Shop]:
    if target.endswith("memory") or target == "inline":
        pytest.skip("has no workers; test_cli.py sees that it is refused")
    with _ended(Shop(tmp_path, target_url)) as made:
        yield made


@contextmanager
def _ended(made: Shop) -> Generator[Shop]:
    """End the workers afterwards."""
    try:
        yield made
    finally:
        for worker in made.workers:
            if worker.poll() is None:
                worker.terminate()
                try:
                    worker.wait(60)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()


@pytest.mark.parametrize("slots", [("2", "1"), ("1", "2")])
def test_a_worker_has_processes_times_threads_slots_and_ends_with_0(shop: Shop, slots: tuple[str, str]) -> None:
    processes, threads = slots
    shop.env |= {"CELERY_WORKER_PURGE": "1", "dramatiq_queue_prefetch": "9"}
    worker = shop.worker("--processes", processes, "--threads", threads)
    shop.wait_ready(worker)
    engine = shop.url.partition("+")[0]
    assert re.match(
        rf"\S+Z INFO \d+ taskbridge: 3 tasks of shop on {engine}\+\S+, queues default, email, "
        rf"2 at a time \({processes} process(es)? x {threads} threads?\)\n",
        shop.said(worker),
    )
    assert "guest:guest" not in shop.said(worker)
    dropped = {"celery": "CELERY_WORKER_PURGE", "dramatiq": "dramatiq_queue_prefetch"}[engine]
    warning = f" taskbridge: the workers do not inherit {dropped}: {engine} would obey them\n"
    assert shop.said(worker).count(warning) == 1

    shop.send("for i in range(2): hold.send(i)\nmail.send(1)")
    shop.wait_for(lambda: len(shop.wrote("held")) == 2)
    shop.wait_for(lambda: shop.wrote("mail"))
    lines = [line.split()[0] for line in shop.log.read_text().splitlines() if not line.startswith("mail")]
    assert lines == ["hold", "hold", "held", "held"]
    assert len({line.split()[2] for line in shop.wrote("hold")}) == int(processes)

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(90) == 0, shop.said(worker)


def test_a_killed_worker_is_started_again_and_still_takes_from_its_own_queues_only(shop: Shop) -> None:
    worker = shop.worker("--queues", "default", "--processes", "1", "--threads", "2")
    shop.wait_ready(worker)
    shop.send("mail.send(1)\npack.send(1)")
    shop.wait_for(lambda: shop.wrote("pack"))

    os.kill(int(shop.wrote("pack")[0].split()[2]), signal.SIGKILL)
    shop.wait_for(lambda: "starting it again in 1 s" in shop.said(worker))
    shop.send("pack.send(2)")

    shop.wait_for(lambda: shop.wrote("pack 2"))  # and the first once more, if it was killed before it was done with
    assert not shop.wrote("mail")
    queues = subprocess.run(
        [sys.executable, "-m", "taskbridge", "queues", "shop", "--url", shop.url],
        cwd=shop.folder,
        env=shop.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert re.search(r"^email +1$", queues, re.MULTILINE), queues
    worker.send_signal(signal.SIGINT)
    assert worker.wait(90) == 0, shop.said(worker)


SLOW = """
import os, pathlib, time
from taskbridge import Bridge

bridge = Bridge()
bridge.task(name="note")(lambda: None)
pathlib.Path(f"begun-{os.getpid()}").touch()
if len([*pathlib.Path().glob("begun-*")]) == SLOW_IS:
    pathlib.Path("slow").touch()
    time.sleep(300)
"""


@pytest.mark.parametrize("slow_is", [1, 2], ids=["the command", "its process"])
@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_sigterm_ends_a_worker_that_is_still_being_loaded(engine: str, slow_is: int, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.replace("SLOW_IS", str(slow_is)))
    url = f"{engine}+redis://127.0.0.1:1/0"
    argv = [sys.executable, "-m", "taskbridge", "worker", "slow", "--url", url, "--processes", "1"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(argv, cwd=tmp_path, stdout=log, stderr=log) as worker:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "slow").exists():
                assert worker.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            worker.terminate()
            assert worker.wait(120) == 0, (tmp_path / "log").read_text()
        finally:
            worker.kill()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_that_watches_runs_the_code_that_is_there_now(
    engine: str, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    with _ended(Shop(tmp_path, f"{engine}+{redis_server.url}")) as shop:
        worker = shop.worker("--watch")
        shop.wait_ready(worker)
        shop.send("mail.send(1)")
        shop.wait_for(lambda: shop.wrote("mail"))

        changed = SHOP.replace('write(f"mail', 'write(f"post')
        deadline = time.monotonic() + 90
        while "shop.py changed: starting the workers anew" not in shop.said(worker):  # when it watches, nobody tells
            assert time.monotonic() < deadline, shop.said(worker)
            changed += "\n"
            (tmp_path / "shop.py").write_text(changed)
            time.sleep(1)

        def is_new() -> bool:  # the old one may take some before it ends
            shop.send("mail.send(2)")
            return bool(shop.wrote("post"))

        shop.wait_for(is_new)
        assert {line.split()[1] for line in shop.wrote("post")} == {"2"}
        worker.terminate()
        assert worker.wait(90) == 0
