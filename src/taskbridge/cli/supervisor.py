"""Keeps an engine's stock workers running: starts them, passes signals on, starts again what died."""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final

from taskbridge.engines.base import READY_VARIABLE, Command

SLACK_S: Final = 5.0  # how long after the grace period a worker may still be there before it is killed
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_LONG_LIFE_S: Final = 10.0
"""A worker that lived as long did not die of how it starts: the pauses begin anew.

One that ended sooner the first time, and never became ready, is not started again: it can't work.
"""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_CHANGED: Final = 0  # what stands among the numbers of signals when a watched file was changed


@dataclass(kw_only=True)
class _Worker:
    """One command, and the process that runs it now, if one does."""

    command: Command
    fifo: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float | None = 0.0
    kill_at: float | None = None
    pause_s: float = _FIRST_PAUSE_S
    ready: set[str] = field(default_factory=set[str])
    starts: int = 0
    retires: bool = False


@dataclass(kw_only=True)
class Supervisor:
    """Runs commands until a signal says to stop.

    SIGTERM and SIGINT stop the workers: they take nothing new, and have the grace period to finish what they run; a
    second one ends them at once. SIGHUP starts them anew, one grace period allowed, or stops them if this process has
    a terminal, for then it means that the terminal is gone.
    """

    commands: Sequence[Command]  # each is one worker, in a session of its own
    env: Mapping[str, str]  # variables for all of them, over this process's environment
    processes: int  # how many report that they are ready, in all
    grace_s: float
    say: Callable[..., None]  # told what happens, a line at a time, and its level if it is not INFO
    watched: Sequence[Path] = ()  # the folders in which a change of a Python file starts the workers anew
    _workers: list[_Worker] = field(default_factory=list[_Worker], init=False)
    _stopping: bool = field(default=False, init=False)
    _code: int = field(default=0, init=False)
    _announced: bool = field(default=False, init=False)

    def run(self) -> int:
        """Run the workers until they are told to stop.

        Returns 0 if all ended by themselves in time after a signal, 1 if not, 2 if one could not start at all.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskbridge-")))
            selector = stack.enter_context(selectors.DefaultSelector())
            for number, command in enumerate(self.commands):
                worker = _Worker(command=command, fifo=folder / str(number))
                os.mkfifo(worker.fifo)
                # Open for writing too: else it is at its end, and always readable, whenever no worker has it open.
                place = os.open(worker.fifo, os.O_RDWR | os.O_NONBLOCK)
                stack.callback(os.close, place)
                selector.register(place, selectors.EVENT_READ, worker)
                self._workers.append(worker)
            sender = _wake_by_signals(selector, stack)
            if self.watched:
                threading.Thread(target=_watch, args=(self.watched, sender, self.say), daemon=True).start()
            stack.callback(self._end_all)
            self._supervise(selector)
        return self._code

    def _supervise(self, selector: selectors.BaseSelector) -> None:
        while True:
            for worker in list(self._workers):
                self._look_at(worker)
            if all(worker.process is None and worker.start_at is None for worker in self._workers):
                return
            for key, _ in selector.select(self._wait_s()):
                data = os.read(key.fd, 4096)
                if key.data is None:
                    for number in data:
                        self._obey(number)
                else:
                    self._hear(key.data, data)

    def _wait_s(self) -> float | None:
        """Return the seconds until something is due by itself; None if nothing is."""
        due = [at for worker in self._workers for at in (worker.start_at, worker.kill_at) if at is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    def _hear(self, worker: _Worker, data: bytes) -> None:
        words = data.decode("ascii", "replace").split()
        worker.ready.update(word for word in words if not word.startswith("-"))
        retires = any(word.startswith("-") for word in words)
        if retires and worker.process is not None and worker.kill_at is None:  # else it was told to end anyway
            is_first = not any(each.retires and each.fifo == worker.fifo for each in self._workers)
            self._workers.append(replace(worker, retires=True, ready=set()))
            worker.process, worker.start_at = None, monotonic() if is_first else None  # else when the first has ended
        if not self._announced and sum(len(each.ready) for each in self._workers) >= self.processes:
            self._announced = True
            self.say("ready")

    def _look_at(self, worker: _Worker) -> None:
        now = monotonic()
        if worker.process is not None and worker.process.poll() is not None:
            self._ended(worker, worker.process.pid, worker.process.returncode, now)
        elif worker.process is not None and worker.kill_at is not None and worker.kill_at <= now:
            within = f"within {self.grace_s + SLACK_S:g} s"
            self.say(f"worker {worker.process.pid} did not end {within}: killed", logging.WARNING)
            self._kill(worker)
        if worker.start_at is not None and worker.start_at <= now:
            self._start(worker, now)

    def _start(self, worker: _Worker, now: float) -> None:
        worker.start_at, worker.kill_at = None, None
        worker.ready.clear()
        worker.started_at = now
        worker.starts += 1
        worker.process = subprocess.Popen(
            worker.command.words(),
            env={**worker.command.environment({**os.environ, **self.env}), READY_VARIABLE: str(worker.fifo)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # else Ctrl-C reaches it twice, which Celery takes for "end at once"
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - it takes no lock
        )

    def _ended(self, worker: _Worker, pid: int, code: int, now: float) -> None:
        _kill_group(pid)  # what it left behind: nobody would ever stop it
        worker.process = None
        asked = worker.kill_at is not None
        worker.kill_at = None
        if worker.retires:
            self._workers.remove(worker)
            for each in self._workers:
                if each.fifo == worker.fifo and each.process is None and each.start_at is None:
                    each.start_at = None if self._stopping else now
        if self._stopping:
            if code not in (0, -signal.SIGTERM):
                self.say(f"worker {pid} ended with {_named(code)}", logging.WARNING)
                self._code = max(self._code, 1)
        elif worker.retires:
            self.say(f"worker {pid} has retired{'' if code == 0 else f' with {_named(code)}'}")
        elif asked:
            worker.start_at = now
        elif code > 0 and worker.starts == 1 and not worker.ready and now - worker.started_at < _LONG_LIFE_S:
            self.say(f"the worker ended at once, with {_named(code)}; what it wrote before says why", logging.ERROR)
            self._code = 2
            self._stop()
        else:
            if now - worker.started_at >= _LONG_LIFE_S:
                worker.pause_s = _FIRST_PAUSE_S
            pause = f"starting it again in {worker.pause_s:g} s"
            self.say(f"worker {pid} ended with {_named(code)}; {pause}", logging.WARNING)
            worker.start_at = now + worker.pause_s
            worker.pause_s = min(_LONGEST_PAUSE_S, worker.pause_s * 2)

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return  # each worker is looked at anyway
        if number == _CHANGED:
            if not self._stopping:
                self._ask_to_end()
                for worker in self._workers:
                    if worker.start_at is not None:  # it failed, perhaps because of what was mended
                        worker.start_at, worker.pause_s = monotonic(), _FIRST_PAUSE_S
            return
        if number == signal.SIGHUP and not sys.stderr.isatty():
            if not self._stopping:
                self.say("SIGHUP: starting the workers anew")
                self._ask_to_end()
        elif not self._stopping:
            self.say(f"{signal.Signals(number).name}: stopping, running tasks have {self.grace_s:g} s")
            self._stop()
        elif number in _STOP_SIGNALS:
            self.say("ending at once; what was running will run again")
            self._end_all()

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.start_at = None
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.kill_at is None:
                worker.kill_at = monotonic() + self.grace_s + SLACK_S
                worker.process.terminate()

    def _kill(self, worker: _Worker) -> None:
        if worker.process is not None:
            _kill_group(worker.process.pid)
            worker.process.wait()
            worker.kill_at = monotonic()  # it ended because it was asked to

    def _end_all(self) -> None:
        for worker in self._workers:
            self._kill(worker)


def _wake_by_signals(selector: selectors.BaseSelector, stack: ExitStack) -> socket.socket:
    """Until the stack ends, have the selector return when a signal comes or a child ends: their numbers can be read.

    Returns what they are written to, for others to be written too.
    """
    receiver, sender = map(stack.enter_context, socket.socketpair())
    receiver.setblocking(False)
    sender.setblocking(False)
    wanted = [*_STOP_SIGNALS, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup taskbridge worker`
        wanted.append(signal.SIGHUP)
    stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
    for number in wanted:
        stack.callback(signal.signal, number, signal.signal(number, _noted))
    selector.register(receiver, selectors.EVENT_READ)
    return sender


def _watch(folders: Sequence[Path], sender: socket.socket, say: Callable[..., None]) -> None:
    """Tell of each change of Python files in these folders; ends with the process."""
    from watchfiles import PythonFilter, watch  # here, for it is an extra, which `taskbridge worker` has looked for

    try:
        for changes in watch(*folders, watch_filter=PythonFilter(), raise_interrupt=False):
            files = sorted({os.path.relpath(file) for _, file in changes})
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            say(f"{files[0]}{more} changed: starting the workers anew")
            sender.send(bytes([_CHANGED]))
    except (OSError, RuntimeError) as exc:  # the system watches so many files and no more, or a folder is gone
        say(f"the code is not watched any more: {exc}", logging.WARNING)


def _noted(number: int, frame: FrameType | None) -> None:
    """Handle a signal, which is all that it takes for its number to be written to the socket."""


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(pid, signal.SIGKILL)


_libc: Final = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the supervisor dies: else a `kill -9` of it leaves workers that nobody stops."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _named(code: int) -> str:
    """Return `exit code 1`, or the signal that ended a process."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
