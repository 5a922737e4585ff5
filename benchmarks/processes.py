"""Processes: each measured program in one of its own, and workers with their children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

_PROGRAM_S: Final = 300.0
_STOP_S: Final = 15.0
_PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 1e6
_STARTED_CPU_S: Final = 0.08
"""No worker of a contender starts with less CPU time."""

_IDLE_CPU_S: Final = 0.08
"""Who uses less in a second has started."""

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


class MeasuringFailed(Exception):
    """A contender's process failed, or something did not happen in time."""


def run(argv: Sequence[str], environment: Mapping[str, str]) -> Mapping[str, float]:
    """Run a program, and return the figures in its last line; none if it prints nothing.

    Raises:
        MeasuringFailed: It fails, or takes over five minutes.
    """
    try:
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PROGRAM_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise MeasuringFailed(f"{' '.join(argv)}: not done after {_PROGRAM_S:.0f} s") from exc
    if done.returncode != 0:
        raise MeasuringFailed(f"{' '.join(argv)}: exit code {done.returncode}\n{_last(done.stderr)}")
    lines = done.stdout.strip().splitlines()
    figures: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return figures


class WorkerProcess:
    """A worker that runs, with all its children."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, log: Path) -> None:
        self._process = process
        self._output = output
        self._log = log

    def lines(self, kind: str) -> list[list[str]]:
        """Return the words of what its tasks have written, of one kind."""
        if not self._log.exists():
            return []
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [words[1:] for words in lines if words and words[0] == kind]

    def wait_for(self, kind: str, *, first: str | None = None, count: int = 1, timeout_s: float) -> list[list[str]]:
        """Return the lines of a kind, when there are so many.

        Args:
            kind: The kind.
            first: Only those with this first word.
            count: How many there must be.
            timeout_s: How long to wait.

        Raises:
            MeasuringFailed: There are not so many in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = [words for words in self.lines(kind) if first is None or words[0] == first]
            if len(found) >= count:
                return found
            if self._process.poll() is not None or time.monotonic() > deadline:
                what = f"{len(found)} of {count} lines `{kind} {first or ''}`"
                raise MeasuringFailed(f"{what}; the worker wrote:\n{_last(self._output.read_text())}")
            time.sleep(0.05)

    def memory_mb(self) -> float:
        """Return what it and all below it hold in memory, in MB of 10**6 bytes; shared pages count for each."""
        return sum(int(stat[21]) for stat in self._stats()) * _PAGE_MB

    def cpu_s(self) -> float:
        """Return the CPU time that it and all that live below it have used."""
        return sum(int(stat[11]) + int(stat[12]) for stat in self._stats()) / _TICKS_A_SECOND

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Let it, and all below it, stand still while the block runs."""
        pids = list(self._pids())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def wait_until_idle(self, *, timeout_s: float) -> None:
        """Return when it uses next to no CPU time, for it has started.

        Raises:
            MeasuringFailed: It is not idle in time, or has ended.
        """
        deadline = time.monotonic() + timeout_s
        used_s = -_IDLE_CPU_S
        while (now_s := self.cpu_s()) - used_s >= _IDLE_CPU_S or now_s < _STARTED_CPU_S:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise MeasuringFailed(f"not idle; the worker wrote:\n{_last(self._output.read_text())}")
            used_s = now_s
            time.sleep(1.0)
        if self._process.poll() is not None:
            raise MeasuringFailed(f"it has ended; the worker wrote:\n{_last(self._output.read_text())}")

    def _stats(self) -> Iterator[list[str]]:
        """Return the fields of it and of each process below it, from the third on (man 5 proc)."""
        return iter(self._pids().values())

    def _pids(self) -> dict[int, list[str]]:
        fields = dict(_all_stats())
        found = {self._process.pid}
        while more := {pid for pid, stat in fields.items() if int(stat[1]) in found} - found:
            found |= more
        return {pid: fields[pid] for pid in found if pid in fields}

    def stop(self) -> None:
        """End it; what does not end by itself is killed, with all below it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                for pid in self._pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def held(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> Generator[None]:
    """Keep programs while the block runs; it begins when each has printed a line, and they end with their input.

    Raises:
        MeasuringFailed: One ends at once.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for argv in commands:
            processes.append(
                subprocess.Popen(argv, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        for process in processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise MeasuringFailed(f"{' '.join(map(str, process.args))}: ended")  # type: ignore[arg-type]
        yield
    finally:
        for process in processes:
            process.communicate()


@contextmanager
def worker(argv: Sequence[str], environment: Mapping[str, str], *, output: Path, log: Path) -> Generator[WorkerProcess]:
    """Run a worker while the block runs.

    Args:
        argv: Its command line.
        environment: Its environment.
        output: The file for what it prints.
        log: The file that its tasks write to.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = WorkerProcess(process, output, log)
    try:
        yield running
    finally:
        running.stop()


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                yield int(entry.name), Path(entry.path, "stat").read_text().rpartition(")")[2].split()


def _last(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
