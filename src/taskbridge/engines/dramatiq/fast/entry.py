"""Decides whether a worker takes the fast way, and puts it on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from queue import PriorityQueue
from typing import Any, Final

import dramatiq
from dramatiq import Worker
from dramatiq.worker import ConsumerThread, WorkerThread

from taskbridge.engines.dramatiq.broker import EngineBroker
from taskbridge.engines.dramatiq.fast.work import WorkQueue
from taskbridge.logs import logger

_log = logger("taskbridge.dramatiq")

TESTED: Final = ("2.0", "2.1", "2.2")  # the versions of Dramatiq with which this was tested

_RELIED_ON: Final[Mapping[Any, Sequence[str]]] = {
    Worker.stop: ("work_queue", "consumers", "requeue_messages"),
    WorkerThread.run: ("work_queue", "get", "process_message", "Empty"),
    WorkerThread.process_message: ("work_queue", "task_done", "consumers", "post_process_message"),
    ConsumerThread.handle_message: ("work_queue", "put", "get_actor", "delay_queue"),
}
"""The names that these functions of Dramatiq's have to use, for `WorkQueue` stands in for what they name."""


def enter(broker: EngineBroker, worker: Worker, *, is_wanted: bool) -> None:
    """Have a worker that has no threads yet take its messages the fast way, if the setting `fast` is on and it can."""
    problem = obstacle(worker) if is_wanted else "the setting fast is off"
    if problem is not None:
        _log.info("messages are taken the plain way: %s", problem)
        broker.work = None
        return
    inner: Any = worker
    inner.work_queue = broker.work = WorkQueue()


def obstacle(worker: Worker) -> str | None:
    """Return what keeps a worker from the fast way; None if nothing does."""
    version = dramatiq.__version__
    if ".".join(version.split(".")[:2]) not in TESTED:
        return f"Dramatiq {version} is none of the versions that were tested ({', '.join(TESTED)})"
    for function, names in _RELIED_ON.items():
        missing = set(names) - set(function.__code__.co_names)
        if missing:
            return f"Dramatiq's {function.__qualname__} does not use {', '.join(sorted(missing))} any more"
    if not isinstance(getattr(worker, "work_queue", None), PriorityQueue):
        return "the worker's queue is none of Dramatiq's own"
    return None
