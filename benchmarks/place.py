"""Where it is measured: private servers that start when first needed, and are emptied for each measurement."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from benchmarks.contenders import Contender
from benchmarks.processes import WorkerProcess, held, run, worker
from benchmarks.readings import Reading, held_by, read
from taskbridge import Bridge
from taskbridge.stores.backend import BackendWithTables
from tests.private_postgresql import PrivatePostgreSQL
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer

_QUEUES = ("bench", "bench.DQ", "bench.XQ", "bench.dead", "bench.celery.default", "bench.due.celery")
_DRAMATIQ_QUEUES = ("bench.dramatiq.default", "bench.due.dramatiq")
_LEVELS = 29
_TABLES_S = 30.0


class Place:
    """The servers, and the processes beside them.

    Args:
        pythons: The interpreters with the packages of the others, by `Contender.home`; who has none is left out.
    """

    def __init__(self, pythons: Mapping[str, str]) -> None:
        self._pythons = {"": sys.executable, **pythons}
        self._open = ExitStack()
        self._servers: dict[str, PrivateServer] = {}
        self._folder = Path()
        self._number = 0

    def __enter__(self) -> Self:
        """Make a folder for what workers write."""
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="taskbridge-bench-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the servers."""
        self._open.close()

    def has(self, contender: Contender) -> bool:
        """Tell whether a contender's packages are there."""
        return contender.home in self._pythons

    def python(self, contender: Contender) -> str:
        """Return the interpreter that a contender runs on."""
        return self._pythons[contender.home]

    def run(
        self, contender: Contender, broker: str, program: str, *words: object, more: Mapping[str, str] | None = None
    ) -> Mapping[str, float]:
        """Run one of `benchmarks.programs` with a contender, and return its figures.

        Args:
            contender: Whom.
            broker: `redis` or `amqp`.
            program: The program's name.
            *words: Its arguments, after the name of the app.
            more: Further variables of its environment.
        """
        argv = [self.python(contender), "-m", f"benchmarks.programs.{program}", contender.app, *map(str, words)]
        return run(argv, {**self._environment(contender, broker), **(more or {})})

    @contextmanager
    def senders(self, contender: Contender, broker: str, number: int, *, sent: int) -> Generator[None]:
        """Keep so many processes of a contender while the block runs, each of which has sent so many messages."""
        argv = [self.python(contender), "-m", "benchmarks.programs.holding", contender.app, str(sent)]
        with held([argv] * number, self._environment(contender, broker)):
            yield

    def read(self, broker: str, *, closely: bool = False) -> Reading:
        """Ask a server what it has done and holds; of RabbitMQ, what it holds only if closely, for that takes 4 s."""
        return read(self._server(broker), closely=closely)

    def held_by(self, pattern: str) -> int:
        """Return the bytes that Redis has allocated for the keys that match a pattern."""
        server = self._server("redis")
        assert isinstance(server, PrivateRedis)
        return held_by(server, pattern)

    def bridge(self, contender: Contender, broker: str) -> Bridge:
        """Return a bridge of this process to what a contender of ours sends, to be closed."""
        return Bridge(f"{contender.option}+{self._url(broker)}", namespace="bench")

    def run_snippet(
        self, contender: Contender, broker: str, snippet: str, *, more: Mapping[str, str] | None = None
    ) -> Mapping[str, float]:
        """Run a piece of Python, with further variables of its environment, and return its figures."""
        environment = {**self._environment(contender, broker), **(more or {})}
        return run([self.python(contender), "-c", snippet], environment)

    @contextmanager
    def worker(
        self,
        contender: Contender,
        broker: str,
        *,
        marked: Sequence[int] = (),
        more: Mapping[str, str] | None = None,
    ) -> Generator[WorkerProcess]:
        """Run a contender's worker while the block runs.

        Args:
            contender: Whose.
            broker: `redis` or `amqp`.
            marked: The runs of `tick`, counted from 1, of which it writes the times.
            more: Further variables of its environment.
        """
        self._number += 1
        log = self._folder / f"{self._number}.log"
        environment = self._environment(contender, broker) | {
            "BENCH_LOG": str(log),
            "BENCH_MARKED": ",".join(map(str, marked)),
            **(more or {}),
        }
        words = [word.format(url=self._url(broker), number=self._number) for word in contender.worker]
        output = self._folder / f"{self._number}.out"
        with worker([self.python(contender), "-m", *words], environment, output=output, log=log) as running:
            yield running

    def empty(self, broker: str) -> None:
        """Remove all messages from a server."""
        server = self._server(broker)
        if isinstance(server, PrivateRedis):
            server.command("FLUSHALL")
        else:
            _empty_rabbitmq(server.url)

    def _environment(self, contender: Contender, broker: str) -> dict[str, str]:
        return {
            **os.environ,
            "BENCH_URL": self._url(broker),
            "BENCH_SERVER_PID": str(self._server(broker).pid),
            "BENCH_OPTION": contender.option,
            "BENCH_CONFIRMS": "1" if contender.confirms else "0",
            "BENCH_RESULTS": "1" if contender.results else "0",
            "BENCH_STORE": self._url(contender.store) if contender.store else "",
            **dict(contender.variables),
        }

    def _url(self, broker: str) -> str:
        return self._server(broker).url

    def _server(self, broker: str) -> PrivateServer:
        if broker not in self._servers:
            server = self._open.enter_context(_made(broker))
            if broker == "postgresql":
                _make_tables(server.url)
            self._servers[broker] = server
        return self._servers[broker]


def _made(name: str) -> PrivateServer:
    if name == "redis":
        return PrivateRedis(appendonly=False)
    return PrivateRabbitMQ() if name == "amqp" else PrivatePostgreSQL()


def _make_tables(url: str) -> None:
    bridge = Bridge("inline://", store=url)
    store = bridge.store
    assert store is not None
    assert isinstance(store.backend, BackendWithTables)
    store.backend.init(timeout_s=_TABLES_S)
    bridge.close()


def _empty_rabbitmq(url: str) -> None:
    import pika  # here, for not everyone measures RabbitMQ

    connection: Any = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        native = [f"{_DRAMATIQ_QUEUES[0]}{end}" for end in ("", ".DQ", ".XQ")]
        for queue in (*_QUEUES, *native, _DRAMATIQ_QUEUES[1], *(f"bench.delay.{level}" for level in range(_LEVELS))):
            channel.queue_delete(queue)
    finally:
        connection.close()
