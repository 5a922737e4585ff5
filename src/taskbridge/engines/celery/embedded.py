"""The real Celery, embedded in one process: its worker runs in threads."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from celery.exceptions import WorkerShutdown
from celery.result import allow_join_result

from taskbridge import locks
from taskbridge.engines.base import Host
from taskbridge.engines.celery.stock import BasePool, WorkController, apply_target
from taskbridge.exceptions import TaskBridgeError
from taskbridge.hooks import Event

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_LOOK_S: Final = 0.05

_AFTER_GRACE_S: Final = 1.0
"""How long interrupted tasks have to end before the worker ends without them."""

_START_S: Final = 30.0


class Pool(BasePool):
    """Threads that run one worker's tasks.

    Celery's own pool of threads finds its tasks by a table that all workers of a process share, and Python waits for
    its threads at exit, even for one that is stuck.
    """

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._work: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"taskbridge-celery-{number}", daemon=True)
            for number in range(self.limit)
        ]
        self._abandoned = locks.Event()

    def on_start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> None:
        """Have a task run."""
        self._work.put((target, args or (), {**(kwargs or {}), "app": self.app}, callback, accept_callback))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            target, args, kwargs, callback, accept_callback = work
            apply_target(target, args, kwargs, self._unless_abandoned(callback), accept_callback)

    def _unless_abandoned(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> None:
            if not self._abandoned.is_set():
                callback(*args, **kwargs)

        return call

    def on_stop(self) -> None:
        """Wait until all tasks have ended, or those are abandoned that don't."""
        for _ in self._threads:
            self._work.put(None)
        while any(thread.is_alive() for thread in self._threads) and not self._abandoned.wait(_LOOK_S):
            pass

    def abandon(self) -> None:
        """Leave stuck tasks to themselves: what becomes of them changes nothing any more."""
        self._abandoned.set()


class _Embedded:
    """A worker in threads of this process."""

    def __init__(self, engine: CeleryEngine, host: Host, queues: Sequence[str], threads: int) -> None:
        self._engine = engine
        self._host = host
        self._ready = locks.Event()
        app = engine.native
        app.amqp.queues = app.amqp.Queues(app.conf.task_queues)  # without what a former worker was told to consume
        with allow_join_result():  # as before, when that is left: this is no process that only runs tasks
            self._controller = WorkController(
                app=app,
                pool=Pool,
                concurrency=threads,
                queues=list(queues) or None,
                hostname=f"{engine.settings.namespace}-{secrets.token_hex(4)}@{socket.gethostname()}",
                ready_callback=self._on_ready,
                without_heartbeat=True,
                task_events=False,
            )
        self._thread = threading.Thread(target=self._controller.start, name="taskbridge-celery-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()
        deadline = monotonic() + _START_S
        while not self._ready.wait(_LOOK_S):
            if not self._thread.is_alive() or monotonic() > deadline:
                raise TaskBridgeError("the embedded Celery worker did not start; its log says why")

    def _on_ready(self, consumer: Any) -> None:
        self._ready.set()

    def stop(self) -> None:
        """Take nothing new, let what runs finish, and interrupt it after the grace (rule A4)."""
        life = self._engine.life
        life.drain()
        self._controller.consumer.call_soon(_shut_down)
        self._thread.join(self._host.settings.grace_s)
        if self._thread.is_alive():
            self._host.stopping.set()
            life.runs.interrupt()
            self._thread.join(_AFTER_GRACE_S)
        if self._thread.is_alive():
            self._controller.pool.abandon()
            life.unmark_all()
            self._thread.join(_AFTER_GRACE_S)


def _shut_down() -> None:
    raise WorkerShutdown(0)


@contextmanager
def embedded_worker(
    engine: CeleryEngine, host: Host, *, queues: Sequence[str], threads: int
) -> Generator[None, None, None]:
    """Run a Celery worker in threads of this process while the block runs.

    It touches neither signal handlers nor logging, nor what Celery keeps for all apps of the process.

    Args:
        engine: The engine.
        host: Its bridge.
        queues: The native names of the queues to consume; all if empty.
        threads: Tasks at a time.

    Raises:
        TaskBridgeError: One of this bridge runs already, or it did not start.
    """
    with engine.life.embedding():
        host.hooks.call(Event(name="worker_started"))
        worker = _Embedded(engine, host, queues, threads)
        worker.start()
        try:
            yield
        finally:
            worker.stop()
            host.hooks.call(Event(name="worker_stopping"))
