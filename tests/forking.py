"""Starts the contract's workers by forking a process that has imported their engine.

Importing Celery takes more than half of the processor time of a worker's start, and the suite starts hundreds. A forked
worker runs the same command line in the same environment, in a session of its own; nothing of taskbridge is imported
before the fork, so a mutant or a place to die at is put into it as ever. What isn't a module's command line, and what
has variables that an engine may read as it is imported, is started as a program.

Run as a program, this is the process that forks: it reads requests as lines of JSON, and writes `started NUMBER PID`
and `ended PID CODE`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

_ENGINES: Final[Mapping[str, Sequence[str]]] = {
    "celery": (
        *("celery.bin.celery", "celery.apps.worker", "celery.worker.strategy", "celery.worker.control"),
        *("celery.concurrency.prefork", "celery.concurrency.thread", "celery.app.events", "kombu.transport.virtual"),
        *("asyncio", "concurrent.futures.thread", "decimal", "uuid", "urllib.request"),
    ),
    "dramatiq": (
        *("dramatiq.cli", "dramatiq.middleware", "dramatiq.brokers.stub"),
        *("asyncio", "concurrent.futures.thread", "decimal", "uuid", "urllib.request"),
    ),
}
"""What a worker of each engine imports, but for taskbridge and the brokers' client libraries."""

_READ_AT_IMPORT: Final = ("CELERY_", "dramatiq_", "C_", "KOMBU_", "PYTHON")


class _Forked:
    """A worker's process: what `ProcessWorker` uses of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class _Parent:
    """The process that forks the workers of an engine."""

    def __init__(self, engine: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._changed = threading.Condition()
        self._asked = 0
        self._started: dict[int, _Forked] = {}
        self._running: dict[int, _Forked] = {}
        threading.Thread(target=self._listen, name="contract-forked", daemon=True).start()
        atexit.register(self._close)

    def start(self, **request: Any) -> _Forked:
        assert self._process.stdin is not None
        with self._changed:
            self._asked += 1
            number = self._asked
            self._process.stdin.write(json.dumps({"number": number, **request}).encode() + b"\n")
            self._process.stdin.flush()
            if not self._changed.wait_for(lambda: number in self._started, timeout=60):
                raise TimeoutError("no worker was forked within 60 s")
            return self._started.pop(number)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, first, second = line.decode().split()
            with self._changed:
                if what == "started":
                    self._started[int(first)] = self._running[int(second)] = _Forked(int(second))
                    self._changed.notify_all()
                else:
                    self._running.pop(int(first)).end(int(second))

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)


_parents: dict[str, _Parent] = {}
_lock = threading.Lock()


def start_process(argv: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **options: Any) -> Any:
    """Fork a worker's process, or start it as `subprocess.Popen` does."""
    is_module = len(argv) > 2 and argv[0] == sys.executable and argv[1] == "-m" and argv[2] in _ENGINES
    changed = [name for name, value in env.items() if os.environ.get(name) != value]
    if not is_module or any(name.startswith(_READ_AT_IMPORT) for name in changed):
        return subprocess.Popen(argv, env=env, stdout=stdout, **options)
    with _lock:
        parent = _parents.get(argv[2]) or _parents.setdefault(argv[2], _Parent(argv[2]))
    return parent.start(argv=list(argv), env=dict(env), log=stdout.name)


def install() -> None:
    """Have the contract start its workers this way."""
    from taskbridge.contract import workers  # here, for the process that forks imports nothing of taskbridge

    workers.start_process = start_process


# In the process that forks


def _serve() -> dict[str, Any] | None:
    """Fork for each request; return it in the child, and None here when there are no more."""
    wakeup_read, wakeup_write = os.pipe()
    for end in (wakeup_read, wakeup_write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    while True:
        ready, _, _ = select.select([0, wakeup_read], [], [])
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        _tell_of_the_dead()
        if 0 not in ready:
            continue
        if not (data := os.read(0, 65536)):
            return None
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(wakeup_read)
                os.close(wakeup_write)
                return request
            _tell(f"started {request['number']} {pid}")


def _tell_of_the_dead() -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = found
            _tell(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _tell(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _become(request: Mapping[str, Any]) -> None:
    """Make this process what a program would be that is started so."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"][2:]


if __name__ == "__main__":
    sys.path[0] = ""  # as it is for `python -m`
    for name in _ENGINES[sys.argv[1]]:
        importlib.import_module(name)
    if (asked := _serve()) is not None:
        _become(asked)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
