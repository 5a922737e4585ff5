"""The contract's tasks: they do as they are told, and write down what happens."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Final, cast, get_args

from taskbridge import Bridge, Context, Discard, Event, ResultInTask, Retry, RetryPolicy, Task, Unique, become, current
from taskbridge.contract.flow_plan import FlowTasks, Part, told
from taskbridge.contract.odd_errors import ODD_ERRORS
from taskbridge.contract.probe import END, START, Probe
from taskbridge.contract.program import ERRORS, POLICIES, PermanentError, Step, TransientError
from taskbridge.contract.typed import Doubled, Nested, parcel
from taskbridge.hooks import HookName

PROBE_FILE: Final = "probe.jsonl"
"""The probe's file in the folder of an environment; the gates are files beside it."""

QUEUES: Final = ("contract", "left", "right", "vip", "routed", "decorated", "urgent")
"""Every queue that scenarios use."""

PRIORITIES: Final = "urgent"
"""The one that keeps priorities on every RabbitMQ: it is a classic queue, whatever type the others are."""

ROUTES: Final = (("contract.routed.*", "routed"), ("contract.routed.first", "left"))
"""Every route that scenarios use; the second is never reached."""

FAIL_HOOKS: Final = "fail-hooks"
"""A message with this header makes a hook of each name fail."""

STAMP: Final = "stamp"
"""A message with this header gets another one from a `before_send` hook, `stamped`."""

TELL: Final = "tell"
"""Of a message with this header, hooks write down the arguments and the form."""

DEBOUNCE_S: Final = 3.5
AT_MOST_S: Final = 4.5
"""How long after the latest send a debounced message starts, and how long after the first one at most."""


def _by_key(_: object, key: object, mark: str = "") -> dict[str, object]:
    return {"key": key}


UNIQUE: Final[Mapping[str, Unique]] = {
    "skip": Unique("key"),
    "raise": Unique(_by_key, on_conflict="raise"),
    "replace": Unique("key", on_conflict="replace"),
    "after": Unique("key", on_conflict="after"),
    "start": Unique("key", until="start"),
    "debounced": Unique("key", debounce=DEBOUNCE_S, at_most=AT_MOST_S),
}
"""What makes the messages of unique tasks the same, by the names of these tasks."""

LATE: Final = "contract.late"
"""The task that some workers do not know."""

OUTLASTED: Final = "outlasted"
"""The kind of record that the thread writes which the task `contract.around` leaves behind, when its gate is opened."""

MATCHED: Final = "matched"
"""The kind of record that a hook writes which is only for tasks called `contract.surrounded*`."""

AROUND: Final = "around"
"""What a message of a task with something around its runs has in this header, the second of that does: see `_inner`."""

TOO_MUCH: Final = 10_000_000
"""How large a result is that is refused, in bytes."""

_STUCK: Final[Mapping[str, Callable[[], object]]] = {
    "sleep": lambda: time.sleep(1000),
    "search": lambda: re.fullmatch("(a+)+b", "a" * 60),  # longer than the universe is old
}

_LONG_S: Final = 5.0
_POLL_S: Final = 0.02
_LONGEST_HOLD_S: Final = 120.0

