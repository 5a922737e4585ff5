"""`taskbridge running`, `failures`, `messages ls` and `top`, on a real Redis and in a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge
from taskbridge.cli.output import columns
from taskbridge.logs import escaped
from taskbridge.message import Message, new_id
from taskbridge.retry import Dead, Done, ErrorInfo, RunAgain
from taskbridge.runner import Run as RunNow
from taskbridge.runner import Runs
from taskbridge.vitals import Vitals
from tests.conftest import is_ci
from tests.servers import PrivateRedis, ServerNotInstalled
from tests.unit.command_line import Run, runner
from tests.unit.terminals import Terminal

LONGEST_S = 60.0
WIDE = "\u4f1a\u8a08" * 20  # two columns each
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


def work(bridge: Bridge, vitals: Vitals, tasks: Sequence[str] = (HOSTILE,)) -> None:
    """Tell the store until the test ends what a worker would that runs messages of tasks, and has run some."""
    messages = [
        Message(id="m1", task=each, queue="email", args_json="[]", kwargs_json="{}", enqueued_at=time.time())
        for each in tasks
    ]
    bridge.cancellations.runs = runs = Runs()
    runs.all = lambda: [  # type: ignore[method-assign]
        RunNow(each, None, time.monotonic() - 3 + number, time.monotonic()) for number, each in enumerate(messages)
    ]
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


@pytest.fixture
def terminal(tmp_path: Path, bridge: Bridge, redis_server: PrivateRedis) -> Iterator[Terminal]:
    (tmp_path / "shop.py").write_text(SHOP)
    command = tmp_path / "taskbridge"
    command.write_text(f'#!/bin/sh\necho $$ > pid\nexec {sys.executable} -m taskbridge "$@"\n')
    command.chmod(0o755)
    of_others = ("TASKBRIDGE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TMUX")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(of_others)},
        "TASKBRIDGE_URL": f"celery+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": bridge.settings.namespace,
        "TASKBRIDGE_LISTING": "on",
    }
    try:
        made = Terminal(env=env, cwd=tmp_path)
    except ServerNotInstalled as exc:
        if is_ci():
            raise
        pytest.skip(str(exc))
    yield made
    made.close()


def check_screen(lines: Sequence[str]) -> None:
    """Check what `top` shows of what `work` tells."""
    text = "\n".join(lines)
    assert len(lines) <= 24
    assert "1 process, 2 of 4 slots busy" in lines[0]
    assert "shop.\\x1b[2Jpay\\n\\u202e  m1" in text
    assert f"{WIDE}  m1" not in text
    assert "13 x shop.\\x1b[2Jpay" in text
    assert re.search(r"^done +\|.*\| 5$", text, re.MULTILINE)
    assert "! 10 messages died in the last hour" in text


def test_top_prints_one_screen_where_there_is_no_terminal(run: Run, bridge: Bridge, vitals: Vitals) -> None:
    work(bridge, vitals, (HOSTILE, WIDE))
    bridge.task(name="shop.mail", queue="email")(_nothing).send(1)

    for more in ((), ("--once",)):
        shown = run("top", "shop", *more, COLUMNS="80", LINES="24").stdout
        assert "\x1b" not in shown
        check_screen(shown.splitlines())
        assert max(map(columns, shown.splitlines())) == 80
        assert re.search(r"^email +celery +1 +2 +\d+ s", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "end"), [("", "q"), ("", "C-c"), ("", "SIGTERM"), (" < /dev/null", "C-c"), (" <&-", "C-c")]
)
def test_top_redraws_its_screen_and_leaves_the_terminal_as_it_was(
    given: str, end: str, terminal: Terminal, bridge: Bridge, vitals: Vitals, tmp_path: Path
) -> None:
    work(bridge, vitals, (HOSTILE, WIDE))
    mail = bridge.task(name="shop.mail", queue="email")(_nothing)
    before = terminal.modes()
    line = f"./taskbridge top shop{given}; echo it ended with $?"
    terminal.enter(line)

    for waiting in (1, 2, 3):
        mail.send(waiting)
        terminal.wait_for(rf"email +celery +{waiting} +2 +\d+ s")
        lines = terminal.lines()
        check_screen(lines)
        assert max(map(columns, lines)) <= 80, "a line is wrapped"
        flags, keyboard = terminal.modes()
        assert (flags, " -echo " in keyboard) == ("100", not given)
        if waiting < 3 and not given:
            terminal.press("x")  # which means nothing
    if end == "SIGTERM":
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    else:
        terminal.press(end)

    terminal.until(terminal.has_prompt)
    assert terminal.modes() == before
    assert terminal.lines() == [f"$ {line}", "it ended with 0", "$"]


def test_top_gives_the_terminal_back_while_it_is_suspended(terminal: Terminal, bridge: Bridge, vitals: Vitals) -> None:
    work(bridge, vitals, (HOSTILE, WIDE))
    before = terminal.modes()
    terminal.enter("./taskbridge top shop")
    for _ in range(2):
        terminal.wait_for(".* slots busy")
        assert terminal.modes()[0] == "100"
        terminal.press("C-z")
        terminal.until(terminal.has_prompt)
        assert terminal.modes() == before
        terminal.enter("clear; fg")
    terminal.wait_for(".* slots busy")
    terminal.press("q")
    terminal.until(terminal.has_prompt)
    assert terminal.modes() == before


def test_what_is_too_wide_for_a_terminal_is_a_list_there(terminal: Terminal, bridge: Bridge, vitals: Vitals) -> None:
    work(bridge, vitals, (HOSTILE, WIDE))
    name = "mail." * 20
    long = bridge.task(name=name, queue="email")(_nothing).send(1)
    terminal.until(lambda: bridge.operations.messages().items)
    error = escaped(f"ValueError: {HOSTILE} {'x' * 500}"[:100])
    expected = {
        "running": [
            "task        shop.\\x1b[2Jpay\\n\\u202e",
            "id          m1",
            f"task        {WIDE[:34]}",
            f"{'':12}{WIDE[34:]}",
            "id          m1",
        ],
        "failures": ["count       13", f"error       {error[:68]}", f"{'':12}{error[68:]}", "last id     m3"],
        "messages ls": [f"id             {long.id}", f"task           {name[:65]}", f"{'':15}{name[65:]}"],
    }
    for command, rows in expected.items():
        terminal.enter(f"clear; ./taskbridge {command}; echo {command} ended with $?")
        terminal.wait_for(f"{command} ended with 0")
        lines = terminal.lines()
        assert max(map(columns, lines)) <= 80, "a line is wrapped"
        assert [line for line in lines if line in rows] == rows


def test_top_says_that_the_broker_is_away(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    run = runner(tmp_path, TASKBRIDGE_URL="celery+redis://127.0.0.1:1/0", TASKBRIDGE_SEND_TIMEOUT="0.2")
    done = run("top", "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert "127.0.0.1:1" in done.stderr
