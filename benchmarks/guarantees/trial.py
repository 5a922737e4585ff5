"""A trial: one cell while it is measured, with its broker, its workers and what they did."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from typing_extensions import Self

from benchmarks.guarantees.applications.setup import PROBE_FILE, Setup
from benchmarks.guarantees.applications.work import READY, Step
from benchmarks.guarantees.clerks import Answer, Clerk
from benchmarks.guarantees.columns import Column
from benchmarks.guarantees.workers import KeptWorker
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.probe import END, START, Record, Records
from taskbridge.contract.proxy import Proxy
from taskbridge.engines.base import Command, WorkerOptions
from tests.servers import PrivateRabbitMQ, PrivateRedis

_ROOT: Final = Path(__file__).parents[2]
"""Where the processes of a trial find this package."""
_POLL_S: Final = 0.05
_READY_S: Final = 60.0
_LOG_LINES: Final = 30


class Spec(Protocol):
    """What a trial is told by its row."""

    @property
    def lease_s(self) -> float | None:
        """The setup's."""
        ...

    @property
    def attempts(self) -> int:
        """The setup's."""
        ...

    @property
    def defaults(self) -> bool:
        """The setup's."""
        ...

    @property
    def groups(self) -> bool:
        """The setup's."""
        ...


class Trial:
    """A column's application on a server, for one row.

    Args:
        column: The column.
        spec: What the row wants.
        server: The broker.

    Attributes:
        records: What happened so far.
        proxy: The way of the workers to the broker, and of clerks that ask for it.
    """

    def __init__(self, column: Column, spec: Spec, server: PrivateRedis | PrivateRabbitMQ) -> None:
        self.column = column
        self.folder: Path = Path(tempfile.mkdtemp(prefix="taskbridge-guarantee-"))
        self.records: Records = Records(self.folder / PROBE_FILE)
        self.proxy: Proxy = Proxy(("127.0.0.1", server.port))
        self._server = server
        self._store: PrivateRedis | None = None
        self._setup = Setup(
            kind=column.kind,
            engine=column.engine,
            broker_url=server.url,
            folder=str(self.folder),
            name=f"contract-{secrets.token_hex(4)}",
            lease_s=spec.lease_s,
            attempts=spec.attempts,
            defaults=spec.defaults,
            groups=spec.groups,
        )
        self._workers: list[KeptWorker] = []
        self._clerks: list[Clerk] = []
        self._clerk: Clerk | None = None
        self._logs = 0

    def __enter__(self) -> Self:
        """Start what the workers need besides the broker."""
        self.proxy.__enter__()
        needs_store = not self.column.raw or self._setup.groups
        if needs_store and self.column.broker == "amqp":  # where marks of attempts are then, or counts of groups
            self._store = PrivateRedis().start()
            self._setup = replace(self._setup, store_url=self._store.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End everything."""
        for worker in self._workers:
            worker.kill()
        for clerk in self._clerks:
            clerk.close()
        self.proxy.__exit__()
        if self._store is not None:
            self._store.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Processes

    def _env(self, setup: Setup) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        return {**inherited, **setup.env(), "PYTHONPATH": path}

    def _new_log(self, name: str) -> Path:
        self._logs += 1
        return self.folder / f"{name}-{self._logs}.log"

    def _proxied(self, setup: Setup) -> Setup:
        parts = urlsplit(setup.broker_url)
        place = f"127.0.0.1:{self.proxy.port}"
        credentials = parts.netloc.rpartition("@")[0]
        return replace(
            setup, broker_url=parts._replace(netloc=f"{credentials}@{place}" if credentials else place).geturl()
        )

    def neighbour(self) -> Setup:
        """Return the setup of the other engine's application, which uses the same names."""
        other = self.column.other_engine
        return replace(self._setup, kind=other.kind, engine=other.engine)

    def start_worker(
        self, *, late: bool = True, ready: bool = True, proxied: bool = True, of: Setup | None = None
    ) -> KeptWorker:
        """Start a worker with one slot.

        Args:
            late: Whether it knows the task `late`.
            ready: Whether to wait until it says that it is ready.
            proxied: Whether it reaches the broker by the proxy.
            of: Whose it is, if not this column's application.

        Raises:
            ContractFailure: It is not ready within a minute.
        """
        setup = replace(self._setup if of is None else of, late=late)
        setup = self._proxied(setup) if proxied else setup
        log = self._new_log("worker")
        worker = KeptWorker(_commands(setup), self._env(setup), log)
        self._workers.append(worker)
        if ready and not self.until(lambda: self._is_ready(worker), _READY_S):
            raise ContractFailure(f"a worker was not ready after {_READY_S:g} s\n{self.situation()}")
        return worker

    def _is_ready(self, worker: KeptWorker) -> bool:
        return any(record.kind == READY and worker.owns(record.pid) for record in self.records.all())

    def clerk(self, *, proxied: bool = False, of: Setup | None = None) -> Clerk:
        """Start another process that sends."""
        setup = self._setup if of is None else of
        clerk = Clerk(self._env(self._proxied(setup) if proxied else setup), self._new_log("clerk"))
        self._clerks.append(clerk)
        return clerk

    @property
    def office(self) -> Clerk:
        """The clerk that reaches the broker whatever the proxy does."""
        if self._clerk is None:
            self._clerk = self.clerk()
        return self._clerk

    @property
    def ends(self) -> int:
        """How often a worker ended that nobody told to."""
        return sum(worker.ends for worker in self._workers)

    # Sending and looking

    def send(self, *steps: Step, by: Clerk | None = None, **options: Any) -> str:
        """Send a message, and return its key.

        Raises:
            ContractFailure: It could not be sent.
        """
        key, answer = self.try_send(*steps, by=by, **options)
        if not answer.ok:
            raise ContractFailure(f"a send failed: {answer.error or 'it hangs'}\n{self.situation()}")
        return key

    def try_send(
        self, *steps: Step, by: Clerk | None = None, within_s: float = 30.0, **options: Any
    ) -> tuple[str, Answer]:
        """Send a message, and return its key and what came of the sending."""
        key = secrets.token_hex(4)
        plain = [step.plain() for step in steps or (Step(),)]
        clerk = self.office if by is None else by
        return key, clerk.call("send", within_s=within_s, key=key, steps=plain, **options)

    def send_group(self, members: Sequence[Sequence[Step]], *, expires_s: float | None = None) -> tuple[str, list[str]]:
        """Send a group, and return its key and those of its members.

        Raises:
            ContractFailure: It could not be sent.
        """
        key = secrets.token_hex(4)
        keys = [f"{key}/{number}" for number in range(len(members))]
        plain = {each: [step.plain() for step in steps] for each, steps in zip(keys, members, strict=True)}
        answer = self.office.call("send_group", key=key, members=plain, expires_s=expires_s)
        if not answer.ok:
            raise ContractFailure(f"a group was not sent: {answer.error or 'it hangs'}\n{self.situation()}")
        return key, keys

    def until(self, condition: Callable[[], object], within_s: float) -> bool:
        """Wait until a condition is true, and return whether it was in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def starts(self, key: str) -> list[Record]:
        """Return the starts of a message so far."""
        return [record for record in self.records.of(key) if record.kind == START]

    def is_done(self, key: str) -> bool:
        """Return whether a run of a message has ended well."""
        return any(record.kind == END for record in self.records.of(key))

    def wait_start(self, key: str, within_s: float = 30.0) -> float:
        """Wait until a message is started, and return when, in seconds since the epoch.

        Raises:
            ContractFailure: It isn't.
        """
        if not self.until(lambda: self.starts(key), within_s):
            raise ContractFailure(f"a message was not started in {within_s:g} s\n{self.situation()}")
        return self.starts(key)[0].at

    def wait_done(self, keys: Sequence[str], within_s: float) -> bool:
        """Wait until messages are done, and return whether they were in time."""
        return self.until(lambda: all(self.is_done(key) for key in keys), within_s)

    def lost(self, keys: Sequence[str]) -> int:
        """Return how many messages were not done."""
        return sum(not self.is_done(key) for key in keys)

    def twice(self, keys: Sequence[str], runs: int = 1) -> int:
        """Return how many messages were started more often than this."""
        return sum(len(self.starts(key)) > runs for key in keys)

    def count(self, kind: str) -> int:
        """Return how often something was written down."""
        return sum(record.kind == kind for record in self.records.all())

    def dead_letters(self) -> int:
        """Return how many dead messages are kept."""
        answer = self.office.call("dead_letters")
        return int(answer.value or 0)

    def situation(self) -> str:
        """Return what a failure should show."""
        lines: list[str] = []
        for log in sorted(self.folder.glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-_LOG_LINES:]]
        return "\n".join(lines)

    # The broker

    def fill(self) -> None:
        """Make the broker refuse everything that needs memory."""
        if isinstance(self._server, PrivateRabbitMQ):
            self._server.ctl("set_vm_memory_high_watermark", "0.000001")
        else:
            self._configure("maxmemory", "1")

    def empty(self) -> None:
        """Let the broker accept again what `fill` made it refuse."""
        if isinstance(self._server, PrivateRabbitMQ):
            self._server.ctl("set_vm_memory_high_watermark", "0.4")
        else:
            self._configure("maxmemory", "0")

    def _configure(self, name: str, value: str) -> None:
        import redis  # here, for not everyone has it installed

        client: Any = redis.Redis.from_url(self._server.url)  # pyright: ignore[reportUnknownMemberType] - of redis-py
        client.config_set(name, value)
        client.close()


def _commands(setup: Setup) -> list[Command]:
    if setup.kind == "raw_celery":
        return [_celery(setup)]
    if setup.kind == "raw_dramatiq":
        return [_dramatiq(setup)]
    from taskbridge import Bridge  # a bridge of this process, which tells how its engine is started

    bridge = Bridge(f"{setup.engine}+{setup.broker_url}", namespace=setup.name, default_queue="work")
    options = WorkerOptions(app=f"{setup.module}:bridge", queues=(), processes=1, threads=1)
    try:
        return bridge.worker_commands(options)
    finally:
        bridge.close()


def _celery(setup: Setup) -> Command:
    node = f"{setup.name}-{secrets.token_hex(2)}@%h"  # else all workers of a server share one mailbox
    words = ("-A", setup.module, "worker", "-n", node, "-c", "1", "-Q", setup.name, "-l", "info")
    argv = (sys.executable, "-m", "celery", *words)
    if setup.defaults:
        return Command(argv=argv)
    # What the soft shutdown needs to begin on SIGTERM.
    return Command(argv=(*argv, "--without-gossip", "--without-mingle"), env={"REMAP_SIGTERM": "SIGQUIT"})


def _dramatiq(setup: Setup) -> Command:
    argv: tuple[str, ...] = (sys.executable, "-m", "dramatiq", setup.module, "-p", "1", "-t", "1", "-Q", setup.name)
    if setup.defaults:
        return Command(argv=argv)
    argv = (*argv, "--worker-shutdown-timeout", str(round(setup.grace_s * 1000)))
    return Command(argv=argv, env={"dramatiq_queue_prefetch": "1"})
