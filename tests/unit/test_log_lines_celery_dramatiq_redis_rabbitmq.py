"""Every line of a worker and of its processes has one format, the same on both engines (rules LG1 to LG4)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import PrivateRedis

APP = """
import logging, os, warnings
from taskbridge import Bridge, RetryPolicy

bridge = Bridge(
    "inline://", namespace=os.environ["APP_NAMESPACE"], retry=RetryPolicy(max_attempts=2, min_delay=0.1)
)
log = logging.getLogger("app")
log.warning("imported")

@bridge.task(name="app.fine")
def fine() -> None:
    log.warning("two\\nlines \\x1b[31m and \\ud800")

@bridge.task(name="app.second")
def second() -> None:
    from taskbridge import current
    if current().attempt == 1:
        raise ValueError("once\\nFORGED " + "x" * 1000)

@bridge.task(name="app.dies")
def dies() -> None:
    warnings.warn("look here")
    raise KeyError("for good")

@bridge.task(name="app.kills", retry=RetryPolicy(max_attempts=1))
def kills() -> None:
    os.kill(os.getpid(), 9)

@bridge.task(name="app.last")
def last() -> None:
    log.error("the end")
"""
OWN = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"own": {"format": "OWN %(name)s %(levelname)s %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"level": "INFO", "handlers": ["own"]},
})
"""
FIELDS = {"time", "level", "logger", "message", "task", "id", "attempt", "queue", "engine", "worker", "exception"}
Line = dict[str, Any]


