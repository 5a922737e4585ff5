"""Runs the shop on one target, in processes of its own, and follows what happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from examples.demo.events import EVENTS_VARIABLE, Note, Tail
from taskbridge.exceptions import TaskBridgeError

_PATIENCE_S: Final = 180.0
"""How long a run may take; it takes about 4 s on an idle machine."""

_QUIET_S: Final = 0.4
"""How long nothing may happen, after all has ended, before the shop closes: a message that ran again would show."""

_LOOK_S: Final = 0.02
_END_S: Final = 10.0

ENDS: Final = ("succeeded", "dead", "discarded")
"""The events that end a message."""


class DemoFailed(TaskBridgeError):
    """The shop did not come to an end; `log` is the last that its processes wrote."""

    def __init__(self, url: str, problem: str, log: str) -> None:
        super().__init__(f"the demo on {url} failed: {problem}")
        self.log = log


def play(url: str, *, target: str, watch: Callable[[Note], None]) -> list[Note]:
    """Run the shop once.

    Args:
        url: The engine and broker, with its address.
        target: How errors name it.
        watch: Told each event as it happens.

    Returns:
        All events.

    Raises:
        DemoFailed: It did not end.
    """
    with tempfile.TemporaryDirectory(prefix="taskbridge-demo-") as folder:
        return _Play(url, target, Path(folder), watch).run()


class _Play:
    def __init__(self, url: str, target: str, folder: Path, watch: Callable[[Note], None]) -> None:
        self._has_server = not url.endswith("memory://")
        self._target = target
        self._folder = folder
        self._log = folder / "log"
        self._env = _environment(url, folder / "events")
        self._watch = watch
        self._notes: list[Note] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing = False
        self._deadline = time.monotonic() + _PATIENCE_S

    def run(self) -> list[Note]:
        tail = Tail(self._folder / "events")
        with ExitStack() as stack:
            stack.callback(tail.close)
            clerk = stack.enter_context(self._process("examples.demo.clerk"))
            self._follow(tail, until=self._all_sent)
            if self._has_server:
                stack.enter_context(
                    self._process("taskbridge", "worker", "examples.demo.staff", "--processes=1", "--threads=1")
                )
            self._follow(tail, until=self._all_ended)
            self._closing = True
            if clerk.stdin is not None:
                clerk.stdin.close()
            self._follow(tail, until=self._closed)
        return self._notes

    @contextmanager
    def _process(self, module: str, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self._folder,  # `-m` makes it importable: nothing there must be called celery.py
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the demo, and the demo ends them
            )
        self._processes.append(process)
        try:
            yield process
        finally:
            self._processes.remove(process)
            _end(process)

    def _follow(self, tail: Tail, *, until: Callable[[], bool]) -> None:
        while True:
            for note in tail.read():
                self._notes.append(note)
                self._watch(note)
            if until():
                return
            for process in self._processes:
                if process.poll() is not None and not self._closing:
                    raise self._failure(f"a process ended with exit code {process.returncode}")
            if time.monotonic() > self._deadline:
                raise self._failure(f"it did not end within {_PATIENCE_S:g} s")
            time.sleep(_LOOK_S)

    def _all_sent(self) -> bool:
        return any(note.what == "all_sent" for note in self._notes)

    def _all_ended(self) -> bool:
        sent = {note.id for note in self._notes if note.what == "after_send"}
        ended = {note.id for note in self._notes if note.what in ENDS}
        return sent <= ended and time.time() - self._notes[-1].at > _QUIET_S

    def _closed(self) -> bool:
        return any(note.what == "closed" for note in self._notes)

    def _failure(self, problem: str) -> DemoFailed:
        lines = self._log.read_text(errors="replace").splitlines()
        return DemoFailed(self._target, problem, "\n".join(lines[-20:]))


def _environment(url: str, events: Path) -> Mapping[str, str]:
    """Return the environment of the shop's processes: without the settings of the user's own application."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    here = Path(__file__).parents[2]  # the folder of `examples`
    paths = [here, *(Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry)]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TASKBRIDGE_URL": url,
        "TASKBRIDGE_NAMESPACE": f"shop-{url.partition('+')[0]}",  # else the runs share their dead letters on a server
        "TASKBRIDGE_ROUTES": "*.send_*=email",
        "TASKBRIDGE_QUEUES": "vip",
        "TASKBRIDGE_GRACE": "2",
        EVENTS_VARIABLE: str(events),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
