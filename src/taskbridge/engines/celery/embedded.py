"""The real Celery, embedded in one process: its worker runs in threads."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from celery.exceptions import WorkerShutdown
from celery.result import allow_join_result

from taskbridge import locks
from taskbridge.engines.base import Host
from taskbridge.engines.celery.carrier import Slots
from taskbridge.engines.celery.stock import ThreadsPool, WorkController, stock
from taskbridge.engines.worker_life import AFTER_GRACE_S
from taskbridge.exceptions import TaskBridgeError
from taskbridge.hooks import Event

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_LOOK_S: Final = 0.05

_START_S: Final = 30.0


class Pool(ThreadsPool):
    """Threads that run one worker's tasks, which Celery's own pool finds by a table that a process has once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor: Any = Slots(self.limit)
        self._abandoned = locks.Event()

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Have one of the user's own Celery tasks run."""
        return stock(super()).on_apply(target, args, {**(kwargs or {}), "app": self.app}, **options)

    def on_stop(self) -> None:
        """Wait until all tasks have ended, or those are abandoned that don't."""
        self.executor.shutdown(wait=False)
        while not self.executor.join(_LOOK_S) and not self._abandoned.is_set():
            pass

    def abandon(self) -> None:
        """Leave stuck tasks to themselves: what becomes of them changes nothing any more."""
        self._abandoned.set()


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
    app, ready = engine.native, locks.Event()

    def on_ready(_: Any) -> None:
        ready.set()

    with engine.life.embedding():
        host.hooks.call(Event(name="worker_started"))
        app.amqp.queues = app.amqp.Queues(app.conf.task_queues)  # without what a former worker was told to consume
        with allow_join_result():  # as before, when that is left: this is no process that only runs tasks
            controller = WorkController(
                app=app,
                pool=Pool,
                concurrency=threads,
                queues=list(queues) or None,
                hostname=f"{engine.settings.namespace}-{secrets.token_hex(4)}@{socket.gethostname()}",
                ready_callback=on_ready,
                without_heartbeat=True,
                task_events=False,
            )
        thread = threading.Thread(target=controller.start, name="taskbridge-celery-worker", daemon=True)
        thread.start()
        deadline = monotonic() + _START_S
        while not ready.wait(_LOOK_S):
            if not thread.is_alive() or monotonic() > deadline:
                raise TaskBridgeError("the embedded Celery worker did not start; its log says why")
        try:
            yield
        finally:
            _stop(engine, host, controller, thread)
            host.hooks.call(Event(name="worker_stopping"))


def _stop(engine: CeleryEngine, host: Host, controller: Any, thread: threading.Thread) -> None:
    """Take nothing new, let what runs finish, and interrupt it after the grace (rule A4)."""
    life = engine.life
    life.drain()
    controller.consumer.call_soon(_shut_down)
    thread.join(host.settings.grace_s)
    if thread.is_alive():
        host.stopping.set()
        life.runs.interrupt()
        thread.join(AFTER_GRACE_S)
    if thread.is_alive():
        controller.pool.abandon()
        life.unmark_all()
        thread.join(AFTER_GRACE_S)


def _shut_down() -> None:
    raise WorkerShutdown(0)
