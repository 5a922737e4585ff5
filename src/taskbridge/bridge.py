"""The bridge: settings, the table of tasks, sending; it joins a broker and an engine."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, cast, overload

from taskbridge import codec, locks
from taskbridge.clock import RealClock
from taskbridge.declaration import Declaration
from taskbridge.durations import Duration, When, delay_s, seconds, timestamp
from taskbridge.exceptions import (
    BrokerUnavailable,
    DeclarationError,
    HeadersTooLarge,
    MessageTooLarge,
    NotInstalledError,
    PartlyPublished,
    SendError,
    UnsupportedError,
)
from taskbridge.handle import Handle
from taskbridge.hooks import Event, Hook, HookName, Hooks
from taskbridge.message import MOST_HEADER_BYTES, DeadLetter, Message, Priority, new_id
from taskbridge.probe import DECLARATION as PROBE_DECLARATION
from taskbridge.probe import PROBE
from taskbridge.retry import RetryPolicy, Verdict
from taskbridge.routing import Routing, check_known
from taskbridge.tasks import AsyncTask, Call, SendOptions, Task, declare, same_place

if TYPE_CHECKING:
    from taskbridge.brokers.base import Broker, Counts, Wire
    from taskbridge.dead import DeadLetters
    from taskbridge.engines.base import Command, Engine, WorkerOptions
    from taskbridge.engines.cancellations import Cancellations
    from taskbridge.health import Health
    from taskbridge.periodic import Schedules
    from taskbridge.results import Results
    from taskbridge.runner import Runner
    from taskbridge.schedules import CatchUp, Overlap, Schedule, Timing
    from taskbridge.settings import Settings
    from taskbridge.stores.base import Marks, Store
    from taskbridge.stores.records import Records

P = ParamSpec("P")
R = TypeVar("R")
HookT = TypeVar("HookT", bound=Hook)

LONGEST_DELAY_S: Final = 8 * 365.25 * 86400.0
"""8 years (rule D5)."""

_log = logging.getLogger("taskbridge.bridge")

_BATCH: Final = 1000
"""How many messages `send_many` hands to the broker at a time; each batch has `send_timeout`."""

_MODULES: Final[Mapping[str, str]] = {
    "celery": "taskbridge.engines.celery",
    "dramatiq": "taskbridge.engines.dramatiq",
    "memory": "taskbridge.brokers.memory",
    "redis": "taskbridge.brokers.redis",
    "amqp": "taskbridge.brokers.rabbitmq",
}

_CLIENTS: Final[Mapping[str, tuple[str, str]]] = {
    "celery": ("engine 'celery'", "celery"),
    "dramatiq": ("engine 'dramatiq'", "dramatiq"),
    "redis": ("redis-py, the client of broker 'redis',", "redis"),
    "pika": ("pika, the client of broker 'amqp',", "rabbitmq"),
    "sqlalchemy": ("SQLAlchemy, which SQL stores need,", "sql"),
    "psycopg": ("psycopg, the client of store 'postgresql',", "postgresql"),
}


def _module(group: str, name: str) -> str:
    """Return the module of an engine or a broker, built in or found by entry point."""
    if name in _MODULES:
        return _MODULES[name]
    from taskbridge.settings import plugins  # here, for declaring tasks needs no settings

    return plugins(group)[name]


def _store_module(scheme: str) -> str:
    """Return the module of a store, built in or found by entry point."""
    from taskbridge.settings import STORE_PLUGINS, STORE_SCHEMES, plugins

    if scheme in STORE_SCHEMES:
        return f"taskbridge.stores.{STORE_SCHEMES[scheme]}"
    return plugins(STORE_PLUGINS)[scheme]


def _import(name: str) -> Any:
    """Import one of our modules that needs a library that may be missing."""
    return _with_libraries(lambda: import_module(name))


def _with_libraries(make: Callable[[], Any]) -> Any:
    """Return what is made with libraries; where one is missing, say how to get it."""
    try:
        return make()
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _CLIENTS:
            raise
        what, extra = _CLIENTS[missing]
        raise NotInstalledError(what, extra) from exc


def _import_the_rest() -> None:
    """Import what the first send imports beside the broker and its client, while no other thread may fork."""
    import_module("taskbridge.sending")
    "localhost".encode("idna")  # a module that `socket` imports as it first looks a name up


class Bridge:
    """Tasks on one engine and one broker. Two bridges in a process don't interfere; threads share a bridge.

    Making one checks the settings, imports no engine and opens no connection. Each argument overrides the
    environment variable `TASKBRIDGE_<KEY>`, which overrides the default.

    Args:
        url: `inline://`, `celery+redis://...`, `celery+amqp://...`, `dramatiq+redis://...`, `dramatiq+amqp://...`,
            `celery+memory://` or `dramatiq+memory://`.
        namespace: What the names of all keys, queues and exchanges begin with.
        default_queue: Where messages go that nothing sends elsewhere.
        queues: Further known queues.
        routes: (task-name glob, queue) rules in order; the first that matches wins.
        retry: The policy of tasks that name none.
        send_timeout: How long `send` waits for the broker at most.
        lease: How long after a worker's death its messages are given to another.
        grace: How long a stopping worker lets tasks run.
        store: Where attempt marks, records and cancellations live.
        unknown_task_grace: How long a message waits for a worker that knows its task.
        dead_ttl: How long dead letters are kept.
        max_message_bytes: How large a message's encoded arguments and headers may be.
        result_ttl: How long what became of a message, and its result, is kept after its end; None is for ever.
        schedules: Further schedules of tasks, by name: `{"nightly": {"task": "shop.report", "cron": "0 3 * * *"}}`.
        scheduler: Whether workers send by schedules; where they don't, `taskbridge scheduler` does.

    Raises:
        SettingsError: A setting is wrong; it says which.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        default_queue: str | None = None,
        queues: Iterable[str] | None = None,
        routes: Iterable[tuple[str, str]] | None = None,
        retry: RetryPolicy | None = None,
        send_timeout: Duration | None = None,
        lease: Duration | None = None,
        grace: Duration | None = None,
        store: str | None = None,
        unknown_task_grace: Duration | None = None,
        dead_ttl: Duration | None = None,
        max_message_bytes: int | None = None,
        result_ttl: Duration | Literal["default"] | None = "default",
        schedules: Mapping[str, Mapping[str, Any]] | None = None,
        scheduler: bool | None = None,
    ) -> None:
        given = {key: value for key, value in locals().items() if key != "self"}
        if result_ttl == "default":
            del given["result_ttl"]  # None is a value of it
        self._start_over(given)
        _ = self.settings

    def _start_over(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._lock = locks.RLock()
        self._settings: Settings | None = None
        self._routing: Routing | None = None
        self._known_queues: tuple[str, ...] | None = None
        self._parts: tuple[Broker, Wire[Any]] | None = None
        self._engine: Engine | None = None
        self._store: Store | None = None
        self._marks: Marks | None = None
        self._has_store = False
        self._declarations: dict[str, Declaration] = {}
        self._clock: Any = RealClock()
        self.hooks: Hooks = Hooks()
        self._dead: DeadLetters | None = None
        self._schedules: Schedules | None = None
        self._results: Results | None = None
        self._cancellations: Cancellations | None = None
        self.stopping: threading.Event = locks.Event()
        self._runner: Runner | None = None

    def __repr__(self) -> str:
        shown = "not configured yet" if self._settings is None else self._settings.url.safe_url
        return f"<Bridge {shown}>"

    # What it is made of

    @property
    def settings(self) -> Settings:
        """The checked settings; the default bridge reads its own when they are first needed."""
        if self._settings is None:
            with locks.no_fork(), self._lock:
                settings, chosen = _load(self._given)
                if not chosen:
                    warnings.warn(
                        "no url is set (TASKBRIDGE_URL or configure(url=...)): tasks run inline, in this process",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                self._routing = Routing(
                    default_queue=settings.default_queue, routes=settings.routes, declared=settings.queues
                )
                self._known_queues = None
                self._settings = settings
        return self._settings

    @property
    def broker(self) -> Broker:
        """The connection to the broker; connects when it is first used."""
        return self._joined()[0]

    @property
    def wire(self) -> Wire[Any]:
        """The engine's wire for this broker."""
        return self._joined()[1]

    def _joined(self) -> tuple[Broker, Wire[Any]]:
        if self._parts is None:
            with locks.no_fork(), self._lock:
                if self._parts is None:
                    self._parts = self._join()
        return self._parts

    def _join(self) -> tuple[Broker, Wire[Any]]:
        settings = self.settings
        _import_the_rest()
        address = settings.url
        if address.engine == "inline":
            return self._join_inline(dict(address.options))
        wire = _import(f"{_module('taskbridge.engines', address.engine)}.wire").make_wire(address.broker, settings)
        broker: Broker = _import(_module("taskbridge.brokers", address.broker)).connect(settings, wire)
        return broker, wire

    def _join_inline(self, options: Mapping[str, str]) -> tuple[Broker, Wire[Any]]:
        memory, inline = _import("taskbridge.brokers.memory"), _import("taskbridge.engines.inline")
        clock = _import("taskbridge.clock").VirtualClock()
        wire = inline.InlineWire()
        broker = memory.connect(self.settings, wire, clock)
        threads = int(options.get("threads", inline.DEFAULT_THREADS))
        self._clock = clock
        self._engine = inline.InlineEngine(self, wire, clock, broker, threads)
        return broker, wire

    @property
    def marks(self) -> Marks | None:
        """The attempt marks, in the store; None without one, and where nothing outlives the process."""
        if not self._has_store:
            _ = self.store
        return self._marks

    @property
    def records(self) -> Records | None:
        """What became of messages, in the store; None without one."""
        store = self.store
        return None if store is None else store.records

    @property
    def store(self) -> Store | None:
        """What is known beside the messages; None on RabbitMQ without a `store`. Connects when it is first used."""
        if not self._has_store:
            with locks.no_fork(), self._lock:
                if not self._has_store:
                    _import_the_rest()
                    store = self._store = _open_store(self.settings, self.now)
                    nothing_comes_twice = self.settings.url.engine == "inline"
                    self._marks = None if store is None or nothing_comes_twice else store.marks
                    self._has_store = True
        return self._store

    @property
    def engine(self) -> Engine:
        """The engine, joined to this bridge; imports it.

        Raises:
            NotInstalledError: The engine is not installed.
        """
        self._joined()
        if self._engine is None:
            with locks.no_fork(), self._lock:
                if self._engine is None:
                    name = _module("taskbridge.engines", self.settings.url.engine)
                    made: Engine = _with_libraries(lambda: import_module(f"{name}.app").make_engine(self))
                    self._engine = made
                    made.register(PROBE_DECLARATION)
                    for declaration in self.declarations():
                        made.register(declaration)
        return self._engine

    @property
    def native(self) -> Any:
        """The Celery app or the Dramatiq broker, for whoever needs the engine itself; imports the engine.

        Raises:
            NotInstalledError: The engine is not installed.
        """
        return self.engine.native

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: list, get, replay and purge."""
        if self._dead is None:
            from taskbridge.dead import DeadLetters  # here, for few processes ask

            self._dead = DeadLetters(self)
        return self._dead

    @property
    def schedules(self) -> Schedules:
        """The schedules: list, pause and resume."""
        if self._schedules is None:
            from taskbridge.periodic import Schedules  # here, for few applications have some

            with self._lock:
                self._schedules = Schedules(self) if self._schedules is None else self._schedules
        return self._schedules

    @property
    def results(self) -> Results:
        """What becomes of messages, for their handles."""
        if self._results is None:
            from taskbridge.results import Results  # here, for few processes ask

            self._results = Results(self)
        return self._results

    def handle(self, id: str) -> Handle[Any]:
        """Return the handle of a message of which only the id is known.

        Args:
            id: As it was in the handle that `send` returned, in any process and on any engine with the same store.
        """
        return Handle(id=id, bridge=self)

    # What the engine asks of it

    def now(self) -> float:
        """Return the time, in seconds since the epoch; virtual on `inline://`."""
        now: float = self._clock.now()
        return now

    def declarations(self) -> Sequence[Declaration]:
        """Return all tasks declared so far."""
        return tuple(self._declarations.values())

    def declaration_of(self, task: str) -> Declaration | None:
        """Return a task's declaration; None if it is not declared."""
        return self._declarations.get(task)

    def task_names(self) -> list[str]:
        """Return the names of all tasks declared so far."""
        return list(self._declarations)

    def knows(self, task: str) -> bool:
        """Return whether a task of this exact name is declared."""
        return task in self._declarations or task == PROBE

    def queues(self) -> Sequence[str]:
        """Return the names of the known queues, the default one first (rule Q2)."""
        known = self._known_queues
        if known is None:  # kept, for each message that is sent asks
            with self._lock:
                known = self._route().known(declaration.queue for declaration in self._declarations.values())
                self._known_queues = known
        return known

    def queue_of(self, task: str) -> str:
        """Return the queue that a task's messages go to, unless `using(queue=)` says otherwise (rule Q1)."""
        declaration = self._declarations.get(task)
        return self._route().queue_of(task, asked=None, on_task=declaration.queue if declaration else None)

    def records_of(self, task: str) -> Records | None:
        """Return where a task's messages are recorded; None without a store, and for tasks with `results=False`."""
        declaration = self._declarations.get(task)
        return None if declaration is not None and not declaration.results else self.records

    def was_cancelled(self, message: Message) -> bool:
        """Return whether a message that is about to start was cancelled, a second ago at the latest.

        Raises:
            BrokerUnavailable: That can't be known, for the store doesn't answer.
        """
        return self._known_cancellations().has(message)

    def note_cancelled(self, life: str) -> None:
        """Learn that a message was cancelled by this process, which then knows it at once."""
        self._known_cancellations().add(life)

    def _known_cancellations(self) -> Cancellations:
        known = self._cancellations
        if known is None:
            from taskbridge.engines.cancellations import Cancellations  # here, for a process that only sends needs none

            with self._lock:
                known = self._cancellations = self._cancellations or Cancellations(
                    lambda: self.records, settings=self.settings
                )
        return known

    def run_until(self, done: Callable[[], bool]) -> bool:
        """Run what waits, if nobody else does, until something is done; return whether nothing is left to run."""
        if self.settings.url.engine != "inline":
            return False
        nothing_is_left: bool = self._inline("run_until").run_until(done)
        return nothing_is_left

    def replayed(self, messages: Sequence[Message]) -> None:
        """Record that messages were taken from the dead letters, and wait for a worker again.

        Of tasks that are not declared here it isn't known whether they are recorded; those messages are that were so
        before.
        """
        records, timeout_s = self.records, self.settings.send_timeout_s
        if records is None:
            return
        recorded: list[tuple[Message, float]] = []
        try:
            for message in messages:
                declared = self._declarations.get(message.task)
                was_recorded = declared is None and records.get(message.id, timeout_s=timeout_s) is not None
                if was_recorded or (declared is not None and declared.results):
                    recorded.append((message, 0.0))
            records.create(recorded, timeout_s=timeout_s)
        except BrokerUnavailable as exc:  # their starts will tell
            _log.warning("%d messages are replayed, but some are recorded as dead: %s", len(messages), exc.problem)

    def _route(self) -> Routing:
        _ = self.settings
        return cast(Routing, self._routing)

    def run(self, message: Message) -> Verdict:
        """Run a message in this thread, and return the verdict, not yet carried out."""
        return self._joined_runner().run(message)

    def judge_lost(self, message: Message) -> Verdict:
        """Return what becomes of a message whose attempt died with its worker (rule A5)."""
        return self._joined_runner().judge_lost(message)

    def _joined_runner(self) -> Runner:
        if self._runner is None:
            self._runner = self._made_runner()
        return self._runner

    def _made_runner(self) -> Runner:
        from taskbridge.runner import Runner  # here, for a process that only sends needs none

        return Runner(
            find=self._declarations.get,
            default_policy=lambda: self.settings.retry,
            hooks=self.hooks,
            now=self.now,
            most_bytes=self._most_bytes,
            is_cancelled=self._is_cancelled,
        )

    def _most_bytes(self, declaration: Declaration) -> int | None:
        return self.settings.max_message_bytes if declaration.results and self.records is not None else None

    def _is_cancelled(self, message: Message) -> bool:
        return self.records_of(message.task) is not None and self._known_cancellations().knows(message)

    # Declaring

    @overload
    def task(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload] - the narrower case
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: Priority = "normal",
        retry: RetryPolicy | None = None,
        expires: Duration | None = None,
        time_limit: Duration | None = None,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        schedules: Sequence[Timing] = (),
        catch_up: CatchUp | None = None,
        overlap: Overlap | None = None,
        results: bool = True,
    ) -> Decorator: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare a task, bare (`@task`) or with options (`@task(queue="email")`).

        Args:
            function: What to run: a function, or a coroutine function.
            **options: `name`: what messages call it, `module.qualname` by default. `queue`: where they wait, if
                `using(queue=)` and the routes don't say. `priority`: `low`, `normal`, `high` or `critical`.
                `retry`: a `RetryPolicy`. `expires`: a message that would start later than this after it was sent is
                discarded. `time_limit`: how long a run may take. `cron` (with `timezone`, UTC by default) or `every`:
                when workers send it by themselves, without arguments; with `catch_up`, `none`, `one` or `all`, for
                what was due while no worker was there, and `overlap`, `allow` or `skip`, for what is due before the
                last one has ended. `schedules`: several of these, as `Cron(...)` and `Every(...)`. `results`: whether
                to record what becomes of its messages, where there is a store; `False` costs nothing, and gives no
                status, result or cancelling.

        Raises:
            DeclarationError: An option is unknown or wrong, or there is a task or schedule of this name already.
            NotInstalledError: `cron` needs cronsim: `pip install 'taskbridge-queue[cron]'`.
        """
        if function is None:
            return partial(self._declare, options)
        return self._declare(options, function)

    def _declare(self, options: Mapping[str, Any], function: Callable[..., Any]) -> Any:
        declaration = declare(function, **options)
        if declaration.name == PROBE:
            raise DeclarationError(f"a task can't be called {PROBE!r}: that is what workers are probed with")
        with self._lock:
            former = self._declarations.get(declaration.name)
            if former is not None and not same_place(former.function, function):
                raise DeclarationError(
                    f"there is a task {declaration.name!r} already, declared by {former.function!r}; "
                    "give one of them another name"
                )
            if declaration.schedules or self._schedules is not None:
                self.schedules.declare(declaration)
            self._declarations[declaration.name] = declaration
            self._known_queues = None
            if self._engine is not None:
                self._engine.register(declaration)
        kind: Any = AsyncTask if declaration.is_coroutine else Task
        return kind(self, declaration, SendOptions(priority=None))

    def periodic(
        self,
        call: Call[Any],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        name: str | None = None,
        catch_up: CatchUp | None = None,
        overlap: Overlap | None = None,
    ) -> None:
        """Have workers send a call by a schedule: `bridge.periodic(report.call("eu"), cron="0 3 * * *")`.

        Args:
            call: What `Task.call` returns, with arguments; with `using(...)`, also queue, priority and expiry.
            cron: A cron expression of five fields.
            every: An interval; it counts from 1970-01-01 00:00 UTC.
            timezone: The zone of `cron`, by its IANA name; UTC if None.
            name: The schedule's name; None makes one of the task's name and the time.
            catch_up: What becomes of what was due while no worker was there: `none` of it is sent, the latest `one`
                (the default), or `all`.
            overlap: What becomes of what is due before the last one has ended: `allow` sends it, `skip` does not.

        Raises:
            DeclarationError: An option is wrong, or there is a schedule of this name already.
            EncodeError: An argument can't be put in a message.
            NotInstalledError: `cron` needs cronsim: `pip install 'taskbridge-queue[cron]'`.
        """
        from taskbridge.schedules import timing_of  # here, for few applications have some

        timing = timing_of(cron=cron, every=every, timezone=timezone, name=name, catch_up=catch_up, overlap=overlap)
        if timing is None:
            raise DeclarationError("a periodic call needs cron or every")
        if call.declaration is not self._declarations.get(call.declaration.name):
            raise DeclarationError(f"task {call.declaration.name!r} is not one of this bridge")
        with self._lock:
            self.schedules.add(call, timing)

    def all_schedules(self) -> Sequence[Schedule]:
        """Return all schedules: those of tasks, of `periodic`, and of the setting `schedules`.

        Raises:
            SettingsError: The setting names a task that is not declared.
        """
        if self._schedules is None and not self.settings.schedules:
            return ()
        return [planned.schedule for planned in self.schedules.planned().values()]

    def check_schedules(self) -> None:
        """Return if there is nothing in the way of sending by schedules, or there are none.

        Raises:
            UnsupportedError: There is no store.
            SettingsError: The setting `schedules` names a task that is not declared.
        """
        if self.all_schedules() and self.store is None:
            from taskbridge.periodic import no_store  # here, for few applications have schedules

            raise no_store(self.settings)

    def on(self, name: HookName) -> Callable[[HookT], HookT]:
        """Return a decorator that adds a hook, such as `@bridge.on("dead")`; it is called with an `Event`.

        Raises:
            ValueError: There is no such hook.
        """
        self.hooks.check(name)

        def add(hook: HookT) -> HookT:
            self.hooks.add(name, hook)
            return hook

        return add

    # Sending

    def send_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Send one call, now or later; what `Task.send` and `Task.schedule` do."""
        return self._send(self._message(call), self._wait_s(when))

    def send_tick(self, schedule: str, planned_at: float) -> str:
        """Send the message of a schedule's tick, and return its id, which is the same whoever sends it.

        Perhaps somebody else sends it too, who stood still before; so it is marked as one that may have been started
        (rule A7).

        Raises:
            BrokerUnavailable: The broker didn't take it.
        """
        from taskbridge.periodic import tick_headers, tick_id  # here, for few processes send by schedules

        message = self._message(self.schedules.planned()[schedule].call)
        headers = {**message.headers, **tick_headers(schedule, planned_at)}
        message_id = tick_id(self.settings.namespace, schedule, planned_at)
        self._send(replace(message, id=message_id, headers=headers, redelivered=1), 0.0)
        return message_id

    def _send(self, message: Message, wait_s: float) -> Handle[Any]:
        if self.hooks.has("before_send"):
            self.hooks.call(Event(name="before_send", message=message, delay_s=wait_s))
        self._check(message)
        self._deliver(message, wait_s)
        self._sent(message, wait_s=wait_s)
        return self._handle(message)

    def _deliver(self, message: Message, wait_s: float) -> None:
        records, timeout_s = self.records_of(message.task), self.settings.send_timeout_s
        if records is not None:
            from taskbridge.sending import park_recorded, publish_recorded  # here, for a worker need not send

            if wait_s > 0:
                park_recorded(self, records, message, wait_s, timeout_s=timeout_s)
            else:
                publish_recorded(self, records, [message], timeout_s=timeout_s)
        elif wait_s > 0:
            self.broker.park([(message, wait_s)], timeout_s=timeout_s)
        else:
            self.broker.publish([message], timeout_s=timeout_s)

    def _handle(self, message: Message) -> Handle[Any]:
        return Handle(id=message.id, task=message.task, queue=message.queue, bridge=self)

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Send any number of calls of any tasks in pipelined batches, and return their handles in order (rule S5).

        Raises:
            SendError: Some were not sent; it says which.
            EncodeError, UnknownQueue, MessageTooLarge: As `Task.send` does; then nothing was sent.
        """
        messages = [self._message(call) for call in calls]
        if self.hooks.has("before_send"):
            for message in messages:
                self.hooks.call(Event(name="before_send", message=message))
                self._check(message)
        else:
            self._check(*messages)
        remaining = iter(messages)
        sent: list[str] = []
        while batch := list(islice(remaining, _BATCH)):
            try:
                self._deliver_all(batch)
            except PartlyPublished as exc:
                self._raise_send_error(exc, sent, batch, messages)
            except BrokerUnavailable as exc:  # of a batch of one
                unsure = frozenset({0}) if exc.maybe_taken else frozenset[int]()
                cause = PartlyPublished(exc, accepted=frozenset(), unsure=unsure)
                self._raise_send_error(cause, sent, batch, messages)
            self._sent(*batch)
            sent.extend(message.id for message in batch)
        return [self._handle(message) for message in messages]

    def _deliver_all(self, batch: Sequence[Message]) -> None:
        timeout_s = self.settings.send_timeout_s
        silent = {task for task in {message.task for message in batch} if self.records_of(task) is None}
        unrecorded = {message.id for message in batch if message.task in silent} if silent else frozenset[str]()
        records = self.records
        if records is None or len(unrecorded) == len(batch):
            self.broker.publish(batch, timeout_s=timeout_s)
            return
        from taskbridge.sending import publish_recorded  # here, for a worker need not send

        publish_recorded(self, records, batch, but=unrecorded, timeout_s=timeout_s)

    def _raise_send_error(
        self, cause: PartlyPublished, sent: list[str], batch: list[Message], messages: list[Message]
    ) -> None:
        self._sent(*(batch[index] for index in sorted(cause.accepted)))
        taken = [*sent, *(batch[index].id for index in sorted(cause.accepted))]
        accepted = set(taken)
        unsent = [message.id for message in messages if message.id not in accepted]
        raise SendError(cause.problem, sent=taken, unsent=unsent, maybe_taken=bool(cause.unsure)) from cause

    async def asend_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Do as `send_call` without blocking the event loop."""
        return await _in_thread(lambda: self.send_call(call, when=when))

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        return await _in_thread(lambda: self.send_many(calls))

    def _message(self, call: Call[Any]) -> Message:
        declaration, options = call.declaration, call.options
        now = self.now()
        return Message(
            id=new_id(),
            task=declaration.name,
            queue=self._route().queue_of(declaration.name, asked=options.queue, on_task=declaration.queue),
            priority=declaration.priority if options.priority is None else options.priority,
            args_json=codec.dumps_array(call.args, "args"),
            kwargs_json=codec.dumps_object(call.kwargs, "kwargs"),
            enqueued_at=now,
            expires_at=_expires_at(declaration.expires_s if options.expires is None else options.expires, now),
            headers=dict(options.headers),
        )

    def _check(self, *messages: Message) -> None:
        queues, most_bytes = self.queues(), self.settings.max_message_bytes
        for message in messages:
            check_known(message.queue, queues)
            if message.headers or message.expires_at is not None:
                message.check_rare()
            if message.size > most_bytes:
                raise MessageTooLarge(message.task, message.size, most_bytes)
            if message.headers and message.headers_size > MOST_HEADER_BYTES:
                raise HeadersTooLarge(message.task, message.headers_size, MOST_HEADER_BYTES)

    def _wait_s(self, when: When | None) -> float:
        if when is None:
            return 0.0
        wait_s = delay_s(when, now=self.now(), name="when")
        if wait_s > LONGEST_DELAY_S:
            raise ValueError(f"a delay is at most 8 years, not {when!r}")
        return wait_s

    def _sent(self, *messages: Message, wait_s: float = 0.0) -> None:
        if self.hooks.has("after_send"):
            for message in messages:
                self.hooks.call(Event(name="after_send", message=message, delay_s=wait_s))
        self.work_is_there()

    def work_is_there(self) -> None:
        """Learn that messages wait: on `inline://` the threads that run them start now, if they don't run yet."""
        if self.settings.url.engine == "inline":
            self._inline("send").sent()

    # Running

    def run_until_idle(self, *, max_runs: int = 10_000) -> int:
        """Run all that waits and all that is parked, here and now, on a virtual clock; only on `inline://`.

        The clock jumps to each due time, so that a task with hour-long backoffs ends in milliseconds.

        Args:
            max_runs: How many runs there may be.

        Returns:
            The number of runs.

        Raises:
            UnsupportedError: The bridge is not `inline://`.
            TaskBridgeError: It isn't idle after `max_runs`.
        """
        runs: int = self._inline("run_until_idle").run_until_idle(max_runs)
        return runs

    def run_schedules(self, until: When, *, max_runs: int = 10_000) -> int:
        """Run all that is due up to a time, by schedules too, here and now, on a virtual clock; only on `inline://`.

        Args:
            until: How far the clock goes: a time from now, or an aware datetime.
            max_runs: How many runs there may be.

        Returns:
            The number of runs.

        Raises:
            UnsupportedError: The bridge is not `inline://`.
            TaskBridgeError: There were more runs.
        """
        now = self.now()
        moment = now + delay_s(until, now=now, name="until")
        runs: int = self._inline("run_schedules").run_schedules(moment, max_runs)
        return runs

    def _inline(self, what: str) -> Any:
        if self.settings.url.engine != "inline":
            raise UnsupportedError(what, self.settings.url.target, "use inline:// in tests")
        return self.engine

    def embedded_worker(self, *, queues: Sequence[str] = (), threads: int = 4) -> AbstractContextManager[None]:
        """Run a worker in threads of this process while the block runs; on `inline://` and the memory brokers.

        Args:
            queues: What to consume; all known queues if empty.
            threads: Tasks at a time.

        Raises:
            UnsupportedError: The broker is a server: start `taskbridge worker`.
            UnknownQueue: There is no such queue.
        """
        if self.settings.url.broker != "memory":
            raise UnsupportedError("embedded_worker", self.settings.url.target, "start `taskbridge worker` instead")
        for queue in queues:
            check_known(queue, self.queues())
        return self.engine.embedded_worker(queues=queues, threads=threads)

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        """Return the commands that start the engine's stock workers; what `taskbridge worker` runs.

        Raises:
            UnsupportedError: Messages live in this process's memory.
            UnknownQueue: There is no such queue.
        """
        if self.settings.url.broker == "memory":
            raise UnsupportedError(
                "workers", self.settings.url.target, "its messages live in the process that sends them; choose a server"
            )
        for queue in options.queues:
            check_known(queue, self.queues())
        if self.settings.scheduler and options.scheduler:
            self.check_schedules()
        commands = self.engine.worker_commands(options)
        if options.scheduler:
            return commands
        from taskbridge.engines.base import OFF_VARIABLE  # here, for only who starts workers needs it

        return [replace(command, env={**command.env, OFF_VARIABLE: "off"}) for command in commands]

    # Looking

    def counts(self) -> Counts:
        """Return how much waits in each known queue, and how much is delayed and dead.

        Raises:
            BrokerUnavailable: The broker doesn't answer.
        """
        return self.broker.counts(self.queues())

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first, as they are stored; `dead.list` shows them.

        Raises:
            BrokerUnavailable: The broker doesn't answer.
        """
        return self.broker.dead_letters()

    def health(self, *queues: str, timeout: Duration = 5) -> Health:
        """Return whether workers consume these queues, by a probe in each; all known queues if none is named.

        Args:
            *queues: Their names.
            timeout: How long to wait for answers.

        Raises:
            UnsupportedError: The workers are threads of this process.
            UnknownQueue: There is no such queue.
            BrokerUnavailable: The broker doesn't answer.
        """
        from taskbridge.brokers.base import SignBroker  # both here, for few processes ask
        from taskbridge.health import examine

        broker = self.broker
        if not isinstance(broker, SignBroker):
            raise UnsupportedError("health", self.settings.url.target, "its workers are threads of this very process")
        for queue in queues:
            check_known(queue, self.queues())
        return examine(
            broker,
            self.settings.url.engine,
            tuple(dict.fromkeys(queues)) or self.queues(),
            timeout_s=seconds(timeout, name="timeout"),
            now=self.now(),
        )

    def close(self) -> None:
        """Close the connections and stop what runs in the background; the next use opens them again."""
        with self._lock:
            engine, parts, store, known = self._engine, self._parts, self._store, self._cancellations
            self._engine, self._parts, self._store, self._marks, self._has_store = None, None, None, None, False
            self._cancellations = None
        if engine is not None:
            engine.close()
        if parts is not None:
            parts[0].close()
        if known is not None:
            known.close()
        if store is not None:
            store.close()

    def reconfigure(self, **given: Any) -> None:
        """Give the bridge other settings; its tasks and hooks stay. Connections of the former ones are closed.

        Raises:
            SettingsError: A setting is wrong; then nothing has changed.
        """
        _load(given)
        self.close()
        with self._lock:
            self._given = given
            self._settings = None
        _ = self.settings

    def move_to(self, url: str) -> None:
        """Use another engine and broker; all else stays: other settings, tasks and hooks.

        Raises:
            SettingsError: The URL is wrong; then nothing has changed.
        """
        self.reconfigure(**{**self._given, "url": url})


class Decorator:
    """What `task(...)` with options returns: it makes a task of a function. Only for type checkers."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload] - the narrower case
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...

    def __call__(self, function: Callable[..., Any], /) -> Any:
        """Make a task of a function."""
        raise TypeError("taskbridge.bridge.Decorator is a type, not an object to call")


def _load(given: Mapping[str, Any]) -> tuple[Settings, bool]:
    from taskbridge.settings import load  # here, for declaring tasks needs no settings

    return load(given)


def _open_store(settings: Settings, now: Callable[[], float]) -> Store | None:
    """Return the store: the setting's, or the broker, if it is Redis or memory."""
    url = settings.store
    if url is None and settings.url.broker in ("redis", "memory"):
        url = settings.url.broker_url
    if url is None:
        return None
    scheme = url.partition(":")[0]
    module = _import(_store_module(scheme))
    store: Store = module.open_store(settings, url, now=now) if scheme == "memory" else module.open_store(settings, url)
    return store


def _expires_at(expires: Duration | datetime | None, now: float) -> float | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return timestamp(expires, name="expires")
    return now + seconds(expires, name="expires")


async def _in_thread(act: Callable[[], R]) -> R:
    import asyncio  # here, for a program that doesn't await need not import it (30 ms)

    return await asyncio.to_thread(act)


class _DefaultBridge(Bridge):
    """The bridge of module-level tasks: it reads its settings when they are first needed, not at import."""

    def __init__(self) -> None:
        self._start_over({})


_default: Final = _DefaultBridge()

task: Final = _default.task
"""Declare a task of the default bridge; see `Bridge.task`."""

on: Final = _default.on
"""Add a hook to the default bridge; see `Bridge.on`."""


def default_bridge() -> Bridge:
    """Return the default bridge, to which module-level tasks belong."""
    return _default


def configure(url: str | None = None, **settings: Any) -> Bridge:
    """Give the default bridge its settings, over the environment, and return it.

    Args:
        url: The engine and broker.
        **settings: As `Bridge` takes them.

    Raises:
        SettingsError: A setting is wrong; it says which.
    """
    _default.reconfigure(url=url, **settings)
    return _default