class App:
    """An application on a target, its worker, and what that wrote, to standard output and to standard error."""

    def __init__(self, folder: Path, url: str, *, code: str = APP) -> None:
        self.folder = folder
        self.url = url
        self.engine = url.partition("+")[0]
        (folder / "app.py").write_text(code)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
        self.env = {**inherited, "APP_NAMESPACE": f"log-{uuid4().hex[:8]}", "TASKBRIDGE_APP_URL": url}

    def skip_unless_redis(self) -> None:
        if "+redis" not in self.url:
            pytest.skip("no broker takes part in this, and one target an engine shows it")

    @contextmanager
    def worker(self, *options: str, **env: str) -> Generator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "taskbridge", "worker", "app", "--url", self.url, *options]
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**self.env, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        try:
            self.wait_for(lambda: "ready" in self.err() or process.poll() is not None)
            assert process.poll() is None, self.err()
            yield process
        finally:
            process.terminate()
            try:
                code = process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert code == 0, self.err()

    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def lines(self) -> list[Line]:
        """Return all lines of both streams, each of which has to be JSON."""
        written = (self.folder / "out").read_text() + (self.folder / "err").read_text()
        return [json.loads(line) for line in written.splitlines()]

    def wait_for(self, condition: Callable[[], object], *, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {self.err()[-5000:]}"
            time.sleep(0.05)

    def send(self, code: str) -> list[str]:
        """Run code that sends, and return the ids that it prints."""
        loading = "from taskbridge.loading import load_bridge\nload_bridge('app')\nfrom app import *\n"
        command = [sys.executable, "-W", "ignore", "-c", loading + code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def run_all(self) -> list[str]:
        """Run each task, and wait until the log says so."""
        sent = self.send("print(*[task.send().id for task in (fine, second, dies)])")
        last_words = "two", "failed: ValueError", "is dead"
        self.wait_for(lambda: all(words in self.err() for words in last_words))
        self.send("last.send()")
        self.wait_for(lambda: "the end" in self.err())
        return sent


@pytest.fixture
def app(tmp_path: Path, target: str, target_url: str) -> App:
    if target.endswith("memory") or target == "inline":
        pytest.skip("has no workers")
    return App(tmp_path, target_url)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_every_line_of_a_worker_is_json_with_the_same_fields(app: App, threads: str) -> None:
    if threads == "2":  # which are other processes only on Celery
        app.skip_unless_redis()
        if app.engine == "dramatiq":
            pytest.skip("it has the same processes with any number of threads")
    with app.worker("--log-format", "json", "--processes", "2", "--threads", threads):
        fine, second, dies = app.run_all()
    lines = app.lines()

    assert set().union(*lines) == FIELDS
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("INFO", "WARNING", "ERROR")
        assert re.fullmatch(r".+:\d+", line["worker"])
        assert line.get("engine") == app.engine or "imported" in line["message"]
        assert "\x1b" not in json.dumps(line)
    assert {line["logger"].partition(".")[0] for line in lines} >= {"taskbridge", "app", app.engine}
    assert len({line["worker"] for line in lines}) >= 3, "the supervisor, and workers"

    (own,) = [line for line in lines if line["message"].startswith("two\nlines")]
    assert (own["task"], own["id"], own["attempt"], own["queue"]) == ("app.fine", fine, 1, "default")
    (failed,) = [line for line in lines if "failed: ValueError" in line["message"]]
    assert (failed["task"], failed["id"], failed["attempt"], failed["queue"]) == ("app.second", second, 1, "default")
    assert (failed["logger"], failed["level"]) == ("taskbridge.worker", "WARNING")
    assert "exception" not in failed
    assert re.search(r"failed: ValueError: once\\nFORGED x+ \(\S*app\.py:\d+ in second\), runs", failed["message"])
    assert failed["message"].count("x") <= 500
    (dead,) = [line for line in lines if "is dead" in line["message"]]
    assert (dead["task"], dead["id"], dead["attempt"], dead["level"]) == ("app.dies", dies, 2, "ERROR")
    assert re.search(r"is dead: exhausted: KeyError: 'for good' \(\S*app\.py:\d+ in dies\)", dead["message"])
    assert dead["exception"].startswith("Traceback (most recent call last):\n")
    assert [line for line in lines if "exception" in line] == [dead], "the traceback comes once"
    assert len([line for line in lines if "for good" in json.dumps(line)]) == 2, "once a failed attempt"


def test_lines_about_what_goes_wrong_are_json_too(app: App, make_redis: Callable[..., PrivateRedis]) -> None:
    """Those of a process that is killed, of a broker that is away, and of workers that are started anew."""
    app.skip_unless_redis()
    server = make_redis()
    app.url = app.env["TASKBRIDGE_APP_URL"] = f"{app.engine}+{server.url}"
    with app.worker("--log-format", "json", "--processes", "2", "--threads", "2") as worker:
        app.send("kills.send()")
        app.wait_for(lambda: "starting it again" in app.err())
        server.shut_down()
        app.wait_for(lambda: "Connection refused" in app.err())
        server.start()
        app.send("last.send()")
        app.wait_for(lambda: app.err().count("the end") == 1)
        worker.send_signal(signal.SIGHUP)
        app.wait_for(lambda: "starting the workers anew" in app.err())
        app.send("last.send()")
        app.wait_for(lambda: app.err().count("the end") == 2)
    lines = app.lines()

    assert set().union(*lines) <= FIELDS
    assert {line["level"] for line in lines} <= {"INFO", "WARNING", "ERROR", "CRITICAL"}
    (ended,) = [line for line in lines if "starting it again" in line["message"]]
    assert (ended["logger"], ended["level"]) == ("taskbridge", "WARNING")
    assert [line for line in lines if "Connection refused" in line["message"]]


def test_an_applications_own_set_up_is_respected(app: App) -> None:
    """Lines about the processes stay as they are: another place or a level may not hide that a worker has died."""
    app.skip_unless_redis()
    (app.folder / "app.py").write_text(OWN + APP)
    with app.worker("--processes", "1", "--log-level", "ERROR", "--log-format", "json"):
        app.run_all()
    about_processes = [json.loads(line) for line in app.err().splitlines() if line.startswith("{")]
    assert {line["logger"] for line in about_processes} <= {"taskbridge", "dramatiq.MainProcess"}
    assert [line["message"] for line in about_processes if line["message"] == "ready"] == ["ready"]
    own = [line for line in app.err().splitlines() if line.startswith("OWN ")]
    engines = {"celery": "OWN celery.apps.worker INFO ", "dramatiq": "OWN dramatiq.worker.Worker INFO "}
    wanted = ("OWN app WARNING two", "OWN taskbridge.worker WARNING task app.second", engines[app.engine])
    for start in wanted:
        assert [line for line in own if line.startswith(start)], f"{start} is not in {app.err()}"
    assert "Traceback" in app.err()


def test_a_file_sets_up_the_log_of_every_process(app: App) -> None:
    app.skip_unless_redis()
    own = {"class": "logging.StreamHandler", "formatter": "own"}
    config = {"version": 1, "formatters": {"own": {"format": "FILE %(name)s %(message)s"}}}
    text = json.dumps({**config, "handlers": {"own": own}, "root": {"level": "INFO", "handlers": ["own"]}})
    (app.folder / "log.json").write_text(text)
    with app.worker("--processes", "1", "--log-config", "log.json"):
        app.send("last.send()")
        app.wait_for(lambda: "FILE app the end" in app.err())
    lines = [line for line in app.err().splitlines() if "imported" not in line and "superuser" not in line]
    assert lines[0].startswith("FILE taskbridge 5 tasks of app on ")
    loggers = {line.split()[1] for line in lines if line.startswith("FILE ")}
    assert loggers >= {"taskbridge", "app"}
    assert any(each.startswith(app.engine) for each in loggers)


@pytest.mark.parametrize("wrong", ["missing.json", "wrong.json", "refused.json"])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "wrong.json").write_text("no")
    (tmp_path / "refused.json").write_text('{"version": 1, "root": {"handlers": ["unknown"]}}')
    app = App(tmp_path, "celery+redis://127.0.0.1:1/0")
    command = [sys.executable, "-m", "taskbridge", "worker", "app", "--url", app.url, "--log-config", wrong]
    done = subprocess.run(command, cwd=tmp_path, env=app.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "setting 'TASKBRIDGE_LOG_CONFIG': " in done.stderr.splitlines()[-1]
    assert wrong in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
