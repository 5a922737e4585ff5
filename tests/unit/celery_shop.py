"""What hand-started workers load in the tests: `celery -A tests.unit.celery_shop worker`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import Any, get_args

from taskbridge import Bridge, DeadEntry, Discard, Event, RetryPolicy, current
from taskbridge.hooks import HookName

bridge = Bridge(queues=["vip"])


def note(what: str, *data: Any) -> None:
    with open(os.environ["SHOP_NOTES"], "a") as file:
        file.write(json.dumps([what, os.getpid(), *data]) + "\n")


@bridge.task
def add(x: int, y: int) -> None:
    request = app.current_task.request
    note("add", x, y)
    way = type(request).__module__
    note("request", way, request.id == current().id, request.called_directly, request.args, request.headers is not None)
    consumer = app.engine.consumer
    if consumer is not None and consumer.connection is not None:
        note("taken by the reader", getattr(consumer.connection.connection, "taken", None))


@bridge.task(retry=RetryPolicy(max_attempts=3, min_delay=0.1, jitter=0))
def fails() -> None:
    note("fails", current().attempt)
    raise ValueError("no")


@bridge.task(retry=RetryPolicy.never())
def quits() -> None:
    note("quits")
    raise SystemExit(3)


@bridge.task
def discards() -> None:
    note("discards")
    raise Discard("no need")


def work(seconds: float) -> None:
    """Take so long, or until the test has seen enough."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.path.exists(os.environ["SHOP_NOTES"] + ".enough"):
        time.sleep(0.02)


@bridge.task
def pay(card: str, seconds: float) -> str:
    note("pay", current().attempt)
    work(seconds)
    return card


@bridge.task
def long(seconds: float) -> None:
    note("long", current().id, current().attempt)
    try:
        work(seconds)
    except BaseException as exc:
        note("long ended", type(exc).__name__)
        raise
    note("long ended", "")


def _on(event: Event) -> None:
    note(event.name, event.message.task if event.message else None, event.reason)


for hook in get_args(HookName):
    if hook not in ("before_send", "after_send", "before_run"):
        bridge.on(hook)(_on)

app = bridge.native

if "SHOP_LISTENS" in os.environ:
    from celery import signals

    def _on_prerun(task_id: str, task: Any, args: Any, **_: Any) -> None:
        note("task_prerun", task.request.id == task_id, args)

    def _on_success(sender: Any, result: Any, **_: Any) -> None:
        note("task_success", sender.name, result)

    signals.task_prerun.connect(_on_prerun, weak=False)
    signals.task_success.connect(_on_success, weak=False)

if "SHOP_REFUSES" in os.environ:

    def _refuse(*_: Any) -> None:
        raise LookupError("not today")

    type(app.tasks[f"{__name__}.add"]).before_start = _refuse

if "SHOP_HIDES" in os.environ:

    @bridge.dead.redact
    def hide(entry: DeadEntry) -> DeadEntry:
        return replace(entry, args=("***",) * len(entry.args))


if "SHOP_TRUSTS" in os.environ:  # the first line of defence against deep nesting is gone
    from taskbridge.engines.celery import reading

    def _trusts(values: Any) -> bool:
        return False

    setattr(reading, "_is_too_deep", _trusts)  # noqa: B010 - a private name, which mypy and pyright would refuse

if "SHOP_DJANGO" in os.environ:  # as Celery's fixup does where DJANGO_SETTINGS_MODULE is set
    from celery import signals as celery_signals
    from celery.fixups.django import DjangoWorkerFixup

    class Fixup(DjangoWorkerFixup):  # type: ignore[misc]  # Celery has no types
        __module__ = DjangoWorkerFixup.__module__

        def __init__(self) -> None:
            """Take no Django: there is none."""

        def close_database(self, **_: Any) -> None:
            note("close_database", app.current_task is not None)

        def close_cache(self) -> None:
            note("close_cache")

    fixup = Fixup()
    celery_signals.task_prerun.connect(fixup.on_task_prerun)
    celery_signals.task_postrun.connect(fixup.on_task_postrun)
