"""Runs messages, the same on every engine: the only caller of user code, and what can interrupt it.

A run is stuck if its time limit is over, and most of the grace after it (or its hard limit), and it has not ended: it
is in a call into C that lets no exception through (rules T2 and T3). Some of these keep the interpreter's lock, such as
a search with a regular expression; then no thread of this process can do anything about it. So a thread in C is set
beside (`faulthandler`), which needs no lock: it writes where each thread is, and ends the process.
"""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable, Collection, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from taskbridge import codec, failures, locks, surroundings
from taskbridge.context import running
from taskbridge.declaration import Declaration
from taskbridge.exceptions import Cancelled, DecodeError, EncodeError, UnsupportedError, WorkerLost
from taskbridge.hooks import Event, Hooks
from taskbridge.message import Message
from taskbridge.observing import Observer, tell
from taskbridge.retry import (
    Become,
    CancelledVerdict,
    Dead,
    Discarded,
    Done,
    GivenBack,
    Interrupted,
    RetryPolicy,
    Verdict,
    judge,
)
from taskbridge.timelimit import limited, raise_in_thread

if TYPE_CHECKING:
    from taskbridge.surroundings import Surrounding

WATCH_S: Final = 0.5  # how often a worker process looks for runs that are stuck
ORDERLY_S: Final = 1.0  # how long a process that ends with a stuck run waits for its other runs to be interrupted
ENDS_S: Final = ORDERLY_S + 1.5  # how long it may take to end in order: then it has also given back what else it holds
_STDERR: Final = 2  # the file descriptor; Celery puts something in the place of `sys.stderr` that has none


