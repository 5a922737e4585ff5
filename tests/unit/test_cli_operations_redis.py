"""`taskbridge running`, `failures`, `messages ls` and `top`, on a real Redis and a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge
from taskbridge.message import Message, new_id
from taskbridge.retry import Dead, Done, ErrorInfo, RunAgain
from taskbridge.runner import Run as RunNow
from taskbridge.runner import Runs
from taskbridge.vitals import Vitals
from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner

LONGEST_S = 60.0
HOSTILE = "shop.\x1b[2Jpay\n\u202e"
SHOP = """
from taskbridge import task

@task(queue="email")
def mail(user: int) -> None: ...
"""


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    made = Bridge(f"celery+{redis_server.url}", namespace=f"ns-{new_id()[:8]}", listing=True, queues=["email"])
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path, bridge: Bridge, redis_server: PrivateRedis) -> Run:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"celery+{redis_server.url}"
    return runner(
        tmp_path, TZ="UTC", TASKBRIDGE_URL=url, TASKBRIDGE_NAMESPACE=bridge.settings.namespace, TASKBRIDGE_LISTING="on"
    )


@pytest.fixture
def vitals(bridge: Bridge) -> Iterator[Vitals]:
    made = Vitals(bridge, name=lambda: "host:7", queues=lambda: ["default", "email"], slots=lambda: 4)
    yield made
    made.stop()


def work(bridge: Bridge, vitals: Vitals) -> None:
    """Tell the store until the test ends what a worker would that runs one message, and has run some."""
    message = Message(id="m1", task=HOSTILE, queue="email", args_json="[]", kwargs_json="{}", enqueued_at=time.time())
    bridge.cancellations.runs = runs = Runs()
    runs.all = lambda: [RunNow(message, None, time.monotonic() - 3, time.monotonic())]  # type: ignore[method-assign]
    error = ErrorInfo(type="ValueError", message=f"{HOSTILE} " + "x" * 500)
    vitals.start()
    vitals._ended.extend([("shop.mail", "m2", Done, None)] * 5)
    vitals._ended.extend([(HOSTILE, "m3", Dead, error)] * 10 + [(HOSTILE, "m3", RunAgain, error)] * 3)
    vitals.tell(at_once=True)


def test_what_runs_and_failed_is_shown_escaped(run: Run, bridge: Bridge, vitals: Vitals) -> None:
    assert run("running").stdout == "nothing runs\n"
    assert run("failures").stdout == "no failures\n"
    work(bridge, vitals)

    shown = run("running").stdout
    assert re.search(r"^task +id +queue +attempt +since +worker\n", shown)
    assert "shop.\\x1b[2Jpay\\n\\u202e  m1  email  1 " in shown
    assert shown.count("\n") == 2
    data: Any = json.loads(run("running", "--json").stdout)
    assert [(each["task"], each["id"], each["worker"]) for each in data] == [(HOSTILE, "m1", "host:7")]

    shown = run("failures").stdout
    assert shown.count("\n") == 2
    assert "  13     10    shop.\\x1b[2Jpay\\n\\u202e  ValueError: shop.\\x1b[2Jpay" in shown
    [failure] = json.loads(run("failures", "--json").stdout)
    assert (failure["count"], failure["is_dead_count"], failure["last_id"]) == (13, 10, "m3")


def test_messages_are_listed_filtered_and_page_by_page(run: Run, bridge: Bridge) -> None:
    mail = bridge.task(name="shop.mail", queue="email")(_nothing)
    ids = [mail.send(number).id for number in range(7)]
    late = mail.schedule(3600, 8).id
    deadline = time.monotonic() + LONGEST_S
    while len(bridge.operations.messages().items) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    data: Any = json.loads(run("messages", "ls", "--state", "queued", "--task", "shop.*", "--json").stdout)
    assert [each["id"] for each in data["messages"]] == ids[::-1]
    assert data["cursor"] == ""
    assert "sent" not in data["messages"][0]
    shown = run("messages", "ls", "shop", "--most", "5", "--queue", "email").stdout
    assert shown.startswith("id ")
    assert late in shown.splitlines()[1]
    found = re.search(r"more with --cursor '(.*)'", shown)
    assert found is not None
    rest = run("messages", "ls", "--cursor", found[1]).stdout.splitlines()[1:]
    assert [line.partition(" ")[0] for line in rest] == ids[2::-1]
    assert run("messages", "ls", "--queue", "default").stdout == "no such messages\n"
    refused = run("messages", "ls", TASKBRIDGE_LISTING="off")
    assert (refused.returncode, "listing=True" in refused.stderr) == (2, True)


def _nothing(number: int) -> None:
    """Stand for a task that a worker runs."""


def test_top_is_readable_at_80_columns_and_ends_with_ctrl_c(
    run: Run, bridge: Bridge, vitals: Vitals, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    work(bridge, vitals)
    bridge.task(name="shop.mail", queue="email")(_nothing).send(1)
    once = run("top", "shop", "--once", COLUMNS="80", LINES="24").stdout
    assert "\x1b" not in once

    env = {
        **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
        "TASKBRIDGE_URL": f"celery+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": bridge.settings.namespace,
        "TASKBRIDGE_LISTING": "on",
        "TERM": "xterm",
    }
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "taskbridge", "top", "shop"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=child, stderr=child, env=env) as process:
        os.close(child)
        written = _read_until(parent, 3)
        process.send_signal(signal.SIGINT)
        written += _read_until(parent, None)
        assert process.wait(LONGEST_S) == 0
    os.close(parent)
    assert written.startswith("\x1b[?1049h")
    assert written.endswith("\x1b[?25h\x1b[?1049l")
    screens = written.split("\x1b[H")[1:]
    assert len(screens) >= 3
    for text in (once, *(re.sub(r"\x1b\[(K|\d+m|J|\?\d+[hl])", "", each).replace("\r", "") for each in screens[:3])):
        lines = text.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert "1 process, 1 of 4 slots busy" in lines[0]
        assert re.search(r"^email +celery +1 +1 +\d+ s", text, re.MULTILINE)
        assert "shop.\\x1b[2Jpay\\n\\u202e  m1" in text
        assert "13 x shop.\\x1b[2Jpay" in text
        assert re.search(r"^done +\|.*\| 5$", text, re.MULTILINE)
        assert "! 10 messages died in the last hour" in text


def _read_until(place: int, screens: int | None) -> str:
    """Return what is written there, until so many screens are whole; None is until the end."""
    written, deadline = b"", time.monotonic() + LONGEST_S
    while screens is None or written.count(b"\x1b[J") < screens:
        assert time.monotonic() < deadline, written
        if select.select([place], [], [], 1.0)[0]:
            try:
                part = os.read(place, 4096)
            except OSError:  # Linux says so at the end
                break
            written += part
    return written.decode()


def test_top_says_that_the_broker_is_away(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    run = runner(tmp_path, TASKBRIDGE_URL="celery+redis://127.0.0.1:1/0", TASKBRIDGE_SEND_TIMEOUT="0.2")
    done = run("top", "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert "127.0.0.1:1" in done.stderr
