"""Starts workers, and the command line, by forking a process that has imported what they import.

Importing Celery takes more than half of the processor time of a worker's start, and the tests start hundreds. A forked
worker runs the same command line in the same environment, in a session of its own. If a mutant or a place to die at is
to be put into it, nothing of taskbridge is imported before the fork. What isn't a module's command line, and what has
variables that an engine may read as it is imported, is started as a program.

The command line itself is forked of a process that has imported it, but no engine.

A program that breaks the product before it imports it (`tests.mutants`) is forked of a process that has imported an
engine and nothing of taskbridge, and its workers are forked of one that is forked beside it.

Run as a program, this is the process that forks: it reads requests as lines of JSON, and writes `started NUMBER PID`
and `ended PID CODE`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

_ALL: Final = (
    *("asyncio", "concurrent.futures.thread", "csv", "decimal", "encodings.idna", "faulthandler", "importlib.metadata"),
    *("opentelemetry.metrics", "pika.adapters", "redis", "secrets", "unicodedata", "urllib.request", "uuid"),
)
_ENGINES: Final[Mapping[str, Sequence[str]]] = {
    "celery": (
        *("celery.bin.celery", "celery.apps.worker", "celery.worker.strategy", "celery.worker.control"),
        *("celery.worker.consumer", "celery.worker.loops", "celery.backends.base", "celery.fixups.django"),
        *("celery.concurrency.prefork", "celery.concurrency.thread", "celery.app.events", "celery.app.amqp"),
        *("kombu.transport.virtual", "kombu.transport.pyamqp", *_ALL),
    ),
    "dramatiq": ("dramatiq.cli", "dramatiq.middleware", "dramatiq.brokers.stub", "dramatiq.brokers.rabbitmq", *_ALL),
}
"""What a worker of each engine imports, but for taskbridge; what isn't installed is left out."""

_PROGRAMS: Final = {"celery": "celery", "dramatiq": "dramatiq", "taskbridge.engines.dramatiq.command": "dramatiq"}
"""The engine of each program that is run by `python -m`."""

_PACKAGES: Final = ("taskbridge.contract.tasks", "taskbridge.brokers", "taskbridge.stores", "taskbridge.schedules")
"""What a worker imports of taskbridge, beside the package of its engine."""

_CLI: Final = "taskbridge"
_INLINE: Final = "inline"
_IMPORTS: Final[Mapping[str, Sequence[str]]] = {
    **_ENGINES,
    _INLINE: _ALL,
    _CLI: ("taskbridge.cli", "taskbridge.bridge", "asyncio"),
}

_QUIET: Final = {"PYTHONWARNINGS": "ignore"}
_READ_AT_IMPORT: Final = ("CELERY_", "dramatiq_", "C_", "KOMBU_", "PYTHON")


class _Forked:
    """A forked process: what tests use of `subprocess.Popen`."""

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

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that forks, which reads requests here and answers there, and how to wait until it is gone."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], wait: Callable[[], object]) -> None:
        self._requests = requests
        self._answers = answers
        self._wait = wait
        self._changed = threading.Condition()
        self._asked = 0
        self._started: dict[int, _Forked] = {}
        self._running: dict[int, _Forked] = {}
        threading.Thread(target=self._listen, name="contract-forked", daemon=True).start()
        atexit.register(self._close)

    @classmethod
    def started(cls, *words: str) -> _Parent:
        """Start it as a program."""
        process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        return cls(process.stdin, process.stdout, lambda: process.wait(timeout=20))

    def start(self, **request: Any) -> _Forked:
        with self._changed:
            self._asked += 1
            number = self._asked
            self._requests.write(json.dumps({"number": number, **request}).encode() + b"\n")
            self._requests.flush()
            if not self._changed.wait_for(lambda: number in self._started, timeout=240):
                raise TimeoutError("no worker was forked within 240 s")
            return self._started.pop(number)

    def _listen(self) -> None:
        for line in self._answers:
            what, first, second = line.decode().split()
            with self._changed:
                if what == "started":
                    self._started[int(first)] = self._running[int(second)] = _Forked(int(second))
                    self._changed.notify_all()
                else:
                    self._running.pop(int(first)).end(int(second))

    def _close(self) -> None:
        self._requests.close()
        self._wait()


_parents: dict[tuple[str, ...], _Parent] = {}
_lock = threading.Lock()


def start_process(
    argv: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], cwd: Path | None = None, **options: Any
) -> Any:
    """Fork a worker's process, or start it as `subprocess.Popen` does."""
    is_worker = len(argv) > 2 and argv[0] == sys.executable and argv[1] == "-m" and argv[2] in _PROGRAMS
    if not is_worker or _is_read_at_import(env):
        return subprocess.Popen(argv, env=env, stdout=stdout, cwd=cwd, **options)
    return _parent(_PROGRAMS[argv[2]], *(_PACKAGES if _is_whole(env) else ())).start(
        argv=list(argv), env=dict(env), cwd=str(cwd or Path.cwd()), stdout=stdout.name, stderr=stdout.name
    )


