"""The tutorial, done as a reader would: its files are written to a folder, and its commands run there."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from taskbridge.contract.ports import free_port
from tests.docs.pages import blocks_of
from tests.examples.conftest import START_TIMEOUT_S, Process, Start, run, wait_until
from tests.servers import PrivateRedis

PAGE: Final = "docs/tutorial.md"
FIRST_LINE: Final = re.compile(r"# ((?:shop|tests)/\w+\.py)\n")


def commands() -> list[str]:
    """Return the lines of all blocks that are for a shell."""
    return [line for block in blocks_of(PAGE) if block.info == "shell" for line in block.text.splitlines()]


def shown(start: str, **words: str) -> list[str]:
    """Return the arguments of the page's first command that begins like this, with words such as MESSAGE replaced."""
    line = next(each for each in commands() if each.startswith(start))
    return [words.get(word, word) for word in shlex.split(line)]


def url_of(engine: str, server: PrivateRedis) -> str:
    """Return the URL that the page exports for an engine, with the server's in the place of the page's."""
    [line] = {each for each in commands() if each.startswith(f"export TASKBRIDGE_URL={engine}+")}
    shown_url = line.partition("=")[2]
    assert shown_url == f"{engine}+redis://localhost:6379/0"
    return f"{engine}+{server.url}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reader's folder, with the page's files."""
    folder = tmp_path / "shop-tutorial"
    for name in ("shop", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "shop" / "__init__.py").touch()
    for block in blocks_of(PAGE):
        if found := FIRST_LINE.match(block.text):
            (folder / found[1]).write_text(f"{block.text}\n", encoding="utf-8")
    return folder


class Web:
    """The web application, run by a command of the page."""

    def __init__(self, start: Start, folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> None:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        self.process: Process = start(*command, "--port", str(port), cwd=folder, env=variables)
        wait_until(lambda: _is_up(port), what="the shop", timeout_s=START_TIMEOUT_S, processes=[self.process])

    def order(self, path: str) -> tuple[str, str]:
        """Order something, and return the ids of the order and of its message."""
        with urllib.request.urlopen(urllib.request.Request(f"{self._base}{path}", method="POST"), timeout=20) as answer:
            found = json.load(answer)
        return found["order"], found["message"]

    def history(self, order: str) -> list[str]:
        with urllib.request.urlopen(f"{self._base}/orders/{order}", timeout=20) as answer:
            found: list[str] = json.load(answer)
        return found

    def wait_for(self, order: str, history: list[str], *workers: Process) -> None:
        wait_until(
            lambda: self.history(order) == history,
            what=f"{history} of the order",
            timeout_s=START_TIMEOUT_S,
            processes=[self.process, *workers],
        )


def _is_up(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def paths() -> list[str]:
    """Return where the page's orders are sent to, such as `/orders?cents=1999`."""
    return [found[1] for found in (re.search(r"POST 'localhost:5000(\S+)'", each) for each in commands()) if found]


def test_its_tests_pass(folder: Path) -> None:
    [command] = [line for line in commands() if line.startswith("python -m pytest")]

    is_installed = any(point.value == "taskbridge.testing.plugin" for point in entry_points(group="pytest11"))
    plugin = () if is_installed else ("-p", "taskbridge.testing.plugin")

    printed = run(sys.executable, *shlex.split(command)[1:], "-p", "no:cacheprovider", *plugin, cwd=folder, env={})

    assert "3 passed" in printed


def test_an_order_is_paid_and_reminded_of_without_a_server(folder: Path, start: Start) -> None:
    url, *command = shown("TASKBRIDGE_URL=inline://")
    variables = {"TASKBRIDGE_URL": url.partition("=")[2], "SHOP_REMIND_AFTER": "1"}
    web = Web(start, folder, command, variables)

    order, _ = web.order(paths()[0])

    web.wait_for(order, ["ordered", "paid", "reminded"])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("celery", "dramatiq"), ("dramatiq", "celery")])
def test_the_shop_changes_its_engine_and_loses_nothing(
    before: str, after: str, redis_server: PrivateRedis, folder: Path, start: Start
) -> None:
    usual, refused = paths()
    variables = {
        "TASKBRIDGE_NAMESPACE": f"tutorial-{uuid4().hex[:8]}",
        "TASKBRIDGE_URL": url_of(before, redis_server),
        "SHOP_REMIND_AFTER": "25",
    }

    def terminal(begin: str, *more: str, **words: str) -> str:
        return run(*shown(begin, **words), *more, cwd=folder, env=variables)

    terminal("taskbridge check")
    worker = start(*shown("taskbridge worker"), cwd=folder, env=variables)
    web = Web(start, folder, shown("flask"), variables)
    dead, _ = web.order(refused)
    wait_until(lambda: "gave_up" in terminal("taskbridge dead list"), what="a dead letter", timeout_s=START_TIMEOUT_S)
    order, message = web.order(usual)
    web.wait_for(order, ["ordered", "paid"], worker)
    assert worker.stop() == 0  # at once, for the reminder is to come from the other engine
    assert web.history(order) == ["ordered", "paid"]
    [queues] = [block.text for block in blocks_of(PAGE) if block.info == "text"]
    wait_until(
        lambda: terminal("taskbridge queues").strip() == queues.replace("dead 0", "dead 1"),
        what="what the page says of the queues",
        timeout_s=START_TIMEOUT_S,
    )
    status: dict[str, Any] = json.loads(terminal("taskbridge status", "--json", MESSAGE=message))
    assert (status["state"], [attempt["number"] for attempt in status["attempts"]]) == ("done", [1, 2])
    assert "shop.tasks.report" in terminal("taskbridge schedules")

    [limit] = [each.partition("=")[2] for each in commands() if each.startswith("export SHOP_CARD_LIMIT=")]
    variables |= {"TASKBRIDGE_URL": url_of(after, redis_server), "SHOP_CARD_LIMIT": limit, "SHOP_REMIND_AFTER": "1"}
    worker = start(*shown("taskbridge worker"), cwd=folder, env=variables)
    terminal("taskbridge dead replay")

    web.wait_for(order, ["ordered", "paid", "reminded"], worker)
    web.wait_for(dead, ["ordered", "paid", "reminded"], worker)
    assert worker.stop() == 0
