"""`taskbridge worker` keeps its workers running, and ends them when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from taskbridge.contract.workers import is_gone

# A supervisor of its own process, as the command line has it; argv: commands, grace, slack, processes.
DRIVER = """
import json, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
from taskbridge.cli import supervisor
from taskbridge.cli.output import say
from taskbridge.engines.base import Command

commands, grace_s, slack_s, processes, watched = map(json.loads, sys.argv[1:])
supervisor.SLACK_S = slack_s
made = [Command(argv=(sys.executable, "-c", *argv)) for argv in commands]
given = {"env": {"EXTRA": "yes"}, "processes": processes, "grace_s": grace_s, "say": say, "watched": watched}
sys.exit(supervisor.Supervisor(commands=made, **given).run())
"""

# What the workers are: each tells that it is ready, and that it was told to end.
READY = """
import os, signal, subprocess, sys, time
def write(text):
    with open(sys.argv[1], "a") as file:
        file.write(text + "\\n")
def be_ready():
    with open(os.environ["TASKBRIDGE_APP_READY"], "w") as fifo:
        fifo.write(f"{os.getpid()}\\n")
def end(number, frame):
    write(f"end {os.getpid()}")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
write(f"start {os.getpid()}")
"""
GOOD = READY + "be_ready()\nwhile True: time.sleep(0.05)"
DEAF = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nbe_ready()\nwhile True: time.sleep(0.05)"
SLOW_TO_END = (
    READY
    + """
def slowly(number, frame):
    time.sleep(0.5)
    end(number, frame)
signal.signal(signal.SIGTERM, slowly)
be_ready()
while True: time.sleep(0.05)
"""
)
BROKEN_AFTER_ANOTHER_STARTED = (
    READY
    + """
deadline = time.monotonic() + 8
while open(sys.argv[1]).read().count("start") < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
print("no such setting", file=sys.stderr)
sys.exit(3)
"""
)
PARENT = (
    READY
    + """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
write(f"child {child.pid}")
be_ready()
while True: time.sleep(0.05)
"""
)


RETIRING = (
    READY
    + """
def retire():
    with open(os.environ["TASKBRIDGE_APP_READY"], "w") as fifo:
        fifo.write(f"-{os.getpid()}\\n")
be_ready()
if open(sys.argv[1]).read().count("start") <= int(os.environ.get("RETIRING", "1")):
    retire()
    while not os.path.exists(sys.argv[1] + ".gate"): time.sleep(0.02)
    write(f"retired {os.getpid()}")
    sys.exit(0)
