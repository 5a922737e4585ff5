"""The engine: what consumes. Imported only where tasks are run."""

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

from examples.own_engine.wire import Native, ThreadsWire
from taskbridge import DecodeError, Event, UnsupportedError
from taskbridge.declaration import Declaration
from taskbridge.engines.base import Command, Host, WorkerOptions
from taskbridge.engines.pump import Pump
from taskbridge.engines.settle import NotSettledError, bury_unreadable, put_off_unknown, run_and_settle
from taskbridge.exceptions import NewerFormError
from taskbridge.message import loads
from taskbridge.retry import GivenBack, Interrupted
from taskbridge.runner import Runs
from taskbridge.schedules.sender import Scheduler
from taskbridge.timelimit import raise_in_thread


class ThreadsEngine:
    """Threads that take messages from the wire's queues."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._wire: ThreadsWire = host.wire  # type: ignore[assignment]  # made by our own make_wire
        self._lock = threading.Lock()
        self._workers = 0
        self._stopping = 0  # of them, those that were told to stop
        host.is_stopping = lambda: self._stopping > 0  # what tasks are told
        host.cancellations.runs = Runs()  # what runs here, so that a task can be interrupted (CA3)

    @property
    def native(self) -> Any:
        """What `bridge.native` gives; there is nothing but ourselves."""
        return self

    def register(self, declaration: Declaration) -> None:
        """An engine with a table of its own would add the task to it here."""

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        raise UnsupportedError("workers", "threads+memory", "use bridge.embedded_worker()")

    @contextmanager
    def embedded_worker(self, *, queues: Sequence[str], threads: int) -> Generator[None, None, None]:
        names, stop = tuple(queues) or tuple(self._host.queues()), threading.Event()
        pump, scheduler = Pump(self._host), Scheduler(self._host)
        workers = [threading.Thread(target=self._work, args=(names, stop), daemon=True) for _ in range(threads)]
        self._host.hooks.call(Event(name="worker_started"))
        if self._host.pauses is not None:
            self._host.pauses.on_change = self._wire.look_again
            self._host.pauses.begin()  # what is paused is known before the first message is taken (Z1)
        pump.start()
        scheduler.start()
        with self._lock:
            self._workers += 1
            self._host.relay.start()  # all have the bridge's
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            scheduler.stop()
            with self._lock:
                self._stopping += 1
            stop.set()
            self._let_finish(workers)
            self._host.hooks.call(Event(name="worker_stopping"))  # after the last task: hooks close what tasks use (H)
            pump.stop()
            with self._lock:
                self._workers -= 1
                self._stopping -= 1
                if not self._workers:
                    self._host.relay.stop()

    def _let_finish(self, workers: Sequence[threading.Thread]) -> None:
        """Wait for what runs while the grace lasts, and then interrupt it, so that it is given back (A4, R8)."""
        with self._wire.changed:
            self._wire.changed.notify_all()
        deadline = monotonic() + self._host.settings.grace_s
        for worker in workers:
            worker.join(max(0.0, deadline - monotonic()))
        for worker in workers:
            if worker.is_alive() and worker.ident is not None:
                raise_in_thread(worker.ident, Interrupted)
        for worker in workers:
            worker.join(1.0)

    def _work(self, queues: Sequence[str], stop: threading.Event) -> None:
        while (native := self._wire.take(queues, stop, self._is_paused)) is not None:
            try:
                self._handle(native)
            except (NotSettledError, Interrupted):  # not acknowledged: it stays in its queue
                self._wire.deliver(native)
            # An engine with a broker of its own acknowledges here: after the verdict was carried out (A1).

    def _is_paused(self, queue: str) -> bool:
        return self._host.pauses is not None and queue in self._host.pauses.queues

    def _handle(self, native: Native) -> None:
        try:
            message = loads(native.data)
        except NewerFormError as exc:  # S8
            self._wait_for_newer_worker(native, exc)
        except DecodeError as exc:  # Q7
            self._bury(native, "undecodable", exc)
        else:
            if not self._host.knows(message.task):  # Q6
                put_off_unknown(self._host, message)
            elif isinstance(run_and_settle(self._host, message), GivenBack):  # R8
                self._wire.deliver(native)

    def _wait_for_newer_worker(self, native: Native, error: Exception) -> None:
        now = self._host.now()
        since = now if native.since is None else native.since
        if now - since < self._host.settings.unknown_task_grace_s:
            self._wire.deliver_later(replace(native, since=since), wait_s=1.0)
        else:
            self._bury(native, "unknown_task", error)

    def _bury(self, native: Native, reason: str, error: Exception) -> None:
        bury_unreadable(self._host, native.data, reason=reason, error=error, message_id=_id_in(native.data))

    def close(self) -> None:
        """Nothing is held open."""


def _id_in(data: bytes) -> object:
    """Return what a message that can't be read calls itself, so that its record can be ended; None if nothing."""
    try:
        read: Any = json.loads(data)
        return read["id"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return None


def make_engine(host: Host) -> ThreadsEngine:
    """Return the engine of a bridge."""
    return ThreadsEngine(host)
