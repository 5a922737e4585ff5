"""Looks after Django's connections around runs, as Django itself does around requests.

Before and after a run, connections that are too old or had an error are closed. One that is kept (`CONN_MAX_AGE`) is
checked as the next run first uses it, and replaced if it is unusable.

A function runs in a thread of the worker, and so does its ORM. A coroutine runs on an event loop, and the ORM calls
that it awaits run in the thread that asgiref chooses: here one that belongs to the thread which waits for the
coroutine. So coroutines that run at a time have a connection each, and keep it as functions do.

On `inline://`, messages may run in the thread that sends or drives them: in a request, or in a test's transaction. The
connections of that thread are its own affair. They are not touched, and the ORM calls of coroutines use them, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.core.cache import BaseCache, caches
from django.db import Error, connections
from django.db.backends.signals import connection_created
from django.utils.functional import SimpleLazyObject

from taskbridge import locks
from taskbridge.bridge import Bridge
from taskbridge.context import Context
from taskbridge.engines.base import INLINE_THREADS
from taskbridge.hooks import Event


def look_after(bridge: Bridge) -> None:
    """Look after Django's connections around the runs of a bridge; the app does it for the default bridge.

    Call it before hooks are added that use the database: those of `before_run` then find connections that work.
    """

    def is_own() -> bool:
        """Return whether this thread runs tasks and nothing else."""
        return bridge.settings.url.engine != "inline" or threading.current_thread().name.startswith(INLINE_THREADS)

    @bridge.on("before_run")
    def before(_: Event) -> None:
        if is_own():
            _tidy()
            _keep_caches()

    @bridge.around
    def around(_: Context) -> Iterator[None]:
        if not is_own():
            with _lent():
                yield
            return
        orm = _orm_thread()
        orm.begin(_tidy)
        try:
            yield
        finally:
            orm.end(_tidy)
            _tidy()
            for each in getattr(_mine, "used_caches", ()):  # unless `before` has failed
                each.close()

    connection_created.connect(_note_connected)
    os.register_at_fork(before=_close_pools)
    bridge.celery_fixups = ()  # Celery's own closes all connections around each task, whatever CONN_MAX_AGE says


_mine: Final = locks.Local()  # whether this thread has connected; its caches; the thread for its ORM


def _note_connected(**_: object) -> None:
    _mine.has_connected = True


def _tidy() -> None:
    """Close this thread's connections that are unusable or too old; have the others checked when they are next used."""
    if not hasattr(_mine, "has_connected"):
        return
    here: Sequence[Any] = connections.all(initialized_only=True)  # Any, for the stubs lack what health checks need
    for each in here:
        if each.allow_thread_sharing:  # another thread has lent it, and looks after it
            continue
        each.queries_log.clear()
        with suppress(Error):  # of closing it, after which it is forgotten all the same
            if each.in_atomic_block:  # a run was interrupted as it left the block, and nobody else will
                del connections[each.alias]
                each.close()
            else:
                each.close_if_unusable_or_obsolete()
                each.health_check_enabled = True  # until it connects anew


def _keep_caches() -> None:
    """Have the runs of this thread share caches, each made as it is first used: Django has them for each context."""
    if not hasattr(_mine, "caches"):
        used = _mine.used_caches = list[BaseCache]()

        def make(alias: str) -> BaseCache:
            used.append(caches.create_connection(alias))
            return used[-1]

        _mine.caches = {alias: SimpleLazyObject(partial(make, alias)) for alias in caches}
    kept: dict[str, Any] = _mine.caches  # lazy objects, which act as caches
    for alias, cache in kept.items():
        caches[alias] = cache


def _close_pools() -> None:
    """Close pools before a process forks, as Celery does: a child would share the connections that it inherits.

    Those that are in use are closed as they are given back, and the next use opens another pool.
    """
    here: Sequence[Any] = connections.all()  # Any, for only PostgreSQL's have pools
    for each in here:
        if hasattr(each, "close_pool"):
            each.close_pool()


class _OrmThread(ThreadPoolExecutor):
    """The thread for the ORM calls of the coroutines that another thread waits for. The first call starts it."""

    def __init__(self) -> None:
        super().__init__(1, "taskbridge-orm")
        self._before: Callable[[], object] | None = None

    def begin(self, before: Callable[[], object]) -> None:
        """Take the ORM calls of a run, and do something before the first one."""
        SyncToAsync.thread_sensitive_context.set(_mine.asgi)  # which ends with the run's own context
        self._before = before

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have something called."""
        before, self._before = self._before, None
        if before is not None:
            super().submit(before)
        return super().submit(function, *args, **kwargs)

    def end(self, after: Callable[[], object]) -> None:
        """Do something after the run, if it has called the ORM, and wait for that."""
        is_used, self._before = self._before is None, None
        if is_used:
            self.submit(after).result()


def _orm_thread() -> _OrmThread:
    """Return the thread that belongs to this one."""
    if not hasattr(_mine, "orm"):
        _mine.asgi, _mine.orm = ThreadSensitiveContext(), _OrmThread()
        SyncToAsync.context_to_thread_executor[_mine.asgi] = _mine.orm  # as long as this thread lives
    orm: _OrmThread = _mine.orm
    return orm


@contextmanager
def _lent() -> Generator[None]:
    """Let the ORM calls of coroutines use this thread's connections, which waits for them meanwhile."""
    orm, lent = _orm_thread(), connections.all()

    def take() -> None:
        for each in lent:
            connections[each.alias] = each

    def give_back() -> None:
        for each in lent:
            del connections[each.alias]

    # It may wait for a coroutine itself, as in async tests: asgiref 3.8 would send it these calls, too.
    caller, AsyncToSync.executors.current = getattr(AsyncToSync.executors, "current", None), None
    for each in lent:
        each.inc_thread_sharing()
    orm.begin(take)
    try:
        yield
    finally:
        orm.end(give_back)
        AsyncToSync.executors.current = caller
        for each in lent:
            each.dec_thread_sharing()
