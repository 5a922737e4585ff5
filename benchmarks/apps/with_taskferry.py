"""taskferry, which puts one interface over both engines too; the engine and its worker are set as without it."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from taskferry import FunctionRegistry, Taskferry

from benchmarks.apps import work

_HERE: Final = "benchmarks.apps.with_taskferry"
_registry: Final[Any] = FunctionRegistry(allowed_modules=[_HERE])


def _celery() -> dict[str, Any]:
    from celery import Celery  # here, for each engine costs an import
    from taskferry_celery import register_dispatcher

    app: Any = Celery("bench", broker=work.URL)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_default_queue=work.QUEUE,
        broker_connection_retry_on_startup=True,
    )
    register_dispatcher(app, registry=_registry)
    return {"factory": "celery", "app": app}


def _dramatiq() -> dict[str, Any]:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from taskferry_dramatiq import build_dispatch_actor

    dramatiq.set_broker(RedisBroker(url=work.URL))
    return {"factory": "dramatiq", "actor": build_dispatch_actor(registry=_registry, queue_name=work.QUEUE)}


_ENGINES: Final = {"celery": _celery, "dramatiq": _dramatiq}
_backend: Final = _ENGINES[work.OPTION]()
app: Final[Any] = _backend.get("app")
_tasks: Final[Any] = Taskferry.from_mapping({"backends": {"engine": _backend}, "defaults": {"task": "engine"}}).tasks


def tick(payload: str) -> None:
    work.tick()


def mark_task(label: str, due_at: float) -> None:
    work.mark(label, due_at)


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        _tasks.submit(f"{_HERE}:tick", payload, queue=work.QUEUE)


def tick_batches(payload: str, size: int, times: int) -> None:
    tick_each(payload, size * times)  # it has no other way


def mark(label: str, delay_s: float) -> None:
    _tasks.submit(f"{_HERE}:mark_task", label, monotonic(), queue=work.QUEUE)
