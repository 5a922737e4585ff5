"""What real workers tell of themselves, alike on the four pairs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge
from tests.forking import start_process

ROOT = Path(__file__).parents[2]
APP = "tests.unit.vitals_shop"
TARGETS = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
LONGEST_S = 120.0


class Shop:
    """A namespace with workers."""

    def __init__(self, url: str, store: str | None, folder: Path) -> None:
        self.enough = folder / "enough"
        self._log = folder / "log"
        namespace = f"t{time.time_ns()}"
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")},
            "TASKBRIDGE_URL": url,
            "TASKBRIDGE_NAMESPACE": namespace,
            "TASKBRIDGE_GRACE": "2",
            "TASKBRIDGE_LISTING": "on",
            "TASKBRIDGE_UNKNOWN_TASK_GRACE": "0",
            "SHOP_ENOUGH": str(self.enough),
            **({} if store is None else {"TASKBRIDGE_STORE": store}),
        }
        self.bridge = Bridge(url, namespace=namespace, store=store, listing=True, send_timeout=60)
        self._workers: list[subprocess.Popen[bytes]] = []

    def send(self, task: str, *args: Any) -> Any:
        return self.bridge.send(f"{APP}.{task}", *args)

    def worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "taskbridge", "worker", APP, "--processes", "2", "--threads", "1"]
        with self._log.open("ab") as log:
            process: subprocess.Popen[bytes] = start_process(
                command, cwd=ROOT, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        self._workers.append(process)
        return process

    def until(self, look: Callable[[], Any], wanted: Any, within_s: float = LONGEST_S) -> None:
        deadline = time.monotonic() + within_s
        while (seen := look()) != wanted:
            assert time.monotonic() < deadline, f"{seen!r} is not {wanted!r}\n{self._log.read_text()[-3000:]}"
            time.sleep(0.05)

    def counts(self) -> dict[str, tuple[int, int, int]]:
        by_task = self.bridge.operations.rates().by_task
        return {task.rpartition(".")[2]: each for task, each in by_task.items()}

    def close(self) -> None:
        for process in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        self.bridge.close()


@pytest.fixture(params=TARGETS)
def shop(
    request: pytest.FixtureRequest,
    url_of: Callable[[str], str],
    store_of: Callable[[str], str | None],
    tmp_path: Path,
) -> Iterator[Shop]:
    made = Shop(url_of(request.param), store_of(request.param), tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_what_runs_and_ran_is_told_through_kills_and_restarts(shop: Shop) -> None:
    operations, first = shop.bridge.operations, shop.worker()
    others = {"fails": (0, 0, 10), "unknown": (0, 0, 1), "lasts": (1, 0, 0)}
    shop.until(lambda: sorted(each.slots for each in operations.workers()), [1, 1])
    shop.until(lambda: {each.queues for each in operations.workers()}, {("default",)})
    shop.until(lambda: operations.queues()[0].engine, shop.bridge.settings.url.engine)

    lasting = shop.send("lasts")
    for number in range(20):
        shop.send("quick", number)
    failed = [shop.send("fails") for _ in range(10)]
    failed.append(shop.send("unknown"))  # Celery's main process buries it
    shop.until(
        lambda: [(each.id, each.queue, each.attempt) for each in operations.running()], [(lasting.id, "default", 1)]
    )
    [attempt] = lasting.status().attempts
    shop.until(lambda: [each.worker for each in operations.running()], [attempt.worker])
    shop.until(
        lambda: [abs((each.since - attempt.started_at).total_seconds()) < LONGEST_S for each in operations.running()],
        [True],
    )
    shop.until(lambda: [each.name for each in operations.workers() if each.busy == 1], [attempt.worker])
    shop.until(lambda: operations.queues()[0].running, 1)

    shop.enough.touch()
    shop.until(operations.running, ())
    shop.until(shop.counts, {"quick": (20, 0, 0), **others})
    [failure] = [each for each in operations.failures() if each.task == f"{APP}.fails"]
    assert (failure.task, failure.error.type, failure.count, failure.is_dead_count) == (
        f"{APP}.fails",
        "ValueError",
        10,
        10,
    )
    assert failure.error.message == "no\x1b[31m\n such <b>card</b>"
    assert failure.first_at <= failure.last_at
    assert {each.id for each in failed} == {each.id for each in operations.messages(state="dead").items}
    assert len(operations.messages(state="done", task="*.quick").items) == 20
    assert operations.messages(state="queued").items == ()

    shop.until(lambda: len(operations.workers()), 2)
    gone = {each.name for each in operations.workers()}
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(60)
    second = shop.worker()
    for number in range(5):
        shop.send("quick", number)
    shop.until(shop.counts, {"quick": (25, 0, 0), **others})
    shop.until(lambda: [len(gone & {each.name for each in operations.workers()}), len(operations.workers())], [0, 2])

    second.send_signal(signal.SIGTERM)
    assert second.wait(LONGEST_S) == 0
    shop.until(operations.workers, ())
    assert shop.counts() == {"quick": (25, 0, 0), **others}
    assert sum(operations.rates().dead) == 11
    assert sorted(each.count for each in operations.failures()) == [1, 10]
