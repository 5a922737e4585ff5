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
from taskbridge.engines.celery.carrier import Slots
from taskbridge.engines.celery.stock import ThreadsPool, WorkController, stock
from taskbridge.engines.worker_life import AFTER_GRACE_S, LOOK_S
from taskbridge.exceptions import TaskBridgeError

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine

_START_S: Final = 30.0


class Pool(ThreadsPool):
    """Threads that run one worker's tasks, which Celery's own pool finds by a table that a process has once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor: Any = Slots(self.limit)

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Have one of the user's own Celery tasks run."""
        return stock(super()).on_apply(target, args, {**(kwargs or {}), "app": self.app}, **options)

    def on_stop(self) -> None:
        """Wait until all tasks have ended, or those are abandoned that don't."""
        self.executor.shutdown(wait=False)
        while not self.executor.join(LOOK_S) and not self.app.engine.life.abandoned.is_set():
            pass


@contextmanager
def embedded_worker(engine: CeleryEngine, *, queues: Sequence[str], threads: int) -> Generator[None, None, None]:
    """Run a Celery worker in threads of this process while the block runs; the names of its queues are native.

    It touches neither signal handlers nor logging, nor what Celery keeps for all apps of the process. Raises
    `TaskBridgeError` if one of this bridge runs already, or it did not start.
    """
    app, life, ready = engine.native, engine.life, locks.Event()

    def on_ready(_: Any) -> None:
        ready.set()

    with life.embedding():
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
        life.started()
        thread = threading.Thread(target=controller.start, name="taskbridge-celery-worker", daemon=True)
        thread.start()
        deadline = monotonic() + _START_S
        try:
            while not ready.wait(LOOK_S):
                if not thread.is_alive() or monotonic() > deadline:
                    raise TaskBridgeError("the embedded Celery worker did not start; its log says why")
            yield
        finally:
            life.drain()
            controller.consumer.call_soon(_shut_down)
            thread.join(engine.settings.grace_s + 2 * AFTER_GRACE_S)
            life.stopping()


def _shut_down() -> None:
    raise WorkerShutdown(0)
