"""What tools that watch Celery or Dramatiq see of tasks: one error for a message that is dead, none for a retry."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from taskbridge import Bridge, Handle
from taskbridge.contract import leftovers
from taskbridge.contract.ports import free_port
from taskbridge.contract.workers import ProcessWorker
from taskbridge.engines.base import WorkerOptions
from tests.observers.tasks import Tasks, declare
from tests.servers import PrivateRedis

_PATIENCE_S: Final = 180.0
_ANSWER_S: Final = 60.0
_ENDED: Final = {"done": "done", "dead": "dead", "retried": "done", "discarded": "discarded"}

# Datadog's would look for an agent, and for instructions from a server.
_QUIET: Final = {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_STARTUP_LOGS": "false",
    "DD_CRASHTRACKING_ENABLED": "false",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="module")
def redis() -> Generator[PrivateRedis]:
    with PrivateRedis(appendonly=False) as server:
        yield server


class Watched:
    """A worker that a tool watches, and a bridge that sends to it."""

    def __init__(self, python: str, observer: str, url: str, folder: Path) -> None:
        self.python = python
        self.observer = observer
        self.folder = folder
        namespace = f"watched{uuid4().hex[:8]}"
        self.bridge = Bridge(url, namespace=namespace, lease=20)
        self.tasks: Tasks = declare(self.bridge)
        self.noted = folder / "noted"
        self.noted.touch()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")},
            **_QUIET,
            "OBSERVER": observer,
            "OBSERVED": str(self.noted),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TASKBRIDGE_URL": url,
            "TASKBRIDGE_NAMESPACE": namespace,
            "TASKBRIDGE_LEASE": "20",
        }

    @contextmanager
    def worker(self, threads: int) -> Generator[ProcessWorker]:
        """Start a worker; at the end it is told to stop, so that the tool has written all that it saw."""
        options = WorkerOptions(app="tests.observers.program", threads=threads)
        commands = [
            replace(command, argv=(self.python, *command.argv[1:])) for command in self.bridge.worker_commands(options)
        ]
        worker = ProcessWorker(commands, self.env, self.folder / "log")
        try:
            yield worker
            worker.terminate()
            assert worker.wait(_PATIENCE_S) == 0, worker.log()
        finally:
            worker.kill()

    def _noted(self, what: str) -> list[dict[str, str]]:
        lines = [json.loads(line) for line in self.noted.read_text().split("\n")[:-1]]
        return [line for line in lines if line["what"] == what]

    def errors(self) -> list[tuple[str, str, str]]:
        """Return the errors that tools have noted: the task, the type and the text of each."""
        return [(each["name"], each["kind"].removeprefix("builtins."), each["text"]) for each in self._noted("error")]

    def count(self, what: str) -> dict[str, int]:
        """Return how often something was noted of each task: `run`, or `process`."""
        return dict(Counter(each["name"].removeprefix("watched.") for each in self._noted(what)))

    def wait(self, handle: Handle[Any], worker: ProcessWorker) -> str:
        """Wait until a message has ended, and return how."""
        wait_until(lambda: handle.status().is_final, worker.log)
        return handle.status().state


def wait_until(condition: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(str(what()))
        time.sleep(0.05)


@pytest.fixture
def watched(
    observed_python: str, redis: PrivateRedis, tmp_path: Path, request: pytest.FixtureRequest
) -> Generator[Watched]:
    observer, engine = request.param
    made = Watched(observed_python, observer, f"{engine}+{redis.url}", tmp_path)
    yield made
    made.bridge.close()


_PAIRS: Final = [
    (("sentry", "celery"), 1),
    (("sentry", "celery"), 2),
    (("sentry", "dramatiq"), 2),
    (("opentelemetry", "celery"), 1),
    (("opentelemetry", "celery"), 2),
    (("datadog", "celery"), 1),
    (("datadog", "celery"), 2),
    # and beside what taskbridge tells them itself
    (("sentry+sentry-ours", "celery"), 1),
    (("sentry+sentry-ours", "dramatiq"), 2),
    (("opentelemetry+ours", "celery"), 2),
    (("datadog+spans+ours", "celery"), 2),
    # which is enough
    (("sentry-alone+sentry-ours", "celery"), 1),
    (("sentry-alone+sentry-ours", "dramatiq"), 2),
]
_DEAD: Final = ("watched.dead", "ValueError", "on purpose")
_RUNS: Final = {"done": 1, "dead": 1, "retried": 2, "discarded": 1}


def run_all(watched: Watched, threads: int) -> str:
    """Have a message of each task run, and return what the worker has logged."""
    with watched.worker(threads) as worker:
        handles = {name: getattr(watched.tasks, name).send() for name in _ENDED}
        ended = {name: watched.wait(handle, worker) for name, handle in handles.items()}
    assert ended == _ENDED
    return worker.log()


@pytest.mark.parametrize(("watched", "threads"), _PAIRS, indirect=["watched"], ids=str)
def test_a_dead_message_is_one_error_and_a_retried_one_is_none(watched: Watched, threads: int) -> None:
    log = run_all(watched, threads)

    assert watched.errors() == [_DEAD]
    if threads > 1 and watched.observer.startswith("opentelemetry"):
        assert "plain way" in log
    if "datadog" not in watched.observer:
        assert watched.count("run") == _RUNS
    if "sentry-ours" in watched.observer:
        assert watched.count("process") == _RUNS


_ALONE: Final = "opentelemetry-alone+ours"


@pytest.mark.parametrize(
    ("watched", "threads"),
    [((_ALONE, "celery"), 1), ((_ALONE, "celery"), 2), ((_ALONE, "dramatiq"), 2)],
    indirect=["watched"],
    ids=str,
)
def test_our_spans_tell_each_attempt_and_leave_the_fast_way_on(watched: Watched, threads: int) -> None:
    log = run_all(watched, threads)

    assert sorted(watched.errors()) == [_DEAD, ("watched.retried", "KeyError", "'the first time'")]
    assert watched.count("run") == _RUNS
    assert "plain way" not in log


@pytest.mark.parametrize("watched", [("flower", "celery")], indirect=True, ids=str)
def test_flower_shows_how_each_message_has_ended(watched: Watched) -> None:
    with flower(watched) as shown, watched.worker(1) as worker:

        def is_told() -> bool:
            """Send a message, and tell whether Flower hears of any: it answers before it listens to workers."""
            watched.wait(watched.tasks.done.send(), worker)
            return bool(shown())

        wait_until(is_told, lambda: f"Flower hears of nothing\n{worker.log()}")
        cancelled = watched.tasks.done.schedule(1.0)
        cancelled.cancel()
        expired = watched.tasks.done.using(expires=0.001).send()
        handles = {name: getattr(watched.tasks, name).send() for name in _ENDED}
        for handle in (*handles.values(), cancelled, expired):
            watched.wait(handle, worker)
        ids = {handle.id for handle in handles.values()}
        wait_until(lambda: ids <= shown().keys(), lambda: f"{_states(shown())}\n{worker.log()}")
        wait_until(lambda: not _unfinished(shown()), lambda: _states(_unfinished(shown())))
        seen = shown()

    states = {name: seen[handle.id]["state"] for name, handle in handles.items()}
    assert states["done"] == states["retried"] == "SUCCESS"
    assert states["dead"] == "FAILURE"
    assert "ValueError('on purpose')" in seen[handles["dead"].id]["exception"]


def _unfinished(tasks: dict[str, Any]) -> dict[str, Any]:
    final = ("SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED")
    return {found: task for found, task in tasks.items() if task["state"] not in final}


def _states(tasks: dict[str, Any]) -> str:
    return ", ".join(f"{found} {task['name']}: {task['state']}" for found, task in tasks.items())


@contextmanager
def flower(watched: Watched) -> Generator[Callable[[], dict[str, Any]]]:
    """Start Flower on the application; yield what returns the tasks that it knows."""
    port = free_port()
    command = [
        *(watched.python, "-m", "celery", "--app", "tests.observers.program:app", "flower"),
        *("--address=127.0.0.1", f"--port={port}", "--logging=warning"),
    ]
    log = watched.folder / "flower"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**watched.env, "FLOWER_UNAUTHENTICATED_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    leftovers.end_group(process.pid)

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_ANSWER_S) as answer:
            return json.loads(answer.read())

    try:
        wait_until(lambda: _answers(lambda: asked("/api/tasks")), log.read_text)
        yield lambda: asked("/api/tasks")
    finally:
        process.kill()
        process.wait()


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except OSError:
        return False
    return True
