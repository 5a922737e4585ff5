"""Tasks that use the database in all the ways there are, and tell in which thread and on which connection."""

from __future__ import annotations

import threading
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.db import connection, transaction

from taskbridge import RetryPolicy, around, on, task
from tests.django.site.shop.models import Order

NEVER: Final = RetryPolicy.never()
meeting: Final = threading.Barrier(2)  # a test that fails leaves it broken: reset it first
seen: Final[list[str]] = []  # what the hook and what is around runs have seen, in this process


@on("before_run")
def _note_hook(event: Any) -> None:
    task_name = event.message.task.rpartition(".")[2]
    seen.append(f"hook {task_name}")
    if task_name == "add":
        connection.cursor().execute("SELECT 1")


@around(task="*.ledger.*")
def _note_around(run: Any) -> Any:
    seen.append(f"around {run.task.rpartition('.')[2]}")
    yield


def _add_in_atomic(number: int) -> None:
    with transaction.atomic():
        Order.objects.create(number=number)


@task(retry=NEVER)
def add(number: int) -> None:
    Order.objects.create(number=number)


@task(retry=NEVER)
def add_in_atomic(number: int) -> None:
    _add_in_atomic(number)


@task(retry=NEVER)
async def add_async(number: int) -> None:
    await Order.objects.acreate(number=number)


@task(retry=NEVER)
async def add_in_atomic_async(number: int) -> None:
    await sync_to_async(_add_in_atomic)(number)


def _where() -> list[Any]:
    """Return the thread, and the connection that it has before anything is asked of the database, and after."""
    before = id(connection.connection) if connection.connection is not None else None
    connection.cursor().execute("SELECT 1")
    return [threading.current_thread().name, before, id(connection.connection)]


@task(retry=NEVER)
def where() -> list[Any]:
    return _where()


@task(retry=NEVER)
async def where_async() -> list[Any]:
    return list(await sync_to_async(_where)())


@task(retry=NEVER)
async def meet() -> int:
    """Return the thread of the ORM, once two of these runs have met in theirs."""

    def wait() -> int:
        meeting.wait(60)
        return threading.get_ident()

    return await sync_to_async(wait)()


@task(retry=NEVER)
async def count_async() -> int:
    return int(await Order.objects.acount())


@task(retry=NEVER)
def leave_atomic_open() -> None:
    transaction.atomic().__enter__()  # as a run does that is interrupted just as it leaves the block


@task(retry=NEVER)
def remember(number: int) -> None:
    assert caches["used"].get("number", number) == (number - 1 if number else 0)
    caches["used"].set("number", number)


@task(retry=NEVER)
def nothing() -> None:
    """Use no database."""