def run_cli(*arguments: str, env: Mapping[str, str], cwd: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `taskbridge` with these arguments, and return what it wrote.

    Raises:
        subprocess.TimeoutExpired: It took longer than this; it is killed.
    """
    argv = [sys.executable, "-m", _CLI, *arguments]
    if _is_read_at_import(env):
        return subprocess.run(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    return _run(_parent(_CLI), argv, env=env, cwd=cwd, timeout_s=timeout_s)


def run_breaker(
    engine: str, *argv: str, env: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these arguments, which may break taskbridge before it imports it; return what it wrote.

    It and its workers find this process's path for imports, with `cwd` first; what `env` says of it is for programs
    that they start.

    Raises:
        subprocess.TimeoutExpired: It took longer than this; it is killed.
    """
    whole = [sys.executable, "-m", *argv]
    return _run(_parent(engine), whole, env=env, cwd=cwd, timeout_s=timeout_s, has_workers=engine in _ENGINES)


def _run(
    parent: _Parent, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout_s: float, **request: Any
) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        process = parent.start(
            argv=list(argv), env=dict(env), cwd=str(cwd), stdout=stdout.name, stderr=stderr.name, **request
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess([*argv], code, stdout.read(), stderr.read())


def _is_read_at_import(env: Mapping[str, str]) -> bool:
    changed = [name for name, value in env.items() if os.environ.get(name, _QUIET.get(name)) != value]
    return any(name.startswith(_READ_AT_IMPORT) for name in changed)


def _is_whole(env: Mapping[str, str]) -> bool:
    """Return whether nothing is to be put into a worker as it imports taskbridge."""
    dies = json.loads(env.get("TASKBRIDGE_CONTRACT_VARIANT", "{}")).get("dies", "")
    return not dies and not env.get("TASKBRIDGE_CONTRACT_MUTANT") and not env.get("TASKBRIDGE_CONTRACT_STORE_MUTANT")


def _parent(*words: str) -> _Parent:
    with _lock:
        return _parents.get(words) or _parents.setdefault(words, _Parent.started(*words))


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


def _fork_beside() -> _Parent | None:
    """Fork a process that forks workers like this one, and return it; return None in each of these."""
    requests_read, requests_write = os.pipe()
    answers_read, answers_write = os.pipe()
    if pid := os.fork():
        os.close(requests_read)
        os.close(answers_write)
        return _Parent(os.fdopen(requests_write, "wb"), os.fdopen(answers_read, "rb"), lambda: os.waitpid(pid, 0))
    os.dup2(requests_read, 0)
    os.dup2(answers_write, 1)
    for end in (requests_read, requests_write, answers_read, answers_write):
        os.close(end)
    if (asked := _serve()) is None:
        os._exit(0)
    _become(asked)
    return None


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
    for target, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        source = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    if _QUIET.items() <= os.environ.items():
        warnings.simplefilter("ignore")
    os.chdir(request["cwd"])
    sys.path[0] = os.getcwd()  # as it is for `python -m`
    sys.argv = request["argv"][2:]
    sys.orig_argv = request["argv"]


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _below(*packages: str) -> Iterator[str]:
    """Yield the names of the modules in packages."""
    for name in packages:
        with contextlib.suppress(ImportError):
            package = importlib.import_module(name)
            for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
                if not module.name.endswith((".main", ".dramatiq.command")):  # run as programs
                    yield module.name


def _leave() -> None:
    """End a worker as soon as all that it was to do at its exit is done.

    Taking down what was imported here touches all of the memory that it shares with its parent, which takes a second of
    the processor, and counts as the worker's own.
    """
    if _exit_code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)


_exit_code: int | None = None
"""The code with which a forked worker ends; None elsewhere."""


if __name__ == "__main__":
    atexit.register(_leave)  # before the imports: what they register comes first
    sys.path[0] = ""
    engine, *packages = sys.argv[1:]
    _import(_IMPORTS[engine])
    if packages:
        _import(packages)
        _import(_below(*packages, f"taskbridge.engines.{engine}"))
    if (asked := _serve()) is not None:
        _become(asked)
        if asked.get("has_workers") and (beside := _fork_beside()) is not None:
            _parents[engine,] = beside
            sys.modules["tests.forking"] = sys.modules["__main__"]  # who imports it there, finds that parent
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            _exit_code = 0
        except SystemExit as exc:
            _exit_code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            raise
        except BaseException:
            _exit_code = 1
            raise