def _hears_nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runner:
    """Runs the messages of one task in the thread that calls it.

    Attributes:
        declaration: The task; None if it is not declared here (rule S9).
        policy: Its retry policy.
        hooks: Told before each run.
        now: Returns the time, in seconds since the epoch.
        most_bytes: How large an encoded result may be; None if results are not recorded.
        is_cancelled: Returns whether a message that runs was cancelled.
        is_stopping: Returns whether the worker was told to stop.
        report: Is told how far a run has come: its message, how much is done, of how much, and a note.
        around: What the application has around its runs, the outermost first.
        longest_s: After how many seconds a run is stuck.
        observers: Told of each run.
        members: Returns results of a group: of a flow, a stage, from one on, so many; None if nobody knows them.
    """

    declaration: Declaration | None
    policy: RetryPolicy
    hooks: Hooks
    now: Callable[[], float]
    most_bytes: int | None
    is_cancelled: Callable[[Message], bool]
    is_stopping: Callable[[], bool] = bool
    report: Callable[[Message, float, float | None, str], object] = _hears_nothing
    around: tuple[Surrounding, ...] = ()
    longest_s: float = inf
    observers: Sequence[Observer] = ()
    members: Callable[[str, int, int, int], Sequence[Any]] | None = None

    def run(self, message: Message) -> Verdict:
        """Run a message's task once, if it may still start, and return the verdict; raises nothing."""
        if not self.observers:
            return self._verdict(message)
        started_at, began = self.now(), monotonic()
        tell(self.observers, "running", message, started_at)
        verdict = self._verdict(message)
        tell(self.observers, "ran", message, verdict, started_at, monotonic() - began)
        return verdict

    def _verdict(self, message: Message) -> Verdict:
        declaration = self.declaration
        if declaration is None:
            return Dead("unknown_task")
        if message.expires_at is not None and self.now() > message.expires_at:
            return Discarded("expired")
        try:
            args, kwargs = declaration.fitted(*message.arguments(), message.form)
        except DecodeError as exc:
            return Dead("undecodable", exc)
        except TypeError as exc:
            return Dead("bad_arguments", exc)
        token = running.set((message, self))
        try:
            if self.hooks.of["before_run"]:
                arguments_of = partial(declaration.arguments_of, message)  # not those that the function gets
                self.hooks.call(Event(name="before_run", message=message, arguments_of=arguments_of))
            value = self._call(declaration, args, kwargs)
            if type(value) is CoroutineType:
                value.close()
                raise TypeError(
                    f"task {declaration.name!r} returned a coroutine, which nobody awaits: make it async def"
                )
            if type(value) is Become and self.most_bytes is None:
                raise UnsupportedError("W15", "this bridge", "become needs a store, and a task without results=False")
        except BaseException as exc:  # SystemExit and its like are the task's failures too (rule R2)
            return judge(self.policy, attempt=message.attempt, message_id=message.id, error=exc)
        finally:
            running.reset(token)
        done = self._done(value)
        if done.problem and message.flow and "r" in message.flow.split(" ", 4)[3]:  # what follows can't have it
            return Dead("gave_up", EncodeError("result", done.problem))
        return done

    def _call(self, declaration: Declaration, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if declaration.time_limit_s is None:
            return self._call_inside(declaration, args, kwargs)
        with limited(declaration.time_limit_s):
            return self._call_inside(declaration, args, kwargs)

    def _call_inside(self, declaration: Declaration, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call the function, with what is around it."""
        if self.around:
            call = partial(declaration.function, *args, **kwargs)
            is_coroutine = declaration.is_coroutine  # in a context of its own: what is set there ends with the run
            return copy_context().run(surroundings.call, self.around, call, is_coroutine=is_coroutine)
        if not declaration.is_coroutine:
            return declaration.function(*args, **kwargs)
        return surroundings.run_coroutine(partial(declaration.function, *args, **kwargs))

    def _done(self, value: object) -> Done:
        """Return that the task returned, whether its result can be recorded or not (rule RS3)."""
        if self.most_bytes is None or value is None or type(value) is Become:
            return Done(value, None if self.most_bytes is None else "null")
        try:
            hints = None if self.declaration is None else self.declaration.hints
            encoded = codec.dumps(value if hints is None else hints.result.sent(value, "result"), "result")
        except (Exception, SystemExit) as exc:  # mostly EncodeError; a timezone of the user's own may raise anything
            return Done(value, problem=failures.text_of(exc) or failures.type_of(type(exc)))
        if len(encoded) > self.most_bytes:
            return Done(value, problem=f"it has {len(encoded)} bytes, more than max_message_bytes = {self.most_bytes}")
        return Done(value, encoded)

    def judge_lost(self, message: Message) -> Verdict:
        """Return what becomes of a message whose attempt died with its worker (rule A5)."""
        if self.declaration is None:
            return Dead("unknown_task")
        error = WorkerLost(f"the worker that ran attempt {message.attempt} is gone")
        return judge(self.policy, attempt=message.attempt, message_id=message.id, error=error)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A message that runs; what holds it, as its engine knows it; when it began and is stuck, both monotonic."""

    message: Message
    holder: Any
    began: float
    is_stuck_at: float


class Runs:
    """What runs in the threads of this process.

    Attributes:
        ends_process: Says whether this process is a worker's own, so that it may be ended with a run that is stuck.
        on_end: Called after each run, if there is anything to be done then.
    """

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._running: dict[int, Run] = {}
        self._interrupted: set[int] = set()
        self._cancelled: set[int] = set()
        self._is_over = False
        self._armed_for = inf
        self.ends_process: Callable[[], bool] = lambda: False
        self.on_end: Callable[[], object] | None = None

    def open(self) -> None:
        """Let tasks run: a worker starts."""
        with self._lock:
            self._is_over = False
            self._interrupted.clear()

    def all(self) -> list[Run]:
        """Return what runs now."""
        with self._lock:
            return list(self._running.values())

    def stuck(self) -> list[Run]:
        """Return what should have ended long ago."""
        now = monotonic()
        return [run for run in self.all() if run.is_stuck_at <= now]

    def run(self, task: Runner, message: Message, *, holder: Any = None) -> Verdict:
        """Run a message in this thread; return the verdict, or `GivenBack` if the worker's end interrupts it."""
        thread, began = threading.get_ident(), monotonic()
        verdict: Verdict = GivenBack()
        try:
            if self._enter(thread, Run(message, holder, began, began + task.longest_s)):
                try:
                    verdict = task.run(message)
                finally:
                    self._leave(thread)
        except (Interrupted, Cancelled) as exc:  # it may arrive outside the task's own code, which the runner can't see
            self._leave(thread)  # which it may have kept from being done, and this too
            running.set(None)
            if isinstance(exc, Cancelled) and isinstance(verdict, GivenBack):
                verdict = CancelledVerdict(error=exc)
        if self.on_end is not None:
            self.on_end()
        return verdict

    def _enter(self, thread: int, run: Run) -> bool:
        with self._lock:
            if not self._is_over:
                self._running[thread] = run
                if run.is_stuck_at < self._armed_for:
                    self._arm()
            return not self._is_over

    def _leave(self, thread: int) -> None:
        with self._lock:
            run = self._running.pop(thread, None)
            if run is not None and run.is_stuck_at == self._armed_for != inf:
                self._arm()
            if thread in self._interrupted or thread in self._cancelled:
                self._cancelled.discard(thread)
                raise_in_thread(thread, None)

    def _arm(self) -> None:
        """Have the process ended by a thread in C, a little after its own threads should have done so."""
        first = min((run.is_stuck_at for run in self._running.values()), default=inf)
        if first == self._armed_for or not self.ends_process():
            return
        self._armed_for = first
        if first == inf:
            faulthandler.cancel_dump_traceback_later()
        else:
            in_s = max(0.0, first - monotonic()) + ORDERLY_S
            faulthandler.dump_traceback_later(in_s, exit=True, file=_STDERR)

    def allow(self, in_s: float) -> None:
        """Give the process so many seconds from now: its own threads are about to end it, and the thread in C waits."""
        with self._lock:
            if self.ends_process():
                self._armed_for = -inf  # whatever ends or begins from here on changes nothing
                faulthandler.dump_traceback_later(in_s, exit=True, file=_STDERR)

    def cancel(self, run: Run) -> None:
        """Raise `Cancelled` in a task that runs, unless it has ended or that was done before."""
        with self._lock:
            for thread, each in self._running.items():
                if each is run and thread not in self._cancelled and thread not in self._interrupted:
                    self._cancelled.add(thread)
                    raise_in_thread(thread, Cancelled)

    def interrupt(self, *, but: Collection[Run] = ()) -> None:
        """Raise `Interrupted` in every thread that runs a task, and let no other task start."""
        with self._lock:
            self._is_over = True
            for thread, run in self._running.items():
                if run not in but and thread not in self._interrupted:
                    self._interrupted.add(thread)
                    raise_in_thread(thread, Interrupted)


def longest_s(declaration: Declaration | None, grace_s: float) -> float:
    """Return after how many seconds a run of a task is stuck; infinite if it may take any time (rules T2 and T3).

    If no hard limit says so, its process is to have ended when the grace after its time limit is over.
    """
    if declaration is None or declaration.time_limit_s is None:
        return inf
    if declaration.hard_time_limit_s is not None:
        return declaration.hard_time_limit_s
    return declaration.time_limit_s + max(grace_s - WATCH_S - ENDS_S, grace_s / 2)
