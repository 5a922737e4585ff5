"""`taskbridge schedules` and `taskbridge scheduler`, with a Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge
from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner

SHOP = """
from datetime import timedelta
from taskbridge import default_bridge, task

@task(name="report", cron="30 2 * * *", timezone="Europe/Rome")
def report(region: str = "all") -> None: ...

default_bridge().periodic(report.call("eu"), every=timedelta(seconds=1), name="often")
"""


@pytest.fixture
def run(tmp_path: Path, redis_server: PrivateRedis, request: pytest.FixtureRequest) -> Run:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"celery+{redis_server.url}"
    return runner(tmp_path, TASKBRIDGE_URL=url, TASKBRIDGE_NAMESPACE=f"cli{tmp_path.name[-20:].replace('-', '_')}")


def test_the_next_runs_are_shown_in_the_schedules_zone_and_in_utc(run: Run) -> None:
    shown = run("schedules", "shop", "--runs", "2")
    found: Any = json.loads(run("schedules", "shop", "--json", "--runs", "2").stdout)

    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["schedule", "task", "when", "next", "run", "in", "UTC", "state", "missed"]
    assert re.search(
        r"^report +report  30 2 \* \* \* \(Europe/Rome\)  \w{3} \S+ \S+ \+0[12]00  \S+ \S+Z  active +0$", lines[3]
    )
    assert len(lines) == 5
    names = [entry["name"] for entry in found]
    assert names == ["often", "report"]
    often, report = found
    assert (often["every_s"], often["cron"], report["cron"], report["timezone"]) == (
        1,
        None,
        "30 2 * * *",
        "Europe/Rome",
    )
    for entry in found:
        for each in entry["next_runs"]:
            assert datetime.fromisoformat(each["local"]) == datetime.fromisoformat(each["utc"].replace("Z", "+00:00"))


def test_a_schedule_is_paused_until_it_is_resumed(run: Run) -> None:
    assert run("schedules", "pause", "often", "--app", "shop").stdout == "schedule often is paused\n"
    assert {entry["name"]: entry["paused"] for entry in json.loads(run("schedules", "shop", "--json").stdout)} == {
        "often": True,
        "report": False,
    }
    resumed = run("schedules", "resume", "often", "--json", TASKBRIDGE_APP="shop")
    assert json.loads(resumed.stdout)["paused"] is False


def test_a_schedule_is_added_changed_disabled_and_removed(run: Run) -> None:
    options = ("--args", '["eu"]', "--priority", "high", "--catch-up", "all", "--app", "shop")
    added = run("schedules", "add", "report 7", "report", "--cron", "0 8 * * *", "--timezone", "Asia/Tokyo", *options)
    assert added.stdout == "schedule report 7 is active\n"
    [found] = [each for each in json.loads(run("schedules", "shop", "--json").stdout) if each["source"] == "store"]
    assert (found["name"], found["task"], found["cron"], found["timezone"], found["catch_up"]) == (
        *("report 7", "report", "0 8 * * *"),
        *("Asia/Tokyo", "all"),
    )
    changed = run("schedules", "add", "report 7", "report", "--every", "60", "--app", "shop", "--json")
    assert json.loads(changed.stdout)["every_s"] == 60
    assert run("schedules", "disable", "report 7", "--app", "shop").stdout == "schedule report 7 is paused\n"
    assert run("schedules", "enable", "report 7", "--app", "shop").stdout == "schedule report 7 is active\n"
    assert run("schedules", "remove", "report 7", "--app", "shop").stdout == "schedule report 7 is removed\n"
    assert "report 7" not in run("schedules", "shop").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["schedules", "pause", "oftn", "--app", "shop"], "there is no schedule 'oftn'; did you mean 'often'"),
        (["schedules", "pause", "often"], "which MODULE declares the tasks?"),
        (["schedules", "pause", "--app", "shop"], "write `schedules MODULE`"),
        (["schedules", "shop", "--url", "inline://"], "keeps its messages in the process that sends them"),
        (["scheduler", "shop", "--url", "inline://"], "keeps its messages in the process that sends them"),
        (["scheduler", "json"], "'json' declares no task"),
        (["schedules", "add", "new", "--app", "shop"], "write `schedules MODULE`"),
        (
            ["schedules", "add", "new", "reprt", "--every", "5", "--app", "shop"],
            "no task 'reprt'; did you mean 'report'",
        ),
        (["schedules", "add", "new", "report", "--app", "shop"], "'new' needs cron or every"),
        (["schedules", "add", "new", "report", "--cron", "61 * * * *", "--app", "shop"], "Bad minute"),
        (["schedules", "add", "often", "report", "--every", "5", "--app", "shop"], "is in the code"),
        (["schedules", "add", "new", "report", "--every", "5", "--args", "{}", "--app", "shop"], "a JSON list"),
        (["schedules", "add", "new", "report", "--every", "5", "--args", "[1, 2]", "--app", "shop"], "too many"),
        (["schedules", "add", "new", "report", "--every", "5", "--kwargs", "eu", "--app", "shop"], "must be JSON"),
        (
            ["schedules", "add", "new", "report", "--every", "5", "--queue", "q", "--app", "shop"],
            "queue 'q' is not known",
        ),
        (["schedules", "shop", "--every", "5"], "--every has an effect only with add"),
        (["schedules", "remove", "often", "--app", "shop"], "is in the code: remove it there, or pause it"),
        (["schedules", "remove", "new", "--app", "shop"], "there is no schedule 'new'"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_exit_code_2(run: Run, arguments: list[str], says: str) -> None:
    done = run(*arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_schedules_without_a_store_are_an_error_that_says_what_would_help(run: Run) -> None:
    pytest.importorskip("pika")
    for command in ("scheduler", "schedules", "worker"):
        done = run(command, "shop", "--url", "celery+amqp://127.0.0.1:1//")
        assert done.returncode == 2
        assert "set store (TASKBRIDGE_STORE)" in done.stderr
    checked = run("check", "shop", TASKBRIDGE_URL="celery+amqp://127.0.0.1:1//")
    assert re.search(r"^schedules error +.*set store", checked.stdout, re.MULTILINE)


def test_check_names_the_schedules_and_not_their_arguments(run: Run) -> None:
    setting = json.dumps({"nightly": {"task": "report", "every": 60, "args": ["secret"]}})

    checked = run("check", "shop", TASKBRIDGE_SCHEDULES=setting)

    assert re.search(r"^schedules ok +3: nightly, often, report$", checked.stdout, re.MULTILINE)
    assert "secret" not in checked.stdout + checked.stderr


def test_a_scheduler_sends_and_runs_nothing_and_ends_when_it_is_told(
    run: Run, tmp_path: Path, redis_server: PrivateRedis
) -> None:
    namespace = f"clialone-{time.time_ns()}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    settings = {"TASKBRIDGE_URL": f"celery+{redis_server.url}", "TASKBRIDGE_NAMESPACE": namespace}
    command = [sys.executable, "-m", "taskbridge", "scheduler", "shop"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**env, **settings}, stderr=subprocess.PIPE, text=True)
    bridge = Bridge(settings["TASKBRIDGE_URL"], namespace=namespace)
    try:
        deadline = time.monotonic() + 90
        while bridge.counts().waiting["default"] < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, written = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0
    assert bridge.counts().waiting["default"] >= 3
    bridge.close()
    assert "sending by 2 schedules of shop" in written
    assert "eu" not in written.replace("Europe", "").split()
