"""Workers: the engine's own command line in processes, or threads of this process where messages live in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from taskbridge import Bridge
from taskbridge.contract import leftovers
from taskbridge.contract.preloading import without_settings
from taskbridge.engines.base import Command, WorkerOptions

APP: Final = "taskbridge.contract.app:bridge"
_SHOWN_LINES: Final = 40
_TWICE: Final = 2
_BETWEEN_S: Final = 0.3
_ENDS_WITHIN_S: Final = 5.0
_STANDS_WITHIN_S: Final = 60.0
_LOOK_S: Final = 0.01
_STILL: Final = ("T", "t", "Z", "X")
"""The states of a thread that is stopped, by a signal or a debugger, or has ended, as ps shows them."""


start_process: Callable[..., Any] = subprocess.Popen
"""Starts a worker's process, as `subprocess.Popen` does. The project's tests put a quicker way in its place."""


class ProcessWorker:
    """The processes that `Bridge.worker_commands` says, each in a group of its own."""

    def __init__(self, commands: Sequence[Command], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._processes: list[subprocess.Popen[bytes]] = [
                start_process(
                    command.words(),
                    env=command.environment(env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for command in commands
            ]
        for process in self._processes:
            leftovers.end_group(process.pid)

    @classmethod
    def start(cls, bridge: Bridge, options: WorkerOptions, env: Mapping[str, str], log: Path) -> ProcessWorker:
        """Start a worker; it is not ready yet."""
        return cls(bridge.worker_commands(options), {**without_settings(), **env}, log)

    def owns(self, pid: int) -> bool:
        """Return whether a process is in one of its groups."""
        with contextlib.suppress(ProcessLookupError):
            return os.getpgid(pid) in {process.pid for process in self._processes}
        return False

    def terminate(self) -> None:
        """Send SIGTERM to each command's own process."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to every process of the groups."""
        self._signal_groups(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def pause(self) -> None:
        """Send SIGSTOP to every process of the groups, and return when each of their threads stands still.

        Raises:
            TimeoutError: One goes on.
        """
        self._signal_groups(signal.SIGSTOP)
        wait_until_still({process.pid for process in self._processes})

    def resume(self) -> None:
        """Send SIGCONT to every process of the groups."""
        self._signal_groups(signal.SIGCONT)

    def waited_s(self) -> float:
        """Return how long the threads of the groups have waited for a core, in all, in seconds; 0 if nobody says."""
        return _waited_s({process.pid for process in self._processes})

    def _signal_groups(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """Wait until all have ended, and return the first exit code that is not 0, else 0."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
        return next((process.returncode for process in self._processes if process.returncode), 0)

    def log(self, lines: int = _SHOWN_LINES) -> str:
        """Return so many of the last lines that it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


class SupervisedWorker(ProcessWorker):
    """What `taskbridge worker` starts, and starts again."""

    @classmethod
    def start(cls, bridge: Bridge, options: WorkerOptions, env: Mapping[str, str], log: Path) -> SupervisedWorker:
        """Start a supervisor; its workers are not ready yet."""
        argv = [
            *(sys.executable, "-m", "taskbridge", "worker", options.app),
            *("--processes", str(options.processes), "--threads", str(options.threads)),
            *(("--queues", ",".join(options.queues)) if options.queues else ()),
            *_limit("tasks", options.max_tasks_per_child),
            *_limit("memory", options.max_memory_per_child),
        ]
        return cls([Command(argv=tuple(argv))], {**without_settings(), **env}, log)

    def owns(self, pid: int) -> bool:
        """Return whether a process is the supervisor or descends from it."""
        supervisor = self._processes[0].pid
        while pid > 1 and pid != supervisor:
            pid = _parent(pid)
        return pid == supervisor

    def kill(self) -> None:
        """Tell the supervisor to end everything at once, which it does at a second signal."""
        (process,) = self._processes
        for _ in range(_TWICE):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_BETWEEN_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN_S)
        super().kill()


def _limit(what: str, most: int | None) -> tuple[str, ...]:
    return () if most is None else (f"--max-{what}-per-child", str(most))


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, though its parent may not have asked after it yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return Path("/proc/self").exists()  # else this system has no such files, and it is there


def wait_until_still(groups: Collection[int]) -> None:
    """Return when each thread of these process groups is stopped or has ended.

    Raises:
        TimeoutError: One goes on.
    """
    deadline = time.monotonic() + _STANDS_WITHIN_S
    while _is_one_going_on(groups):  # a thread that another core runs goes on until it is interrupted
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(groups)} go on for {_STANDS_WITHIN_S:g} s after SIGSTOP")
        time.sleep(_LOOK_S)


def _is_one_going_on(groups: Collection[int]) -> bool:
    command = ["ps", "-eLo", "pgid=,state="]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    threads = [line.split() for line in done.stdout.splitlines()]
    return any(state not in _STILL for group, state in threads if int(group) in groups)


def _waited_s(groups: Collection[int]) -> float:
    """Return how long threads were ready to run and did not (Linux: Documentation/scheduler/sched-stats.rst)."""
    waited_ns = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(place.name)) in groups:
                waited_ns += sum(int(each.read_text().split()[1]) for each in place.glob("task/*/schedstat"))
    return waited_ns / 1e9


def _parent(pid: int) -> int:
    """Return a process's parent; 0 if it is gone."""
    command = ["ps", "-o", "ppid=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return int(done.stdout.strip() or 0)


class EmbeddedWorker:
    """The worker that `Bridge.embedded_worker` runs. A thread of its own starts and stops it."""

    def __init__(self, bridge: Bridge, queues: Sequence[str], threads: int) -> None:
        self._bridge = bridge
        self._queues = queues
        self._slots = threads
        self._stop = threading.Event()
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="contract-worker", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        try:
            with self._bridge.embedded_worker(queues=self._queues, threads=self._slots):
                self._started.set()
                self._stop.wait()
        except BaseException as exc:
            self._problem = exc
            self._started.set()

    def owns(self, pid: int) -> bool:
        """Return whether it is this process."""
        return pid == os.getpid() and self._thread.is_alive()

    def terminate(self) -> None:
        """Leave the block."""
        self._stop.set()

    def kill(self) -> None:
        """Leave the block, and wait for the end of the grace."""
        self._stop.set()
        self._thread.join()

    def waited_s(self) -> float:
        """Return 0: who asks waits with its threads."""
        return 0.0

    def pause(self) -> None:
        """Refuse: this process would stand still too."""
        raise NotImplementedError("a worker in this process can't stand still by itself")

    def resume(self) -> None:
        """Do nothing: it never stands still."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait until the block is left; an error of it counts as exit code 1."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        return 0 if self._problem is None else 1

    def log(self, lines: int = _SHOWN_LINES) -> str:
        """Return the error that ended it, if one did."""
        return "" if self._problem is None else repr(self._problem)


Worker: TypeAlias = ProcessWorker | EmbeddedWorker
"""A running worker."""
