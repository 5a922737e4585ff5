"""The engine of one process: background threads by default, or a virtual clock that the caller drives.

`inline://` runs messages in 4 daemon threads, which start with the first message; `inline://?threads=N` in N. With
`threads=0` nothing runs until `Bridge.run_until_idle()`, or inside `Bridge.embedded_worker()`. With `at_send=1`, `send`
runs all that waits and all that is parked before it returns; with `at_send=raise` it raises what a message died of.
What a task sends then runs after it, as on a worker with one slot.

Schedules are kept in `Bridge.run_schedules()` and inside `Bridge.embedded_worker()`, and nowhere else: a test that
moves the clock to the next retry is not to run what a schedule would have sent meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from math import inf
from time import monotonic
from typing import Final

from taskbridge import locks
from taskbridge.brokers.memory import MemoryBroker
from taskbridge.declaration import Declaration
from taskbridge.engines.base import INLINE_THREADS, Command, Host, WorkerOptions
from taskbridge.engines.pump import Pump
from taskbridge.engines.settle import not_settled, put_off_unknown, record_buried, run_and_settle, this_process
from taskbridge.engines.worker_life import AFTER_GRACE_S
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError, UnsupportedError
from taskbridge.hooks import Event
from taskbridge.logs import logger
from taskbridge.message import PRIORITIES, Message, loads
from taskbridge.retry import Dead, GivenBack, Interrupted
from taskbridge.runner import Runs
from taskbridge.schedules.sender import Scheduler, Ticker
from taskbridge.timelimit import raise_in_thread
from taskbridge.vitals import Vitals

_UNNOTICED_S: Final = 15.0
"""How far the clock may go between two calls of `run_schedules` without anything counting as missed."""

_MOST_RUNS: Final = 10_000  # how many runs there may be until a message is at its end that someone waits for
_log = logger("taskbridge.inline")

_errors: Final[ContextVar[list[BaseException] | None]] = ContextVar("taskbridge_errors", default=None)
"""What the messages died of that a `send` runs."""

_in_run: Final[ContextVar[bool]] = ContextVar("taskbridge_in_run", default=False)
"""Whether a task runs here; whoever runs it runs what it sends, too."""


class VirtualClock:
    """The system's time, in seconds since the epoch, until it is moved forward."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> float:
        """Return the system's time, plus what the clock was moved."""
        return time.time() + self._ahead_s

    def move_to(self, moment: float) -> None:
        """Move the clock forward to a time; never back."""
        self._ahead_s += max(0.0, moment - self.now())


class InlineWire:
    """The queues: what waits is text, in order of priority and then of arrival."""

    engine = "inline"

    def __init__(self) -> None:
        self.changed: locks.Condition = locks.Condition()
        self._waiting: dict[str, list[tuple[int, int, str]]] = {}
        self.is_paused: Callable[[Message], bool] = lambda _: False
        self.held: list[tuple[str, tuple[int, int, str]]] = []  # what is paused, each with its queue
        self._numbers = itertools.count()
        self._returns = itertools.count(-1, -1)

    def encode(self, message: Message) -> Message:
        return message

    def deliver(self, native: Message, *, returns: bool = False) -> None:
        """Put a message in its queue, as the last of its priority; as the first if it returns."""
        with self.changed:
            queue = self._waiting.setdefault(native.queue, [])
            rank = -PRIORITIES.index(native.priority)
            heapq.heappush(queue, (rank, next(self._returns if returns else self._numbers), native.dumps()))
            self.changed.notify_all()  # for who waits may serve other queues

    def take(self, queues: Sequence[str] | None) -> Message | None:
        """Return the next message of these queues, all if None, or None if none waits; priorities are a queue's own.

        Those that are paused are held until `release`.
        """
        with self.changed:
            names = self._waiting if queues is None else queues
            while heads := [(self._waiting[name][0][1], name) for name in names if self._waiting.get(name)]:
                name = min(heads)[1]  # of several queues, the one whose next message came first
                place = heapq.heappop(self._waiting[name])
                message = loads(place[2])
                if not self.is_paused(message):
                    return message
                self.held.append((name, place))
            return None

    def release(self) -> None:
        """Put what is held where it was: other queues or tasks are paused now."""
        with self.changed:
            for name, place in self.held:
                heapq.heappush(self._waiting[name], place)
            self.held.clear()
            self.changed.notify_all()

    def places(self, queue: str) -> Sequence[str]:
        return (queue,)

    def waiting(self, queue: str) -> int:
        with self.changed:
            return len(self._waiting.get(queue, ())) + sum(name == queue for name, _ in self.held)