while True: time.sleep(0.05)
"""
)


class Run:
    """A supervisor in a process of its own, and what its workers wrote."""

    def __init__(
        self,
        folder: Path,
        *workers: str,
        grace_s: float = 1,
        slack_s: float = 30,
        processes: int = 1,
        watched: Sequence[Path] = (),
    ) -> None:
        self.log = folder / "log"
        self.stderr = folder / "stderr"
        self.log.touch()
        commands = [[worker, str(self.log)] for worker in workers]
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", DRIVER),
                    *map(json.dumps, (commands, grace_s, slack_s, processes, [str(each) for each in watched])),
                ],
                stderr=stderr,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.stderr.read_text()

    def wrote(self, word: str) -> list[int]:
        """Return the process ids on the workers' lines that begin with a word."""
        return [int(pid) for pid in re.findall(rf"^{word} (\d+)$", self.log.read_text(), re.MULTILINE)]

    def wait_for(self, condition: Callable[[], object], *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not in time; workers: {self.log.read_text()}; said: {self.said()}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def exit_code(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(*workers: str, **options: Any) -> Run:
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        run = Run(folder, *workers, **options)
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.process.kill()
        run.process.wait()
        for pid in [*run.wrote("start"), *run.wrote("child")]:
            if not is_gone(pid):
                with suppress(ProcessLookupError):  # it may end at any time: its supervisor has
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers_and_the_exit_code_is_0(start: Callable[..., Run], number: int) -> None:
    run = start(GOOD, SLOW_TO_END, processes=2)
    run.wait_for(lambda: "taskbridge: ready" in run.said())

    run.signal(number)

    assert run.exit_code() == 0
    assert sorted(run.wrote("end")) == sorted(run.wrote("start"))
    assert len(run.wrote("end")) == 2
    assert "stopping, running tasks have 1 s" in run.said()


def test_it_says_ready_only_when_all_processes_are(start: Callable[..., Run]) -> None:
    run = start(GOOD, processes=2)
    run.wait_for(lambda: run.wrote("start"))
    time.sleep(0.5)
    assert "ready" not in run.said()


def test_a_worker_that_does_not_end_is_killed_after_the_grace_and_the_exit_code_says_so(
    start: Callable[..., Run],
) -> None:
    run = start(DEAF, grace_s=0.5, slack_s=0.5)
    run.wait_for(lambda: "ready" in run.said())
    asked_at = time.monotonic()

    run.signal(signal.SIGTERM)

    assert run.exit_code() == 1
    assert 1 <= time.monotonic() - asked_at < 30
    assert "did not end within 1 s: killed" in run.said()
    assert is_gone(run.wrote("start")[0])


def test_a_second_signal_ends_everything_at_once(start: Callable[..., Run]) -> None:
    run = start(DEAF, grace_s=600)
    run.wait_for(lambda: "ready" in run.said())
    run.signal(signal.SIGINT)
    run.wait_for(lambda: "stopping" in run.said())

    run.signal(signal.SIGINT)

    assert run.exit_code() == 1
    assert is_gone(run.wrote("start")[0])


def test_a_worker_that_died_is_started_again_after_a_pause_that_doubles(start: Callable[..., Run]) -> None:
    run = start(GOOD)
    run.wait_for(lambda: "ready" in run.said())

    died_at = time.monotonic()
    os.kill(run.wrote("start")[0], signal.SIGKILL)
    run.wait_for(lambda: len(run.wrote("start")) == 2)
    assert 1 <= time.monotonic() - died_at < 30
    assert "SIGKILL; starting it again in 1 s" in run.said()

    died_at = time.monotonic()
    os.kill(run.wrote("start")[1], signal.SIGKILL)
    run.wait_for(lambda: len(run.wrote("start")) == 3)
    assert 2 <= time.monotonic() - died_at < 30
    assert "starting it again in 2 s" in run.said()

    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0


def test_a_worker_that_was_ready_is_started_again_however_early_it_failed(start: Callable[..., Run]) -> None:
    run = start(READY + "be_ready()\nsys.exit(1)")
    run.wait_for(lambda: len(run.wrote("start")) == 2)
    assert run.process.poll() is None


def test_what_a_dead_worker_left_behind_is_ended(start: Callable[..., Run]) -> None:
    run = start(PARENT)
    run.wait_for(lambda: run.wrote("child"))
    child = run.wrote("child")[0]

    os.kill(run.wrote("start")[0], signal.SIGKILL)

    run.wait_for(lambda: is_gone(child))


def test_a_worker_that_can_not_start_ends_the_command_with_its_reason(start: Callable[..., Run]) -> None:
    run = start(BROKEN_AFTER_ANOTHER_STARTED, GOOD, processes=2)

    assert run.exit_code() == 2
    assert "no such setting" in run.said()
    assert "taskbridge: the worker ended at once, with exit code 3" in run.said()
    assert all(is_gone(pid) for pid in run.wrote("start"))
    assert len(run.wrote("start")) == 2


def test_a_signal_during_the_pause_ends_it(start: Callable[..., Run]) -> None:
    run = start(READY + "be_ready()\nsys.exit(1)")
    run.wait_for(lambda: "starting it again in 4 s" in run.said())  # the third pause

    run.signal(signal.SIGTERM)

    assert run.exit_code() == 0
    assert len(run.wrote("start")) == 3  # so the pause was not over


def test_sighup_without_a_terminal_starts_the_workers_anew(start: Callable[..., Run]) -> None:
    run = start(GOOD)
    run.wait_for(lambda: "ready" in run.said())

    run.signal(signal.SIGHUP)
    run.wait_for(lambda: len(run.wrote("start")) == 2)

    assert run.wrote("end") == run.wrote("start")[:1]
    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0


def change(file: Path, run: Run) -> None:
    """Write a file again and again until it is noticed: nobody tells when the watching has begun."""
    told = f"{file.name} changed: starting the workers anew"
    before = run.said().count(told)
    for number in range(40):
        file.write_text(f"x = {number}\n")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            if run.said().count(told) > before:
                return
            time.sleep(0.02)
    raise AssertionError(f"no change was noticed: {run.said()}")


def test_a_change_of_the_code_starts_the_workers_anew(start: Callable[..., Run], tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    run = start(GOOD, SLOW_TO_END, processes=2, watched=[code])
    run.wait_for(lambda: "ready" in run.said())
    (code / "notes.txt").write_text("no code")

    change(code / "tasks.py", run)

    run.wait_for(lambda: len(run.wrote("end")) >= 2)
    run.wait_for(lambda: len(run.wrote("start")) >= 4)
    assert "notes.txt" not in run.said()
    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0


def test_workers_that_failed_start_after_the_next_change(start: Callable[..., Run], tmp_path: Path) -> None:
    code, broken = tmp_path / "code", tmp_path / "broken"
    code.mkdir()
    fails = f"import os\nif os.path.exists({str(broken)!r}): sys.exit(1)\n"
    run = start(READY + fails + GOOD.removeprefix(READY), watched=[code])
    run.wait_for(lambda: "ready" in run.said())
    broken.touch()
    change(code / "tasks.py", run)
    run.wait_for(lambda: "starting it again in 2 s" in run.said())  # it has failed twice
    broken.unlink()
    starts = len(run.wrote("start"))

    change(code / "tasks.py", run)

    run.wait_for(lambda: len(run.wrote("start")) > starts)
    assert run.process.poll() is None
    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems can't tell a process that its parent has died")
def test_workers_end_with_a_supervisor_that_was_killed(start: Callable[..., Run]) -> None:
    run = start(GOOD)
    run.wait_for(lambda: "ready" in run.said())

    run.process.kill()

    run.wait_for(lambda: run.wrote("end") == run.wrote("start"))


def test_a_worker_that_retires_is_replaced_at_once_and_not_started_again(start: Callable[..., Run]) -> None:
    run = start(RETIRING)
    run.wait_for(lambda: len(run.wrote("start")) == 2)
    first, second = run.wrote("start")
    assert not is_gone(first)
    (run.log.parent / "log.gate").touch()
    run.wait_for(lambda: "has retired" in run.said())
    assert run.wrote("retired") == [first]
    assert not is_gone(second)
    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0
    assert run.wrote("start") == [first, second]
    assert "starting it again" not in run.said()


def test_a_worker_that_retires_is_told_to_end_with_the_others(start: Callable[..., Run]) -> None:
    run = start(RETIRING)
    run.wait_for(lambda: len(run.wrote("start")) == 2)
    run.wait_for(lambda: "ready" in run.said())
    run.signal(signal.SIGTERM)
    assert run.exit_code() == 0
    assert sorted(run.wrote("end")) == sorted(run.wrote("start"))


def test_only_one_worker_at_a_time_retires_beside_each(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETIRING", "2")
    run = start(RETIRING)
    run.wait_for(lambda: len(run.wrote("start")) == 2)
    time.sleep(1)
    assert len(run.wrote("start")) == 2
    (run.log.parent / "log.gate").touch()
    run.wait_for(lambda: len(run.wrote("start")) == 3)
    run.wait_for(lambda: run.said().count("has retired") == 2)
    assert not is_gone(run.wrote("start")[2])
