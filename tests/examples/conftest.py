"""Runs what is in `examples/` as its readers would: by command line, from the repository's root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

import pytest

from taskbridge.contract import leftovers

ROOT: Final = Path(__file__).parents[2]

START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 120.0
RUN_TIMEOUT_S: Final = 300.0
"""When something counts as hanging; on an idle machine all of it takes seconds."""


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment and more, without settings of its own, its interpreter's programs first."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TASKBRIDGE_", "DJANGO_"))}
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{inherited.get('PATH', '')}"
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **variables}


class Process:
    """A running command line of an example, in a process group of its own; what it writes goes to a file."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: IO[str], cwd: Path) -> None:
        self.argv = list(argv)
        self._output = output
        self._is_gone = False
        self._process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        leftovers.end_group(self._process.pid)

    @property
    def output(self) -> str:
        return Path(self._output.name).read_text(encoding="utf-8")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        """End it as a supervisor would, and return its exit code; it fails if that takes too long."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.argv} did not end within {STOP_TIMEOUT_S:g} s of SIGTERM:\n{self.output}")
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and all that it started, which may hang, or outlive it."""
        if not self._is_gone:  # its number may be another's later
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(RUN_TIMEOUT_S)
            self._is_gone = True


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command line in the background: `start("taskbridge", "worker", "shop", env={"TASKBRIDGE_URL": ...})`."""
    with ExitStack() as stack:

        def begin(*argv: str, cwd: Path = ROOT, env: Mapping[str, str]) -> Process:
            count = len(list(tmp_path.glob("process-*.log")))
            output = stack.enter_context((tmp_path / f"process-{count}.log").open("w+", encoding="utf-8"))
            process = Process(argv, environment(env), output, cwd)
            stack.callback(process.stop)
            return process

        yield begin


def wait_until(holds: Callable[[], bool], *, what: str, timeout_s: float, processes: Sequence[Process] = ()) -> None:
    """Return once something holds; else fail, and show what the processes wrote."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        written = "\n".join(f"--- {process.argv}\n{process.output}" for process in processes)
        for process in processes:
            assert process.is_running, f"it ended while waiting for {what}\n{written}"
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{written}"
        time.sleep(0.05)


def run(
    *argv: str,
    cwd: Path = ROOT,
    env: Mapping[str, str],
    codes: Collection[int] = (0,),
    timeout_s: float = RUN_TIMEOUT_S,
) -> str:
    """Run a command line to its end, which should have one of these exit codes, and return what it wrote to stdout."""
    done = subprocess.run(
        argv, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode in codes, f"{argv} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
