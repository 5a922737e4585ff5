"""The bridge: an application's door to its tasks, its broker and its engine. The work is done in the rooms it joins."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from taskbridge import locks
from taskbridge.declaration import Declaration, declare, place_of, undeclared
from taskbridge.durations import Duration, When, delay_s, seconds
from taskbridge.exceptions import DeclarationError, UnsupportedError
from taskbridge.handle import Handle
from taskbridge.hooks import Hook, HookName, for_tasks
from taskbridge.message import DeadLetter, Priority
from taskbridge.parts import Parts
from taskbridge.probe import DECLARATION as PROBE
from taskbridge.retry import RetryPolicy
from taskbridge.routing import Queue, QueueType, check_known
from taskbridge.sending import Sending, check_priority
from taskbridge.tasks import AsyncTask, Call, Task

if TYPE_CHECKING:
    from taskbridge.brokers.base import Broker, Counts
    from taskbridge.dead import DeadLetters
    from taskbridge.engines.base import Command, Engine, WorkerOptions
    from taskbridge.engines.cancellations import Cancellations
    from taskbridge.engines.inline import InlineEngine
    from taskbridge.engines.settle import BoundTask
    from taskbridge.flows.handle import FlowHandle
    from taskbridge.flows.running import Flows
    from taskbridge.health import Health
    from taskbridge.operations import Operations
    from taskbridge.outbox import Relay
    from taskbridge.pauses import Pause, Pauses
    from taskbridge.results import MessageResults
    from taskbridge.schedules.listing import Schedules
    from taskbridge.schedules.plan import CatchUp, Overlap, Timing
    from taskbridge.stores.records import Records
    from taskbridge.surroundings import Around, Surrounding
    from taskbridge.transactions import Transactions
    from taskbridge.unique import Unique

P = ParamSpec("P")
R = TypeVar("R")
HookT = TypeVar("HookT", bound=Hook)
AroundT = TypeVar("AroundT", bound="Around")


class Decorator(Protocol):
    """What `task(...)` with options returns: it makes a task of a function. Only for type checkers."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload] - the narrower case
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class _Bound(dict[str, "BoundTask"]):
    """What runs of each task need, made when it is first asked for."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def __missing__(self, task: str) -> BoundTask:
        from taskbridge.engines.settle import bind  # here, for a process that only sends needs none

        made = bind(self._bridge, task)
        if self._bridge.knows(task):  # anybody may make up other names
            self[task] = made
        return made


class Bridge(Parts):
    """Tasks on one engine and one broker. Two bridges in a process don't interfere; threads share a bridge.

    Making one checks the settings, imports no engine and opens no connection. Each argument overrides the
    environment variable `TASKBRIDGE_<KEY>`, which overrides the default. What takes settings raises `SettingsError` if
    one is wrong, which says which, and nothing has changed then. What asks the broker or the store raises
    `BrokerUnavailable` if that doesn't answer, and what takes queues `UnknownQueue` for one that is not known.

    Args:
        url: `inline://`, `celery+redis://...`, `celery+amqp://...`, `dramatiq+redis://...`, `dramatiq+amqp://...`,
            `celery+memory://` or `dramatiq+memory://`.
        namespace: What the names of all keys, queues and exchanges begin with.
        default_queue: Where messages go that nothing sends elsewhere.
        queues: Further known queues: names, or `Queue("bulk", type="quorum")`.
        routes: (task-name glob, queue) rules in order; the first that matches wins.
        retry: The policy of tasks that name none.
        send_timeout: How long `send` waits for the broker at most.
        lease: How long after a worker's death its messages are given to another.
        grace: How long a stopping worker lets tasks run.
        store: Where attempt marks, records and cancellations live.
        unknown_task_grace: How long a message waits for a worker that knows its task.
        requeue_pause: How long a message waits after an unexpected error; twice as long each further time.
        dead_ttl: How long dead letters are kept.
        max_message_bytes: How large a message's encoded arguments and headers may be.
        result_ttl: How long what became of a message, and its result, is kept after its end; None is for ever.
        schedules: Further schedules of tasks, by name: `{"nightly": {"task": "shop.report", "cron": "0 3 * * *"}}`.
        scheduler: Whether workers send by schedules; where they don't, `taskbridge scheduler` does.
        fast: Whether workers run tasks in the fast way, where the engine's version has been tried with it.
        remote_control: Whether a Celery worker obeys what changes something in Celery's remote control (rule I5).
        queue_type: The type of queues on RabbitMQ, but for those that have their own: `classic` or `quorum` (rule RQ1).
        wait_replicas: How many replicas of Redis must have a message before `send` returns (rule HA2).
        commit: The databases whose open transaction a send waits for, or `outbox`; `using(commit=)` goes before it.
        listing: Whether the store lists messages by state, which `operations.messages` needs.

    Attributes:
        bound: Returns all that runs of a task need, and settling them; made once, and again after a change.
        transactions: What knows the application's transactions, for `commit`; `taskbridge.django` sets it, or a
            `SessionOutbox` of `taskbridge.integrations.sqlalchemy`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        default_queue: str | None = None,
        queues: Iterable[str | Queue] | None = None,
        routes: Iterable[tuple[str, str]] | None = None,
        retry: RetryPolicy | None = None,
        send_timeout: Duration | None = None,
        lease: Duration | None = None,
        grace: Duration | None = None,
        store: str | None = None,
        unknown_task_grace: Duration | None = None,
        requeue_pause: Duration | None = None,
        dead_ttl: Duration | None = None,
        max_message_bytes: int | None = None,
        result_ttl: Duration | Literal["default"] | None = "default",
        schedules: Mapping[str, Mapping[str, Any]] | None = None,
        scheduler: bool | None = None,
        fast: bool | None = None,
        remote_control: bool | None = None,
        queue_type: QueueType | None = None,
        wait_replicas: int | None = None,
        commit: str | Sequence[str] | None = None,
        listing: bool | None = None,
    ) -> None:
        given = {key: value for key, value in locals().items() if key != "self"}
        if result_ttl == "default":
            del given["result_ttl"]  # None is a value of it
        self._begin(given)
        _ = self.settings

    def _begin(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self._tasks: dict[str, Declaration] = {PROBE.name: PROBE}
        self._around: tuple[Surrounding, ...] = ()
        self.bound: Callable[[str], BoundTask] = _Bound(self).__getitem__
        self.transactions: Transactions | None = None
        self._sending = Sending(self)

    def __repr__(self) -> str:
        settings = self._made.get("settings")
        return f"<Bridge {'not configured yet' if settings is None else settings.url.safe_url}>"

    # The rooms, each imported as it is first used, for few processes need all

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: list, get, replay and purge."""
        from taskbridge.dead import DeadLetters

        return self._part("dead", lambda: DeadLetters(self))

    @property
    def schedules(self) -> Schedules:
        """The schedules: list, pause, resume, and at run time put and delete."""
        from taskbridge.schedules.listing import Schedules

        return self._part("schedules", lambda: Schedules(self, self._sending))

    @property
    def relay(self) -> Relay:
        """What publishes what the outboxes hold, the store's and the application's."""
        from taskbridge.engines.settle import record_buried
        from taskbridge.outbox import Relay

        return self._part("relay", lambda: Relay(self, self._sending.relay, partial(record_buried, self)))

    @property
    def results(self) -> MessageResults:
        """What becomes of messages, for their handles."""
        from taskbridge.results import MessageResults

        return self._part("results", lambda: MessageResults(self))

    @property
    def flows(self) -> Flows:
        """What sends flows and goes on with them, and tells of them; for their handles, workers and operators."""
        from taskbridge.flows.running import Flows

        return self._part("flows", lambda: Flows(self, self._sending))

    @property
    def operations(self) -> Operations:
        """What goes on in all workers: queues, rates, runs, failures, workers, messages."""
        from taskbridge.operations import Operations

        return self._part("operations", lambda: Operations(self))

    @property
    def cancellations(self) -> Cancellations:
        """What this process knows of cancelled messages."""
        from taskbridge.engines.cancellations import Cancellations

        return self._part("cancellations", lambda: Cancellations(lambda: self.records, settings=self.settings))

    def handle(self, id: str) -> Handle[Any]:
        """Return a message's handle by its id alone, in any process and on any engine with the same store."""
        return Handle(id=id, bridge=self)

    def flow(self, id: str) -> FlowHandle[Any]:
        """Return a flow's handle by its id alone, in any process and on any engine with the same store."""
        from taskbridge.flows.handle import FlowHandle  # here, as above

        return FlowHandle(id=id, bridge=self)

    # The tasks, and their queues

    def declarations(self) -> Sequence[Declaration]:
        """Return all tasks declared so far."""
        return tuple(declaration for declaration in self._tasks.values() if declaration is not PROBE)

    def declaration_of(self, task: str) -> Declaration | None:
        """Return a task's declaration by its exact name; None if it is not declared (rule S9)."""
        return self._tasks.get(task)

    def knows(self, task: str) -> bool:
        """Return whether a task of this exact name is declared, or is what workers are probed with."""
        return task in self._tasks

    def queues(self) -> Sequence[str]:
        """Return the names of the known queues, the default one first (rule Q2)."""
        return self._part("queues", self._known_queues)

    def _known_queues(self) -> Sequence[str]:
        settings = self.settings
        routed = (route.queue for route in settings.routes)
        on_tasks = (each.queue for each in self._tasks.values() if each.queue is not None)
        named = (each.name for each in settings.queues)
        return tuple(dict.fromkeys([settings.default_queue, *named, *routed, *on_tasks]))

    def _check_known(self, queues: Iterable[str]) -> None:
        for queue in queues:
            check_known(queue, self.queues())

    def queue_of(self, task: str) -> str:
        """Return the queue that a task's messages go to, unless `using(queue=)` says otherwise (rule Q1)."""
        if (route := self.settings.route_of(task)) is not None:
            return route.queue
        declaration = self._tasks.get(task)
        on_task = None if declaration is None else declaration.queue
        return self.settings.default_queue if on_task is None else on_task

    def records_of(self, task: str) -> Records | None:
        """Return where a task's messages are recorded; None without a store, and for tasks with `results=False`."""
        declaration = self._tasks.get(task)
        return None if declaration is not None and not declaration.results else self.records

    def recording(self, task: str, rule: str) -> Records:
        """Return where the messages of a task are recorded; its name is empty if it isn't known.

        Raises `UnsupportedError` if they aren't, with the rule that needs it.
        """
        records = self.records
        if records is None:
            needy = "results, status, cancelling and progress"
            problem = f"{needy} need a store; set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
        elif self.records_of(task) is None:
            problem = f"task {task!r} is declared with results=False; leave that out"
        else:
            return records
        raise UnsupportedError(rule, self.settings.url.target, problem)

    def around_of(self, task: str) -> tuple[Surrounding, ...]:
        """Return what is around the runs of a task, the outermost first (rule AR)."""
        declaration = self._tasks.get(task)
        on_task = () if declaration is None else declaration.around
        return (*(each for each in self._around if fnmatchcase(task, each.glob)), *on_task)

    def _make_engine(self) -> Engine:
        engine = super()._make_engine()
        for declaration in self._tasks.values():
            engine.register(declaration)
        return engine

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
        hard_time_limit: Duration | None = None,
        around: Sequence[Around] = (),
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        schedules: Sequence[Timing] = (),
        catch_up: CatchUp | None = None,
        overlap: Overlap | None = None,
        results: bool = True,
        unique: bool | str | Sequence[str] | Unique = False,
    ) -> Decorator: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare a task, bare (`@task`) or with options (`@task(queue="email")`).

        Args:
            function: What to run: a function, or a coroutine function.
            **options: `name`: what messages call it, `module.qualname` by default. `queue`: where they wait, if
                `using(queue=)` and the routes don't say. `priority`: `low`, `normal`, `high` or `critical`.
                `retry`: a `RetryPolicy`. `expires`: a message that would start later than this after it was sent is
                discarded. `time_limit`: how long a run may take, and `hard_time_limit`, a longer one: when its process
                is ended with it, if it goes on. `around`: generator functions of the run with one `yield`, entered
                before it and left after it; see `Bridge.around`. `cron` (with `timezone`, UTC by default) or `every`:
                when workers send it by themselves, without arguments; with `catch_up`, `none`, `one` or `all`, for
                what was due while no worker was there, and `overlap`, `allow` or `skip`, for what is due before the
                last one has ended. `schedules`: several of these, as `Cron(...)` and `Every(...)`. `results`: whether
                to record what becomes of its messages, where there is a store; `False` costs nothing, and gives no
                status, result or cancelling. `unique`: the parameters, by name, that make two messages the same, `True`
                for all, or a `Unique(...)`: of the same ones, one waits or runs at a time (rules U); needs a store.

        Raises:
            DeclarationError: An option is unknown or wrong, or there is a task or schedule of this name already.
            NotInstalledError: `cron` needs cronsim: `pip install 'taskbridge-queue[cron]'`.
        """
        if function is None:
            return partial(self._declare, options)
        return self._declare(options, function)

    def _declare(self, options: Mapping[str, Any], function: Callable[..., Any]) -> Any:
        declaration = declare(function, **options)
        if declaration.name == PROBE.name:
            raise DeclarationError(f"a task can't be called {PROBE.name!r}: that is what workers are probed with")
        with locks.no_fork(), self._lock:
            former = self._tasks.get(declaration.name)
            if former is not None and (first := place_of(former.function)) != (second := place_of(function)):
                places = f"declared at {first}, and this one at {second}"
                problem = f"there is a task {declaration.name!r} already, {places}"
                raise DeclarationError(f"{problem}; give one of them another name: @task(name=...)")
            if declaration.schedules:
                self.schedules.declare(declaration)
            self._tasks = {**self._tasks, declaration.name: declaration}  # anew, for threads may go through them
            self._forget()
            engine: Engine | None = self._made.get("engine")
            if engine is not None:
                engine.register(declaration)
        kind: Any = AsyncTask if declaration.is_coroutine else Task
        return kind(self._sending, declaration)

    def _forget(self) -> None:
        """Bind tasks anew: tasks, settings or connections have changed."""
        self._made.pop("queues", None)
        self._sending.forget()
        self.bound = _Bound(self).__getitem__

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

        The call is what `Task.call` returns, with arguments; with `using(...)`, also queue, priority and expiry. Either
        `cron`, of five fields, in the IANA zone `timezone` (UTC if None), or `every`, an interval that counts from
        1970-01-01 00:00 UTC, says when. A `name` of None is made of the task's name and the time. Of what was due while
        no worker was there, `catch_up` has `none` sent, the latest `one` (the default), or `all`. What is due before
        the last one has ended is sent if `overlap` is `allow`, and not if it is `skip`.

        Raises:
            DeclarationError: An option is wrong, or there is a schedule of this name already.
            EncodeError: An argument can't be put in a message.
            NotInstalledError: `cron` needs cronsim: `pip install 'taskbridge-queue[cron]'`.
        """
        from taskbridge.schedules.plan import timing_of  # here, for few applications have some

        timing = timing_of(cron=cron, every=every, timezone=timezone, name=name, catch_up=catch_up, overlap=overlap)
        if timing is None:
            raise DeclarationError("a periodic call needs cron or every")
        if not isinstance(call, Call):
            raise DeclarationError(f"periodic takes what task.call(...) returns, not {call!r}: is it a @task?")
        with locks.no_fork(), self._lock:
            self.schedules.add(call, timing)

    def on(self, name: HookName, *, task: str | None = None) -> Callable[[HookT], HookT]:
        """Return a decorator that adds a hook, such as `@bridge.on("dead")`; it is called with an `Event`.

        `task` names those whose messages it is called for, such as `shop.*`; None is all. Raises `ValueError` if there
        is no such hook, or it is not about a message, so that `task` can't be given.
        """
        hooks = self.hooks.named(name)
        if task is not None and (name.startswith("worker_") or name == "operated"):
            raise ValueError(f"the hook {name} is about no message, and can't be for the tasks {task!r} only")

        def add(hook: HookT) -> HookT:
            hooks.append(hook if task is None else for_tasks(task, hook))
            return hook

        return add

    @overload
    def around(self, function: AroundT, /) -> AroundT: ...

    @overload
    def around(self, /, *, task: str | None = None) -> Callable[[AroundT], AroundT]: ...

    def around(self, function: Any = None, /, *, task: str | None = None) -> Any:
        """Have something around runs: what stands before the `yield` comes before them, and the rest after.

        Such as::

            @bridge.around
            def tenant(run: Context) -> Iterator[None]:
                with schema_of(run.headers["tenant"]):
                    yield

        A run goes on as if the task's body stood in a `with` statement for each of them, in the order in which they
        are declared, before those of the task itself. What they raise is the attempt's error, as if the task raised it.

        The function is a generator function, or an async generator function, whose parameter is the run; else this
        raises `DeclarationError`. `task` names the tasks that it is for, such as `shop.*`; None is all.
        """
        if function is None:
            return partial(self.around, task=task)
        from taskbridge.surroundings import surrounding  # here, for few processes have any

        try:
            found = surrounding(function, "*" if task is None else task)
        except TypeError as exc:
            raise DeclarationError(str(exc)) from None
        with locks.no_fork(), self._lock:
            self._around = (*self._around, found)
            self._forget()
        return function

    # Sending

    def named(self, task: str) -> Task[..., Any]:
        """Return a task by its name, to be sent; another process may declare it, and runs it (rule S10).

        If this process does not, messages go where the routes say, or to the default queue, unless `using` says
        otherwise, their arguments are not looked at before a worker has them, and a plain call is a `TypeError`. For
        what can't be the name of a task this raises `DeclarationError`.
        """
        declaration = self._tasks.get(task)
        if declaration is None or declaration is PROBE:
            declaration = undeclared(task)
        return Task(self._sending, declaration)

    def send(self, task: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Send a task by its name, as in `bridge.send("shop.report", "eu")`; see `named` and `Task.send`."""
        return self.named(task).send(*args, **kwargs)

    async def asend(self, task: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Do as `send` without blocking the event loop."""
        return await self.named(task).asend(*args, **kwargs)

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `Task.send_many`, with calls of any tasks."""
        return self._sending.send_many(calls)

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        return await self._sending.asend_many(calls)

    # Running

    def run_until_idle(self, *, max_runs: int = 10_000) -> int:
        """Run all that waits and all that is parked, here and now, and return the number of runs; only on `inline://`.

        The virtual clock jumps to each due time, so that a task with hour-long backoffs ends in milliseconds. Raises
        `TaskBridgeError` if it isn't idle after `max_runs`, and `UnsupportedError` if the bridge is not `inline://`.
        """
        return self._inline("run_until_idle").run_until_idle(max_runs)

    def run_schedules(self, until: When, *, max_runs: int = 10_000) -> int:
        """Run all that is due up to a time, from now or an aware datetime, by schedules too; see `run_until_idle`."""
        now = self.now()
        return self._inline("run_schedules").run_schedules(now + delay_s(until, now=now, name="until"), max_runs)

    def run_until(self, done: Callable[[], bool]) -> bool:
        """Run what waits, if nobody else does, until something is done; return whether nothing is left to run."""
        return self.settings.url.engine == "inline" and self._inline("run_until").run_until(done)

    def work_is_there(self) -> None:
        """Learn that messages wait: on `inline://` the threads that run them start now, if they don't run yet."""
        if self.settings.url.engine == "inline":
            self._inline("send").sent()

    def _inline(self, what: str) -> InlineEngine:
        if self.settings.url.engine != "inline":
            raise UnsupportedError(what, self.settings.url.target, "use inline:// in tests")
        return cast("InlineEngine", self.engine)

    def embedded_worker(self, *, queues: Sequence[str] = (), threads: int = 4) -> AbstractContextManager[None]:
        """Run a worker in threads of this process while the block runs; on `inline://` and the memory brokers.

        It consumes these queues, all known ones if none is named, and runs as many tasks at a time as it has threads.
        If the broker is a server, this raises `UnsupportedError`: start `taskbridge worker`.
        """
        if self.settings.url.broker != "memory":
            raise UnsupportedError("embedded_worker", self.settings.url.target, "start `taskbridge worker` instead")
        self._check_known(queues)
        return self.engine.embedded_worker(queues=queues, threads=threads)

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        """Return the commands of the engine's stock workers; `UnsupportedError` if messages live in this process."""
        if self.settings.url.broker == "memory":
            raise UnsupportedError(
                "workers", self.settings.url.target, "its messages live in the process that sends them; choose a server"
            )
        self._check_known(options.queues)
        if self.settings.scheduler and options.scheduler:
            self.schedules.check()
        commands = self.engine.worker_commands(options)
        if options.scheduler:
            return commands
        from taskbridge.schedules.sender import OFF_VARIABLE  # here, for only who starts workers needs it

        return [replace(command, env={**command.env, OFF_VARIABLE: "off"}) for command in commands]

    # Looking

    def check_priorities(self) -> None:
        """Raise `UnsupportedError` for a task whose priority its queue does not keep on this broker (rule RQ2)."""
        for declaration in self.declarations():
            check_priority(self, declaration.name, self.queue_of(declaration.name), declaration.priority)

    def counts(self) -> Counts:
        """Return how much waits in each known queue, and how much is delayed and dead."""
        return self.broker.counts(self.queues())

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first, as they are stored; `dead.list` shows them."""
        return self.broker.dead_letters()

    def paused(self) -> tuple[Pause, ...]:
        """Return what is paused, the earliest first, as the store says now; without a store `UnsupportedError`."""
        return self._pausing("paused").all()

    def health(self, *queues: str, timeout: Duration = 5) -> Health:
        """Return whether workers consume these queues, by a probe in each that is not paused; all if none is named.

        It waits for answers for `timeout` at most. If workers are threads of this process, it is an `UnsupportedError`.
        """
        from taskbridge.health import examine  # here, for few processes ask

        self._check_known(queues)
        asked = tuple(dict.fromkeys(queues)) or self.queues()
        timeout_s, pauses = seconds(timeout, name="timeout"), self.pauses
        return examine(self.broker, self.settings.url, asked, pauses=pauses, timeout_s=timeout_s, now=self.now())

    # Changing

    def pause(self, queue: str | None = None, *, task: str | None = None, until: datetime | None = None) -> None:
        """Let no message of a queue start any more, or of the tasks whose names match the glob `task`.

        Exactly one of the two is given, else it is a `ValueError`. Workers know it within a second, those that start
        later too. What runs goes on, and sending does. It holds until `resume`, or until an aware datetime by the
        store's clock, which must be in the future; to pause again sets another one. It needs a store, else this raises
        `UnsupportedError`.
        """
        self._check_known(() if queue is None else (queue,))
        self._pausing("pause").pause(*_one(queue, task), until)

    def resume(self, queue: str | None = None, *, task: str | None = None) -> bool:
        """Let messages of a queue start again, or of the tasks of a glob that was paused; return whether it was."""
        was_paused = self._pausing("resume").resume(*_one(queue, task))
        self.work_is_there()
        return was_paused

    def _pausing(self, what: str) -> Pauses:
        if self.pauses is None:
            problem = "pausing needs a store; set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
            raise UnsupportedError(what, self.settings.url.target, problem)
        return self.pauses

    def close(self) -> None:
        """Close the connections and stop what runs in the background; the next use opens them again."""
        self._forget()
        super().close()

    def reconfigure(self, **given: Any) -> None:
        """Give the bridge other settings; its tasks and hooks stay. Connections of the former ones are closed."""
        from taskbridge.settings import load  # here, for declaring tasks needs no settings

        load(given)
        self._take_settings(given)
        _ = self.settings

    def _take_settings(self, given: Mapping[str, Any]) -> None:
        try:
            self.close()
        finally:
            with self._lock:
                self._given = given
                self._made.pop("settings", None)
                self._forget()

    @contextmanager
    def temporarily(self, **given: Any) -> Generator[None, None, None]:
        """Use some other settings while the block runs, in tests say; all else stays, and then it is as it was."""
        former, is_stopping = self._given, self.is_stopping
        self.reconfigure(**{**former, **given})
        try:
            yield
        finally:
            self.is_stopping = is_stopping
            self._take_settings(former)

    @contextmanager
    def divert(self, broker: Broker) -> Generator[None, None, None]:
        """Hand what is sent to another broker, and record none of it, while the block runs; see `testing`."""
        former, self._sending.diverted = self._sending.diverted, broker
        self._sending.forget()
        try:
            yield
        finally:
            self._sending.diverted = former
            self._sending.forget()

    def move_to(self, url: str) -> None:
        """Use another engine and broker; all else stays: other settings, tasks and hooks."""
        self.reconfigure(**{**self._given, "url": url})


def _one(queue: str | None, task: str | None) -> tuple[str | None, str | None]:
    if (queue is None) == (task is None) or task == "":
        raise ValueError(f"either a queue or a glob of tasks is paused, not {queue!r} and {task!r}")
    return queue, task


class _DefaultBridge(Bridge):
    """The bridge of module-level tasks: it reads its settings when they are first needed, not at import."""

    def __init__(self) -> None:
        self._begin({})


_default: Final = _DefaultBridge()

task: Final = _default.task
"""Declare a task of the default bridge; see `Bridge.task`."""

on: Final = _default.on
"""Add a hook to the default bridge; see `Bridge.on`."""


around: Final = _default.around
"""Have something around the runs of the default bridge; see `Bridge.around`."""


def default_bridge() -> Bridge:
    """Return the default bridge, to which module-level tasks belong."""
    return _default


def configure(url: str | None = None, **settings: Any) -> Bridge:
    """Give the default bridge its settings, over the environment, and return it; it takes them as `Bridge` does."""
    _default.reconfigure(url=url, **settings)
    return _default
