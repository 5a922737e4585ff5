"""The workers and clients that the page on workers shows, run as it shows them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.pages import blocks_of
from tests.examples.conftest import START_TIMEOUT_S, Start, run, wait_until

PAGE = "docs/guide/workers.md"

TASKS = """
import os
from taskbridge import current, task

@task
def add(a: int, b: int) -> None:
    run = current()
    with open(os.environ["SEEN"], "a", encoding="utf-8") as seen:
        seen.write(f"{a} + {b}, attempt {run.attempt}, queue {run.queue}, priority {run.priority}\\n")
    if a == 5 and run.attempt == 1:
        raise ValueError("once")

@task(queue="email")
def other() -> None: ...
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A folder with the application and the files that the page shows."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "tasks.py").write_text(TASKS, encoding="utf-8")
    for block in blocks_of(PAGE):
        named = re.match(r"# ([\w/]+\.py)\n", block.text)
        if block.info == "python" and named is not None:
            (tmp_path / named[1]).write_text(block.text + "\n", encoding="utf-8")
    return tmp_path


def command_of(engine: str) -> list[str]:
    """Return the command line of an engine's own worker that the page shows."""
    lines = [line for block in blocks_of(PAGE) if block.info == "shell" for line in block.text.splitlines()]
    (found,) = [line for line in lines if line.startswith(f"{engine} ")]
    return shlex.split(found)


@pytest.mark.parametrize("server", ["redis_server", "rabbitmq_server"])
@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_stock_worker_runs_what_taskbridge_and_a_plain_client_send(
    engine: str, server: str, application: Path, start: Start, request: pytest.FixtureRequest
) -> None:
    broker_url = request.getfixturevalue(server).url
    seen = application / "seen"
    seen.touch()
    variables = {"TASKBRIDGE_URL": f"{engine}+{broker_url}", "BROKER_URL": broker_url, "SEEN": str(seen)}
    worker = start(*command_of(engine), cwd=application, env=variables)

    sending = "import shop.tasks; shop.tasks.add.send(5, 5); shop.tasks.add.using(queue='email').schedule(1, 3, 4)"
    run(sys.executable, "-c", sending, cwd=application, env=variables)
    run(sys.executable, f"{engine}_client.py", cwd=application, env=variables)
    wait_until(
        lambda: len(seen.read_text(encoding="utf-8").splitlines()) >= 4,
        what="four runs",
        timeout_s=START_TIMEOUT_S,
        processes=[worker],
    )

    assert sorted(seen.read_text(encoding="utf-8").splitlines()) == [
        "1 + 2, attempt 1, queue default, priority normal",
        "3 + 4, attempt 1, queue email, priority normal",
        "5 + 5, attempt 1, queue default, priority normal",
        "5 + 5, attempt 2, queue default, priority normal",
    ]
    if engine == "celery":
        inspect = ("celery", "-A", "shop.celery", "inspect", "-t", "5", "registered")
        wait_until(  # a busy worker may answer too late, of which the exit code 69 tells
            lambda: "* shop.tasks.add" in run(*inspect, cwd=application, env=variables, codes=(0, 69)),
            what="the answer of the worker",
            timeout_s=START_TIMEOUT_S,
            processes=[worker],
        )
    assert worker.stop() == 0