_tag: ContextVar[str] = ContextVar("contract_tag", default="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """How the tasks of one worker differ from those of another.

    Attributes:
        late: Whether it knows the task `contract.late`.
        changing: How many attempts the task `contract.changing` has.
        narrow: Whether the task `contract.narrowed` has a parameter less, and the class of `contract.reshaped` a field.
        logs: Whether it sets up logging of its own.
        dies: Where the worker kills itself or an error is raised, by the name of a place in
            `taskbridge.contract.deaths`; empty for nowhere.
        schedules: What `Tasks.declare_schedules` is given.
        ahead_s: By how much its machine's clock is fast.
        strangers: The names of further tasks that it knows.
    """

    late: bool = True
    changing: int = 5
    narrow: bool = False
    logs: bool = False
    dies: str = ""
    schedules: Sequence[Mapping[str, Any]] = ()
    ahead_s: float = 0.0
    strangers: Sequence[str] = ()

    def dumps(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))


def describe(value: object) -> str:
    """Return a value with the types of all that is in it, so that equal text means equal and of the same type."""
    kind = type(value).__name__
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return f"{kind}({', '.join(f'{describe(key)}: {describe(item)}' for key, item in pairs)})"
    if isinstance(value, (list, tuple)):
        return f"{kind}({', '.join(describe(item) for item in cast('list[object]', value))})"
    if isinstance(value, (set, frozenset)):
        return f"{kind}({', '.join(sorted(describe(item) for item in cast('set[object]', value)))})"
    return f"{kind}:{value!r}"


def plain_context(context: Context) -> dict[str, Any]:
    """Return what a task may know of itself, as JSON holds it."""
    error = context.previous_error
    return {
        "id": context.id,
        "task": context.task,
        "queue": context.queue,
        "priority": context.priority,
        "attempt": context.attempt,
        "max_attempts": context.max_attempts,
        "enqueued_at": context.enqueued_at.timestamp(),
        "zone": str(context.enqueued_at.tzinfo),
        "headers": dict(context.headers),
        "previous_error": None if error is None else [error.type, error.message],
    }


class Tasks:
    """Every task of the contract, declared on one bridge.

    Args:
        bridge: The bridge.
        folder: Where the probe's file and the gates are.
        variant: What this worker's tasks are like.
        now: Returns the time that the probe notes, in seconds since the epoch; the bridge's by default.

    Attributes:
        programs: By the name of their policy.
        unique: By the name of what makes their messages the same.
        parts: Those of which flows are made, by the name of their policy.
    """

    def __init__(
        self,
        bridge: Bridge,
        folder: Path,
        variant: Variant | None = None,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._bridge = bridge
        self._folder = folder
        self._imported_in = os.getpid()
        self.probe: Probe = Probe(folder / PROBE_FILE, bridge.now if now is None else now)
        chosen = Variant() if variant is None else variant
        self.programs: Mapping[str, Task[[list[dict[str, Any]]], str]] = {
            name: bridge.task(name=f"contract.program.{name}", retry=policy)(self._program)
            for name, policy in POLICIES.items()
        }
        twice = RetryPolicy(max_attempts=2, min_delay=0.3, jitter=0)
        self.unique: Mapping[str, Task[..., str]] = {
            name: bridge.task(name=f"contract.unique.{name}", retry=twice, unique=unique)(self._keyed)
            for name, unique in UNIQUE.items()
        }
        self.parts: FlowTasks = {
            name: bridge.task(name=f"contract.part.{name}", retry=POLICIES[name])(self._part)
            for name in ("once", "twice")
        }
        self.counted: Final = bridge.task(name="contract.counted")(_counted)
        self.default: Final = bridge.task(name="contract.program.default")(self._program)
        self.unrecorded: Final = bridge.task(name="contract.program.unrecorded", results=False)(self._program)
        self.decorated: Final = bridge.task(name="contract.decorated", queue="decorated")(self._program)
        self.routed: Final = bridge.task(name="contract.routed.first", queue="decorated")(self._program)
        self.urgent: Final = bridge.task(name="contract.urgent", queue=PRIORITIES, priority="high")(self._program)
        self.expiring: Final = bridge.task(name="contract.expiring", expires=0.5)(self._program)
        self.limited: Final = bridge.task(
            name="contract.limited", time_limit=0.5, retry=RetryPolicy(max_attempts=2, min_delay=0.1)
        )(self._program)
        self.coroutine: Final = bridge.task(
            name="contract.coroutine", time_limit=30, retry=RetryPolicy(max_attempts=2, min_delay=0.1)
        )(self._coroutine)
        self.limited_coroutine: Final = bridge.task(
            name="contract.limited_coroutine", time_limit=0.5, retry=RetryPolicy(max_attempts=2, min_delay=0.1)
        )(self._coroutine)
        self.meeting: Final = bridge.task(name="contract.meeting")(self._meeting)
        self.echo: Final = bridge.task(name="contract.echo", retry=RetryPolicy.never())(self._echo)
        self.awkward: Final = bridge.task(name="contract.awkward")(self._awkward)
        self.returning: Final = bridge.task(name="contract.returning", retry=RetryPolicy.never())(self._returning)
        self.odd: Final = bridge.task(name="contract.odd", retry=RetryPolicy(max_attempts=2, min_delay=0.1))(self._odd)
        self.asking: Final = bridge.task(name="contract.asking", retry=RetryPolicy.never())(self._asking)
        self.around: Final = bridge.task(name="contract.around")(self._around)
        self.silent: Final = bridge.task(name="contract.silent", results=False)(self._silent)
        self.process: Final = bridge.task(name="contract.process", retry=RetryPolicy.never())(self._process)
        self.hard_limited: Final = bridge.task(
            name="contract.hard_limited",
            time_limit=0.3,
            hard_time_limit=1,
            retry=RetryPolicy(max_attempts=2, min_delay=0.1),
        )(self._program)
        self.telling: Final = bridge.task(
            name="contract.telling", retry=RetryPolicy(max_attempts=2, min_delay=0.1, jitter=0)
        )(self._telling)
        self.telling_once: Final = bridge.task(name="contract.telling_once", retry=RetryPolicy.never())(self._telling)
        self.telling_nobody: Final = bridge.task(
            name="contract.telling_nobody", retry=RetryPolicy.never(), results=False
        )(self._telling)
        around: list[Any] = [self._inner, self._inner_async]
        twice = RetryPolicy(max_attempts=2, min_delay=0.1)
        self.surrounded: Final = bridge.task(name="contract.surrounded", around=around, retry=twice)(self._surrounded)
        self.surrounded_coroutine: Final = bridge.task(
            name="contract.surrounded.coroutine", around=around, retry=twice
        )(self._surrounded_coroutine)
        bridge.around(task="contract.surrounded*")(self._outer)
        self.narrowed: Task[..., None] = self.declare_narrowed(narrow=chosen.narrow)
        self.typed: Final = bridge.task(name="contract.typed", retry=RetryPolicy.never())(self._typed)
        self.reshaped_class: Any = None
        self.reshaped: Task[..., None] = self.declare_reshaped(narrow=chosen.narrow)
        self.changing: Task[[list[dict[str, Any]]], str] = self.declare_changing(chosen.changing)
        self.late: Task[[list[dict[str, Any]]], str] | None = self.declare_late() if chosen.late else None
        self.declare_schedules(chosen.schedules)
        for name in chosen.strangers:
            self.declare_stranger(name)
        self._declare_hooks()

    def declare_narrowed(self, *, narrow: bool) -> Task[..., None]:
        """Declare the task whose signature changes while messages for it are on their way, perhaps again."""

        def run(*values: int) -> None:
            self._note_run()

        names = ("a",) if narrow else ("a", "b")
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        cast("Any", run).__signature__ = Signature(parameters)
        return self._bridge.task(name="contract.narrowed")(run)

    def declare_reshaped(self, *, narrow: bool) -> Task[..., None]:
        """Declare the task whose argument's class changes while messages for it are on their way, perhaps again."""
        self.reshaped_class = parcel("a") if narrow else parcel("a", "b")

        def run(parcels: Any) -> None:
            self._note_run()

        cast("Any", run).__annotations__["parcels"] = cast("Any", list)[self.reshaped_class]
        return self._bridge.task(name="contract.reshaped")(run)

    def _note_run(self) -> None:
        context = current()
        self._started(context)
        self._ended(context, "returned")

    def declare_changing(self, max_attempts: int) -> Task[[list[dict[str, Any]]], str]:
        """Declare the task whose policy changes, perhaps again."""
        policy = RetryPolicy(max_attempts=max_attempts, min_delay=0.3, jitter=0)
        return self._bridge.task(name="contract.changing", retry=policy)(self._program)

    def declare_late(self) -> Task[[list[dict[str, Any]]], str]:
        """Declare the task that some workers do not know."""
        return self._bridge.task(name=LATE)(self._program)

    def declare_schedules(self, schedules: Sequence[Mapping[str, Any]]) -> None:
        """Declare schedules by the options of `Bridge.periodic`, and `gate`: what is sent waits until it is open."""
        for schedule in schedules:
            options: dict[str, Any] = {"gate": "", **schedule}
            step = Step(gate=options.pop("gate"))
            self._bridge.periodic(self.programs["once"].call([step.plain()]), **options)

    def declare_stranger(self, name: str) -> Task[[list[dict[str, Any]]], str]:
        """Declare a task that was not known before."""
        return self._bridge.task(name=name)(self._program)

    def open(self, gate: str) -> None:
        """Let the steps go on that wait for this gate."""
        self._gate(gate).touch()

    def _gate(self, name: str) -> Path:
        return self._folder / f"{name}.gate"

    # What is around runs

    def _outer(self, run: Context) -> Iterator[None]:
        with self._surrounding("outer", run):
            yield

    def _inner(self, run: Context) -> Iterator[None]:
        """Do as the header `AROUND` says: refuse the run, swallow or replace its error, or nothing."""
        wanted = run.headers.get(AROUND)
        if wanted == "refuse":
            raise PermanentError("there is no such tenant")
        try:
            with self._surrounding("inner", run):
                yield
        except ValueError as exc:
            if wanted == "replace":
                raise TransientError("in the place of another") from exc
            if wanted != "swallow":
                raise

    async def _inner_async(self, run: Context) -> AsyncIterator[None]:
        before = _tag.set(f"around {run.attempt}")
        await asyncio.sleep(0)
        with self._surrounding("async", run):
            yield
        _tag.reset(before)

    @contextmanager
    def _surrounding(self, name: str, run: Context) -> Generator[None]:
        about: dict[str, Any] = {"id": run.id, "attempt": run.attempt}
        self.probe.write(f"{name} in", **about, note=run.arguments["note"])
        ending = "returned"
        try:
            yield
        except BaseException as exc:
            ending = type(exc).__name__
            raise
        finally:
            self.probe.write(f"{name} out", **about, ending=ending)

    # What the tasks do

    def _surrounded(self, steps: list[dict[str, Any]], note: str = "none") -> str:
        context = current()
        self._started(context, tag=_tag.get())
        try:
            _end(Step.of(steps, context.attempt))
        finally:
            self._ended(context, "returned", note=note)
        return f"result of {context.id}"

    async def _surrounded_coroutine(self, steps: list[dict[str, Any]], note: str = "none") -> str:
        return self._surrounded(steps, note)

    def _telling(self, gate: str) -> None:
        """Tell more and more of how far it has come: at first, much at once when a gate is open, and as it ends."""
        context = current()
        self._started(context)
        try:
            if context.attempt > 1:
                self._pass(f"{gate} again")
                return context.progress(done=4, total=4)
            context.progress(done=1, total=4, note="the first")
            self._pass(gate)
            for number in range(200):
                context.progress(done=2 + number / 1000)
            raise ValueError("the first attempt")
        finally:
            self._ended(context, "ended")

    def _keyed(self, steps: list[dict[str, Any]], key: str, mark: str = "") -> str:
        return self._program(steps, key=key, mark=mark)

    def _program(self, steps: list[dict[str, Any]], **data: Any) -> str:
        context = current()
        step = Step.of(steps, context.attempt)
        self._started(context, **data)
        ending = "returned"
        try:
            self._perform(step)
        except BaseException as exc:
            ending = type(exc).__name__
            raise
        finally:
            if step.cleanup_s:
                time.sleep(step.cleanup_s)
            self._ended(context, ending)
        return f"result of {context.id}"

    def _part(self, given: Any, part: dict[str, Any]) -> object:
        """Do what a part of a flow says, and tell what it was given."""
        context, plan = current(), Part.of(part)
        self._started(context, mark=plan.mark, given=told(given))
        ending = "returned"
        try:
            if not (plan.heals and self._gate(plan.heals).exists()):
                self._perform(Step.of(part["steps"], context.attempt))
        except BaseException as exc:
            ending = type(exc).__name__
            raise
        finally:
            self._ended(context, ending, mark=plan.mark)
        return plan.mark if plan.becomes is None else become(plan.becomes.built(self.parts))

    async def _coroutine(self, steps: list[dict[str, Any]]) -> str:
        context = current()
        step = Step.of(steps, context.attempt)
        self._started(context)
        ending = "returned"
        try:
            await asyncio.sleep(step.sleep_s)
            _end(step)
        except BaseException as exc:
            ending = type(exc).__name__
            raise
        finally:
            if step.cleanup_s:
                await asyncio.sleep(step.cleanup_s)
            self._ended(context, ending)
        return f"result of {context.id}"

    async def _meeting(self, gate: str) -> None:
        """Wait with others on the loop, and tell what is still known afterwards, here and in a task of its own."""
        context = current()
        self._started(context, tag=_tag.get(), loop=id(asyncio.get_running_loop()))
        _tag.set(f"{context.id} in the coroutine")
        deadline = time.monotonic() + _LONGEST_HOLD_S
        while not self._is_open(gate, deadline):
            await asyncio.sleep(_POLL_S)
        in_task = await asyncio.create_task(_look())
        self._ended(context, "returned", tag=_tag.get(), in_task=in_task)

    def _echo(self, /, *values: Any, **named: Any) -> None:
        context = current()
        self._started(context, values=[describe(value) for value in values], named=describe(named))
        self._ended(context, "returned")

    def _typed(self, value: Nested | Doubled, *more: Nested, named: Nested = None) -> list[Nested | Doubled]:
        context = current()
        self._started(context, values=[describe(each) for each in (value, *more, named)])
        self._ended(context, "returned")
        return [value]

    def _returning(self, value: Any) -> Any:
        self._note_run()
        return value

    def _odd(self, kind: str) -> Any:
        """Return what can't be recorded: too much, or no value of the codec's types."""
        self._note_run()
        return "x" * TOO_MUCH if kind == "large" else {"deep": [object()]}

    def _asking(self, id: str) -> str:
        """Ask for another message's result as if there were time, and return that only if it is refused."""
        self._note_run()
        handle = self._bridge.handle(id)
        try:
            handle.result(_LONGEST_HOLD_S)
        except ResultInTask:
            return describe(handle.result(0))
        return "it may wait"

    def _around(self, gate: str) -> None:
        """Tell what is around a task, and leave a thread behind that waits for a gate."""
        context, threads = current(), sorted(thread.name for thread in threading.enumerate())
        self._started(context, is_forked=self._imported_in != os.getpid(), threads=threads)
        ThreadPoolExecutor(1).submit(self._outlast, context.id, gate)
        self._ended(context, "returned")

    def _outlast(self, id: str, gate: str) -> None:
        self._pass(gate)
        self.probe.write(OUTLASTED, id=id)

    def _silent(self) -> object:
        self._note_run()
        return object()

    def _process(self) -> None:
        """Tell what this process's logging and streams are, and what became of processes of its own."""
        context, root = current(), logging.getLogger()
        with ProcessPoolExecutor(1) as pool:
            answer = pool.submit(abs, -1).result(_LONGEST_HOLD_S)
        ready = multiprocessing.Event()
        child = multiprocessing.Process(target=_sleep, args=(ready,))
        child.start()
        ready.wait(_LONGEST_HOLD_S)  # else it may be about to start, and lose the signal
        child.terminate()
        child.join(_LONGEST_HOLD_S)
        sys.stdout.buffer.write(b"")
        self._started(
            context,
            logging=[[type(each).__name__ for each in root.handlers], logging.getLevelName(root.level)],
            streams=[sys.stdout.fileno(), sys.stderr.fileno()],
            processes=[answer, child.exitcode],
        )
        self._ended(context, "returned")

    def _awkward(self, queue: str, task: str, id: int, *, retry: bool, expires: float, name: str = "x") -> None:
        context = current()
        self._started(context, values=[queue, task, id, retry, expires, name])
        self._ended(context, "returned")

    def _perform(self, step: Step) -> None:
        if step.gate:
            self._pass(step.gate)
        if step.until_cancelled:
            _wait_until(lambda: current().cancelled)
        if step.until_stopping:
            _wait_until(lambda: current().stopping)
        deadline = time.monotonic() + step.sleep_s
        while (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(_POLL_S, left_s))
        deadline = time.monotonic() + step.spin_s
        while time.monotonic() < deadline:
            pass
        if step.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step.stuck and not (step.free and self._gate(step.free).exists()):
            _STUCK[step.stuck]()
        _end(step)

    def _pass(self, gate: str) -> None:
        deadline = time.monotonic() + _LONGEST_HOLD_S
        while not self._is_open(gate, deadline):
            time.sleep(_POLL_S)

    def _is_open(self, gate: str, deadline: float) -> bool:
        if self._gate(gate).exists():
            return True
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened the gate {gate!r}")
        return False

    # What is written down

    def _started(self, context: Context, **data: Any) -> None:
        engine = self._bridge.settings.url.engine
        self.probe.write(
            START, id=context.id, attempt=context.attempt, context=plain_context(context), engine=engine, **data
        )

    def _ended(self, context: Context, ending: str, **data: Any) -> None:
        self.probe.write(END, id=context.id, attempt=context.attempt, ending=ending, **data)

    def _declare_hooks(self) -> None:
        self._bridge.on("succeeded", task="contract.surrounded*")(self._record_match)
        for name in get_args(HookName):
            self._bridge.on(name)(_fail_if_asked)
            self._bridge.on(name)(self._record)
        self._bridge.on("before_send")(_stamp)
        self._bridge.on("before_run")(_set_tag)

    def _record_match(self, event: Event) -> None:
        assert event.message is not None
        self.probe.write(MATCHED, id=event.message.id)

    def _record(self, event: Event) -> None:
        message, error = event.message, event.error
        data: dict[str, Any] = {
            "error": None if error is None else type(error).__name__,
            "delay_s": event.delay_s,
            "reason": event.reason,
            "result": event.result if isinstance(event.result, str | None) else describe(event.result),
        }
        if message is None:
            self.probe.write(event.name, **data)
            return
        data |= {"task": message.task, "queue": message.queue, "priority": message.priority}
        data["headers"] = dict(message.headers)
        if TELL in message.headers:
            data |= {"arguments": describe(event.arguments), "form": message.form}
        self.probe.write(event.name, id=message.id, attempt=message.attempt, **data)


def _counted(number: int, more: int = 0) -> int:
    return number + more


def _wait_until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONGEST_HOLD_S
    while not seen():
        if time.monotonic() > deadline:
            raise TimeoutError("it waited in vain")
        time.sleep(_POLL_S)


def _sleep(ready: Any) -> None:
    ready.set()
    time.sleep(_LONG_S)


def _end(step: Step) -> None:
    if step.error in ODD_ERRORS:
        raise ODD_ERRORS[step.error]()
    if step.outcome == "raise":
        raise ERRORS[step.error]("as the program says")
    if step.outcome == "retry":
        cause = ERRORS[step.cause]("as the program says") if step.cause else None
        raise Retry(after=step.after_s, reason="the program asks for it") from cause
    if step.outcome == "discard":
        raise Discard("the program says so")


async def _look() -> list[str]:
    await asyncio.sleep(0)
    return [_tag.get(), current().id]


def _fail_if_asked(event: Event) -> None:
    if event.message is not None and FAIL_HOOKS in event.message.headers:
        raise RuntimeError(f"a {event.name} hook that fails")


def _stamp(event: Event) -> None:
    if event.message is not None and STAMP in event.message.headers:
        event.message.headers["stamped"] = "by a hook"


def _set_tag(event: Event) -> None:
    if event.message is not None:
        _tag.set(f"{event.message.id} in a hook")
