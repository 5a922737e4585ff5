"""The engine: a Dramatiq broker of its own, in which each task is an actor."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from dramatiq import Worker
from dramatiq.middleware import CurrentMessage, Middleware, default_middleware

from taskbridge.declaration import Declaration
from taskbridge.engines.base import APP_VARIABLE, LEVEL_VARIABLE, Command, Host, WorkerOptions
from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.deliveries import Reception, TaskActor
from taskbridge.engines.dramatiq.wire import MemoryWire, native_queue
from taskbridge.engines.dramatiq.worker import DramatiqLife
from taskbridge.exceptions import DeclarationError

_SHUTDOWN_MS: Final = 1000
"""How long Dramatiq waits for its own threads, after all tasks have ended or were given up (see `DramatiqLife`)."""

_EMBEDDED_WAKE_MS: Final = 100  # how often idle threads of an embedded worker look whether it stops

_KEPT_VARIABLES: Final = ("dramatiq_prom_*", "dramatiq_group_callback_barrier_ttl")
"""The variables of Dramatiq's own that `taskbridge worker` leaves to its workers.

The others change a rule: `dramatiq_dead_message_ttl` makes RabbitMQ refuse a queue that another process has declared,
`dramatiq_restart_delay` and `dramatiq_worker_timeout` delay what has to be on time, the prefetch counts hold messages
that other workers could run (dramatiq/worker.py, brokers/rabbitmq.py). Kept are the Prometheus middleware's and that
of groups, which concern an application's own actors.
"""


class DramatiqEngine:
    """Dramatiq, joined to one bridge."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # It is no global one: name it where you declare actors of your own.
        self.native: Final = _broker(host, [*(each() for each in default_middleware), CurrentMessage()])
        self._life = DramatiqLife(host, self.native)
        self.native.add_middleware(self._life)
        self.native.reception = Reception(host, self.native, self._life.attempts)
        self.native.stopping = host.stopping
        self._booted = False
        self.declare_queues()

    def register(self, declaration: Declaration) -> None:
        """Declare the task's actor, and the queues that are known since.

        Raises `DeclarationError` if there is an actor of this name that is no task.
        """
        actors, name = self.native.actors, declaration.name
        if not isinstance(actors.get(name), TaskActor | None):
            raise DeclarationError(f"there is a Dramatiq actor {name!r} already; give the task another name")
        actors.pop(name, None)  # its module was imported twice
        queue = self._native_queue(self._host.queue_of(name))
        TaskActor(declaration, self._host, self.native, native_queue=queue, life=self._life)
        self.declare_queues()

    def declare_queues(self) -> None:
        """Declare every known queue, so that a worker which is told of none consumes all."""
        for queue in self._host.queues():
            self.native.declare_queue(self._native_queue(queue))

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        """Return Dramatiq's own command lines, one a process.

        If one process of several in a command dies, Dramatiq stops the others (dramatiq/cli.py, main).
        """
        queues = [self._native_queue(queue) for queue in options.queues]
        argv = [
            sys.executable,
            *("-m", "taskbridge.engines.dramatiq.command", "taskbridge.engines.dramatiq.main:broker"),
            *("--processes", "1"),
            *("--threads", str(options.threads)),
            *("--worker-shutdown-timeout", str(_SHUTDOWN_MS)),
            *(("--queues", *queues) if queues else ()),
            *(("--verbose",) if options.log_level.upper() == "DEBUG" else ()),
        ]
        env = {APP_VARIABLE: options.app, LEVEL_VARIABLE: options.log_level.upper(), **options.limits}
        return [Command(argv=tuple(argv), env=env, drops="dramatiq_", keeps=_KEPT_VARIABLES)] * options.processes

    @contextmanager
    def embedded_worker(self, *, queues: Sequence[str], threads: int) -> Generator[None, None, None]:
        """Run a Dramatiq worker in threads of this process while the block runs.

        Raises `TaskBridgeError` if one runs already: Dramatiq has one worker a process.
        """
        with self._life.embedding():
            if not self._booted:
                self._booted = True
                self.native.emit_after("process_boot")  # only Dramatiq's command line does it, and TimeLimit needs it
            names = {self._native_queue(queue) for queue in queues} or None
            worker = Worker(self.native, queues=names, worker_threads=threads, worker_timeout=_EMBEDDED_WAKE_MS)
            worker.start()
            try:
                yield
            finally:
                worker.stop(_SHUTDOWN_MS)
                # What the worker added has to go, or the next one would have two consumers a queue.
                added = [each for each in self.native.middleware if getattr(each, "worker", None) is worker]
                self.native.middleware[:] = [each for each in self.native.middleware if each not in added]

    def close(self) -> None:
        self.native.close()

    def _native_queue(self, queue: str) -> str:
        return native_queue(self._host.settings.namespace, queue)


def _broker(host: Host, middleware: list[Middleware]) -> EngineBroker:
    """Return a broker for the bridge's server; it connects when it is first used."""
    settings = host.settings
    kind = settings.url.broker  # imported below, for each needs a client library of its own
    if kind == "redis":
        from taskbridge.engines.dramatiq.redis_broker import LeveledRedisBroker

        return LeveledRedisBroker(settings, middleware)
    if kind == "amqp":
        from taskbridge.engines.dramatiq.rabbitmq_broker import SparingRabbitmqBroker

        return SparingRabbitmqBroker(settings, middleware)
    from taskbridge.engines.dramatiq.memory_broker import MemoryBroker

    wire = host.wire
    assert isinstance(wire, MemoryWire)
    return MemoryBroker(wire, middleware)


def make_engine(host: Host) -> DramatiqEngine:
    """Return Dramatiq as the engine of a bridge; the bridge registers its tasks."""
    return DramatiqEngine(host)