class _Workers:
    """Threads that run what waits in some queues, all if None."""

    def __init__(self, engine: InlineEngine, queues: Sequence[str] | None, threads: int) -> None:
        self._engine = engine
        self._queues = queues
        self._stop = locks.Event()
        self.count: int = threads
        self._threads = [
            threading.Thread(target=self._work, name=f"{INLINE_THREADS}-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        self._engine.look_at_pauses()
        while not self._stop.is_set():
            message = self._engine.take(self._queues, self._stop)
            if message is not None:
                self._engine.run(message)

    def stop(self, grace_s: float) -> None:
        """Take nothing new, let what runs finish, and interrupt it after the grace (rule A4)."""
        self._stop.set()
        with self._engine.wire.changed:
            self._engine.wire.changed.notify_all()
        deadline = monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        late = [thread for thread in self._threads if thread.is_alive() and thread.ident is not None]
        for thread in late:
            raise_in_thread(thread.ident or 0, Interrupted)
        deadline = monotonic() + AFTER_GRACE_S
        for thread in late:
            thread.join(max(0.0, deadline - monotonic()))


def make_engine(host: Host) -> InlineEngine:
    """Return the engine of a bridge."""
    return InlineEngine(host)


class InlineEngine:
    """Runs messages in this process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.wire: InlineWire = InlineWire()  # the queues
        self.wire.is_paused = lambda message: host.pauses is not None and host.pauses.holds(message)
        self.clock: VirtualClock = VirtualClock()  # the virtual clock
        self.broker: MemoryBroker = MemoryBroker(host.settings, self.wire, self.clock.now)  # what is delayed and dead
        self._thread_count = host.settings.url.threads
        self._at_send = host.settings.url.at_send
        self._background: _Workers | None = None
        self._pump = Pump(host)
        self._scheduler = Scheduler(host)
        self._ticker: Ticker | None = None
        self._ticked_until = 0.0
        self._running = 0
        self._slots = 0  # of all threads that take messages
        self._stopping = 0
        host.is_stopping, host.cancellations.runs = lambda: self._stopping > 0, Runs()
        self.vitals: Vitals = Vitals(host, name=this_process, queues=host.queues, slots=lambda: self._slots or 1)
        self._driven = False
        self._lock = locks.Lock()

    @property
    def native(self) -> InlineEngine:
        return self

    def register(self, declaration: Declaration) -> None:
        """Do nothing: the bridge's own table is used."""

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        """Refuse: no other process can see this one's messages."""
        raise UnsupportedError(
            "workers", "inline://", "its messages run in the process that sends them; choose a broker to start workers"
        )

    # Threads that run messages

    def sent(self) -> None:
        """Run messages if that is to be done at once, or start the background threads if they don't run yet."""
        if self._at_send and not _in_run.get():
            errors: list[BaseException] = []
            copy_context().run(self._drive_for, errors)
            if errors and self._at_send == "raise":
                raise errors[0]
            return
        with self._lock:
            if self._thread_count == 0 or self._background is not None or self._driven:
                return
            self._background = _Workers(self, None, self._thread_count)
        self._start(self._background)

    def _drive_for(self, errors: list[BaseException]) -> None:
        _errors.set(errors)
        self._drive(_MOST_RUNS)

    @contextmanager
    def embedded_worker(self, *, queues: Sequence[str], threads: int) -> Generator[None, None, None]:
        workers = _Workers(self, list(queues) or None, threads)
        self._scheduler.start()
        self._start(workers)
        try:
            yield
        finally:
            self._scheduler.stop()
            self._end(workers)

    def close(self) -> None:
        with self._lock:
            background, self._background = self._background, None
        if background is not None:
            self._end(background)
        self.vitals.stop()

    def _start(self, workers: _Workers) -> None:
        with self._lock:
            self._slots += workers.count
        self._host.hooks.call(Event(name="worker_started"))
        self._pump.start()
        self._host.relay.start()
        self.vitals.start()
        workers.start()

    def _end(self, workers: _Workers) -> None:
        with self._lock:
            self._stopping += 1
        workers.stop(self._host.settings.grace_s)
        with self._lock:
            self._stopping -= 1
            self._slots -= workers.count
        self._host.hooks.call(Event(name="worker_stopping"))
        if not self._slots:  # else other threads go on
            self.vitals.stop()
            self._host.relay.stop()
            self._pump.stop()

    def take(self, queues: Sequence[str] | None, stop: threading.Event) -> Message | None:
        """Wait for a message and count it as running; None once `stop` is set."""
        with self.wire.changed:
            while not stop.is_set():
                message = None if self._driven else self.wire.take(queues)
                if message is not None:
                    self._running += 1
                    return message
                self.wire.changed.wait()
        return None

    def look_at_pauses(self) -> None:
        """Learn what is paused before messages are taken: senders wait while one is, so the store is not asked then."""
        if (pauses := self._host.pauses) is not None:
            pauses.on_change = self.wire.release
            if monotonic() >= pauses.old_at:
                pauses.begin()

    def run(self, message: Message) -> None:
        """Run a message that is counted as running; what it sets of context variables ends with it."""
        copy_context().run(self._run, message)

    def _run(self, message: Message) -> None:
        is_left, _ = False, _in_run.set(True)
        try:
            if not self._host.knows(message.task):
                put_off_unknown(self._host, message)
            else:
                verdict = run_and_settle(self._host, message)
                is_left = isinstance(verdict, GivenBack)
                errors = _errors.get()
                if errors is not None and isinstance(verdict, Dead) and verdict.error is not None:
                    errors.append(verdict.error)
        except (Exception, SystemExit) as exc:
            is_left = isinstance(not_settled(self._host, message, exc), GivenBack)
        except Interrupted:  # the grace ended between two bytecodes outside of the user's own
            is_left = True
        finally:
            with self.wire.changed:
                if is_left:
                    self.wire.deliver(message, returns=True)
                self._running -= 1
                self.wire.changed.notify_all()

    def tell(self) -> None:
        """Write what has run here until now, if anything has, where `Bridge.operations` reads it."""
        if self.vitals.is_counting:
            self.vitals.tell(at_once=True)

    # A caller that drives the clock

    def run_until_idle(self, max_runs: int) -> int:
        """Run what waits and what is parked in this thread; see `Bridge.run_until_idle`."""
        with self._driving():
            return self._drive(max_runs)

    def run_schedules(self, moment: float, max_runs: int) -> int:
        """Run what is due until then in this thread, by schedules too; see `Bridge.run_schedules`."""
        with self._driving():
            runs = self._drive(max_runs, ticker=self._driven_ticker(), until=moment)
            self._ticked_until = self.clock.now()
            return runs

    def _driven_ticker(self) -> Ticker:
        """Return the one that keeps to the virtual clock; what the clock has passed over without it was missed."""
        self._host.schedules.check()
        if self._ticker is None:
            self._ticker = Ticker(self._host, claimant="run_schedules", stall_s=inf)
        elif self.clock.now() - self._ticked_until > _UNNOTICED_S:
            self._ticker.lapse()
        return self._ticker

    @contextmanager
    def _driving(self) -> Generator[None, None, None]:
        """Keep the background threads from taking anything, once they have run what they took."""
        with self.wire.changed:
            self._driven = True
            while self._running:
                self.wire.changed.wait()
        try:
            yield
        finally:
            with self.wire.changed:
                self._driven = False
                self.wire.changed.notify_all()

    def run_until(self, done: Callable[[], bool]) -> bool:
        """Run what waits and what is parked in this thread until something is done, unless other threads run it.

        Returns whether nothing is left to run, in no thread; raises `TaskBridgeError` if it isn't done after 10,000
        runs.
        """
        with self._lock:
            if self._thread_count or self._slots:
                return False
        self._drive(_MOST_RUNS, done=done)
        with self.wire.changed:
            return not self._running

    def _drive(
        self,
        max_runs: int,
        *,
        done: Callable[[], bool] = lambda: False,
        ticker: Ticker | None = None,
        until: float = inf,
    ) -> int:
        """Run what waits, and what is parked as the clock comes to it, and return how many runs there were.

        It goes on until something is done, or nothing is left, or the clock would pass a time.
        """
        runs = 0
        self.vitals.attach()
        self.look_at_pauses()
        while True:
            look_at = inf if ticker is None else ticker.step()
            while not done() and (message := self._next()) is not None:
                if runs >= max_runs:
                    self.wire.deliver(message, returns=True)
                    raise TaskBridgeError(f"not idle after {max_runs} runs: does a task retry for ever?")
                with self.wire.changed:
                    self._running += 1
                self.run(message)
                runs += 1
            due = self.broker.next_due()
            at = look_at if due is None else min(due, look_at)
            if self.wire.held and self._host.pauses is not None:
                at = min(at, self._host.pauses.ends_at)
            if done() or at == until == inf:  # nothing is left
                return runs
            self.clock.move_to(min(at, until))
            if at > until:
                return runs

    def _next(self) -> Message | None:
        self.broker.promote_due(partial(record_buried, self._host))
        if self.wire.held and self._host.pauses is not None:
            with suppress(BrokerUnavailable):  # the last that is known holds
                self._host.pauses.look()
        message = self.wire.take(None)
        if message is None:
            self._host.relay.step()
            message = self.wire.take(None)
        return message
