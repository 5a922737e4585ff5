"""Runs a suite in processes of its own, against private servers, and tells how each test ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from taskbridge.contract import leftovers
from tests.peers_suites.sources import INSIDE
from tests.peers_suites.suites import Suite
from tests.servers import PrivateRabbitMQ, PrivateRedis

_TEST_S: Final = 60
"""How long one test may take, but for those that name a time of their own."""

_NOWHERE: Final = 1
"""A port at which nothing listens."""

Ending = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a test ended; `why` is the first line of its error, or why it was skipped."""

    ending: Ending
    why: str = ""


@contextmanager
def servers(folder: Path, *, with_rabbitmq: bool) -> Generator[dict[str, str]]:
    """Start a Redis, and perhaps a RabbitMQ; yield the variables that send a suite's processes there."""
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis())
        ports, path = {6379: redis.port, 5672: _NOWHERE}, os.environ["PATH"]
        if with_rabbitmq:
            rabbitmq = stack.enter_context(PrivateRabbitMQ())
            ports[5672] = rabbitmq.port
            programs = folder / "bin"
            programs.mkdir(exist_ok=True)
            _write_rabbitmqctl(programs / "rabbitmqctl", rabbitmq)
            path = f"{programs}:{path}"
        yield {"PEERS_PORTS": ",".join(f"{usual}:{private}" for usual, private in ports.items()), "PATH": path}


def _write_rabbitmqctl(place: Path, rabbitmq: PrivateRabbitMQ) -> None:
    """Write a program that speaks to the private node, for tests that stop it and start it again."""
    how = rabbitmq._how([rabbitmq._program("rabbitmqctl"), "--node", rabbitmq.node])
    words = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in how["env"].items() if os.environ.get(name) != value
    )
    place.write_text(f'#!/bin/sh\nexec env {words} {shlex.join(how["args"])} "$@"\n')
    place.chmod(0o755)


def run(
    suite: Suite,
    sources: Path,
    python: Path,
    *,
    on_taskbridge: bool,
    variables: Mapping[str, str],
    log: Path,
    more: Sequence[str] = (),
) -> dict[str, Outcome]:
    """Run a suite, and return how each of its tests ended, by class and name.

    Args:
        suite: Which.
        sources: The folder of its sources.
        python: The interpreter.
        on_taskbridge: Whether on taskbridge's classes; else as it is.
        variables: What `servers` says.
        log: Where what pytest prints is kept.
        more: Further options for pytest.
    """
    report = log.with_suffix(".xml")
    command = [
        *(str(python), "-m", "pytest", "-c", str(INSIDE / "pytest.ini"), "--rootdir", str(sources)),
        *("--timeout", str(_TEST_S), "--session-timeout", str(suite.limit_s), "--junitxml", str(report)),
        *("-p", suite.plugin),
        *suite.chosen,
        *more,
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASKBRIDGE_", "CELERY_"))}
    paths = {"PYTHONPATH": f"{INSIDE}:{sources}", "PYTHONDONTWRITEBYTECODE": "1"}
    choice = {"PEERS_ON_TASKBRIDGE": "1"} if on_taskbridge else {}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=sources,
            env={**inherited, **paths, **suite.variables, **variables, **choice},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        leftovers.end_group(process.pid)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(suite.limit_s + 2 * _TEST_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return outcomes(report) if report.exists() else {}


def outcomes(report: Path) -> dict[str, Outcome]:
    """Return how the tests in a report of pytest's ended."""
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        found[name] = _outcome(case)
    return found


def _outcome(case: ElementTree.Element) -> Outcome:
    for tag, ending in _TAGS.items():
        element = case.find(tag)
        if element is not None:
            message = (element.get("message") or "").strip()
            return Outcome(ending=ending, why=message.splitlines()[0] if message else "")
    return Outcome(ending="passed")


_TAGS: Final[Mapping[str, Ending]] = {"failure": "failed", "error": "failed", "skipped": "skipped"}
