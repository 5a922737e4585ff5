"""The three workers of a chaos run: real command lines, found and hurt by process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from taskbridge.contract.preloading import without_settings
from tests.chaos.tasks import RUN_VARIABLE, WORKER_VARIABLE

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the run itself may be under nohup, and its workers start anew by it

_ROOT: Final = Path(__file__).parents[2]
_POLL_S: Final = 0.05
_GONE_S: Final = 60.0
_KEPT_LOG_LINES: Final = 60


class Place:
    """A place for a worker: one is started in it after the other, with the same options.

    Args:
        name: Such as `w1`; its workers are `w1.1`, `w1.2` ...
        options: Of the command line: processes and threads.
        env: Variables of its workers.
        folder: Where their logs go.
    """

    def __init__(self, name: str, options: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._options = options
        self._env = env
        self._folder = folder
        self._number = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.busy = threading.Lock()

    @property
    def worker(self) -> str:
        """The name of the worker that was started last."""
        return f"{self.name}.{self._number}"

    @property
    def supervisor(self) -> int | None:
        """The process id of `taskbridge worker`, if it runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def log(self) -> Path:
        """What the workers of this place wrote."""
        return self._folder / f"{self.name}.log"

    def start(self) -> None:
        """Start another worker. The supervisor before it has ended; what it started may still be about to."""
        if self._process is not None:
            self._process.wait(_GONE_S)
        self._number += 1
        argv = [sys.executable, "-m", "taskbridge", "worker", "tests.chaos.app:bridge", *self._options]
        with self.log.open("ab") as log:
            log.write(f"--- {time.time():.3f} {self.worker}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                argv,
                cwd=_ROOT,
                env={**without_settings(), **self._env, WORKER_VARIABLE: self.worker},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, int]:
        """Return the sessions of this place's living processes, by process id; the supervisors' among them."""
        return dict(_sessions(self._env[RUN_VARIABLE], f"{self.name}."))

    def engine_processes(self) -> dict[int, int]:
        """Return the same without the supervisor."""
        return {pid: session for pid, session in self.processes().items() if pid != self.supervisor}

    def signal(self, pids: Iterable[int], number: int) -> None:
        """Send a signal to processes, those that are gone left out."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def ask_to_end(self) -> None:
        """Send SIGTERM to the supervisor."""
        self.signal([] if self.supervisor is None else [self.supervisor], signal.SIGTERM)

    def wait(self, timeout_s: float) -> int | None:
        """Return the supervisor's exit code once it has ended; None if it hasn't in this time."""
        if self._process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def end(self) -> None:
        """Kill all that is left."""
        deadline = time.monotonic() + _GONE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            self.signal(left, signal.SIGKILL)
            time.sleep(_POLL_S)
        if self._process is not None:
            self._process.wait(_GONE_S)

    def last_lines(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_KEPT_LOG_LINES:])


def _sessions(run: str, worker: str) -> list[tuple[int, int]]:
    """Return process ids and sessions of a run's workers whose names begin like this."""
    wanted = f"{RUN_VARIABLE}={run}".encode(), f"{WORKER_VARIABLE}={worker}".encode()
    found: list[tuple[int, int]] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            variables = (process / "environ").read_bytes().split(b"\0")
            if wanted[0] in variables and any(each.startswith(wanted[1]) for each in variables):
                pid = int(process.name)
                found.append((pid, os.getsid(pid)))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether a condition became true in this time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
