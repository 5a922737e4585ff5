"""`taskbridge web`: where it listens, whom it answers, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.servers import PrivateRedis
from tests.unit.command_line import runner

LONGEST_S: float = 60


@contextmanager
def served(server: PrivateRedis, *words: str) -> Generator[tuple[subprocess.Popen[str], str, str]]:
    """Run `taskbridge web`; yields the process, the page's address, and what was said before that."""
    command = [sys.executable, "-m", "taskbridge", "web", "--url", f"celery+{server.url}", "--port", "0", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        try:
            while not (found := re.search(r" on (http://\S+:\d+)/\n", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield process, found[1], said
        finally:
            process.kill()


def answered(address: str, **headers: str) -> int:
    connection = HTTPConnection(address.removeprefix("http://"), timeout=LONGEST_S)
    with closing(connection):
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_it_answers_at_once_on_the_host_that_is_named_and_to_no_foreign_name(
    redis_server: PrivateRedis, host: str
) -> None:
    with served(redis_server, "--host", host) as (_, address, said):
        assert answered(address) == 200
        assert answered(address, Host="evil.example") == 400
    assert "everybody" not in said


@pytest.mark.parametrize(
    ("words", "can"), [((), "reads all arguments: "), (("--allow-acts",), "reads all arguments, and can replay, ")]
)
def test_on_another_host_it_says_that_everybody_may_look(
    redis_server: PrivateRedis, words: tuple[str, ...], can: str
) -> None:
    with served(redis_server, "--host", "0.0.0.0", *words) as (_, _, said):
        assert f"everybody who reaches 0.0.0.0 {can}" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_soon_as_it_serves(redis_server: PrivateRedis, number: signal.Signals) -> None:
    with served(redis_server) as (process, _, _):
        process.send_signal(number)
        assert process.wait(LONGEST_S) == 0


def test_where_it_cannot_listen_is_one_line(redis_server: PrivateRedis, tmp_path: Path) -> None:
    run = runner(tmp_path, TASKBRIDGE_URL=f"celery+{redis_server.url}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("web", "--port", str(port))
    assert done.stderr.startswith(f"taskbridge: web: can't listen on 127.0.0.1, port {port}: Address already in use")
    assert (done.stderr.count("\n"), done.returncode) == (1, 2)
    wrong = run("web", "--port", "70000")
    assert "it must be a number from 0 to 65535, not '70000'" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
