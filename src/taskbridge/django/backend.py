"""A backend of Django's tasks: what `django.tasks.task` decorates is a task of the default bridge.

It is declared under its `module_path` as it is decorated, and from then on it is like any other task of the bridge: the
same workers run it, with retries, dead letters and hooks. A record keeps what it was sent with, so that any process
can make a `TaskResult` of it. A header tells what only Django knows of a message: the alias of the backend, and what
`using` has changed. Workers run a task by its declared name; nothing that a message names is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from fnmatch import fnmatchcase
from functools import wraps
from inspect import Parameter, Signature, iscoroutinefunction
from typing import Any, Final, cast

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.utils import timezone

from taskbridge import codec, failures
from taskbridge.bridge import default_bridge
from taskbridge.context import Context, current
from taskbridge.django import compat
from taskbridge.durations import Duration, moment
from taskbridge.engines.settle import this_process
from taskbridge.exceptions import (
    BrokerUnavailable,
    NoSuchRecord,
    TaskBridgeError,
    TaskDiscarded,
    TaskFailed,
    UnknownQueue,
    nearest,
)
from taskbridge.hooks import Event, HookName
from taskbridge.message import Message, Priority
from taskbridge.results import outcome_of
from taskbridge.retry import ErrorInfo, RetryPolicy
from taskbridge.sending import check_priority
from taskbridge.signatures import signature_of
from taskbridge.stores.records import Attempt, Status

_HEADER: Final = "django"  # what only Django knows of a message, as JSON
_CRITICAL: Final = 50
_DEFAULT_QUEUE: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeTask(compat.AnyTask):
    """A task with options of its own, on Django 6.1 and `django-tasks`: `@task(max_attempts=3, time_limit=60)`.

    An option of None is taken from the backend's `OPTIONS`; durations are seconds or timedeltas.

    Attributes:
        max_attempts: Runs in total, the first included.
        backoff: The delay after the first attempt, and twice as long after each further one; or all delays, in order.
        retry: The whole policy, instead of these two.
        time_limit: How long a run may take.
        expires: A message that would start later than this after it was sent is discarded.
    """

    max_attempts: int | None = None
    backoff: Duration | Sequence[Duration] | None = None
    retry: RetryPolicy | None = None
    time_limit: Duration | None = None
    expires: Duration | None = None


_OPTIONS: Final = ("max_attempts", "backoff", "retry", "time_limit", "expires")


class TaskBackend(compat.BaseTaskBackend):
    """Runs Django's tasks on the default bridge: `TASKS = {"default": {"BACKEND": "taskbridge.django.TaskBackend"}}`.

    `OPTIONS` holds the options of all tasks that are decorated for it (those of `BridgeTask`), and in `tasks` those of
    some by their names: `{"max_attempts": 1, "tasks": {"shop.tasks.report_*": {"time_limit": 60}}}`. The first glob
    that matches wins over the former, and what the decorator says over both. A task without a policy has the bridge's,
    which retries. `using(backend=...)` changes none of this.

    The queue `default` is the bridge's default queue. Priorities below 0 are `low`, 0 is `normal`, 1 to 49 are `high`,
    and the others `critical`; inside a level, what was sent first comes first.

    A result that is being retried is `READY` again. `task_started` is sent at the start of each attempt, and
    `task_finished` once, at the end of the last one: an attempt that is retried has not finished its task. What is
    cancelled, expires, or loses its worker for good has `FAILED`, too. A worker logs what receivers of these two raise.
    """

    task_class: type[compat.AnyTask] = BridgeTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        for given in (self.options, *self.options.get("tasks", {}).values()):
            for option in given.keys() - _OPTIONS - ({"tasks"} if given is self.options else set()):
                raise compat.InvalidTaskBackend(f"TASKS[{alias!r}] has no option {option!r}{nearest(option, _OPTIONS)}")

    def validate_task(self, task: compat.AnyTask) -> None:
        """Raise `InvalidTask` if the task can't be run, and declare it if that was not done."""
        super().validate_task(task)
        _declare(task, self.options)

    def enqueue(self, task: compat.AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Send a task, or schedule it for its `run_after`, and return its result, which is `READY`.

        With `inline://?at_send=1` it has been run then, and the result says what became of it.

        Raises:
            TypeError: An argument is not JSON, or they don't fit the function.
            InvalidTask: The backend can't run it.
            BrokerUnavailable, MessageTooLarge: As `Task.send` of taskbridge.
        """
        self.validate_task(task)
        bridge, plain, named = default_bridge(), compat.as_json(args), compat.as_json(kwargs)
        when, enqueued_at = task.run_after, bridge.now()
        told = {
            "backend": self.alias,
            "queue_name": task.queue_name,
            "priority": task.priority,
            "run_after": None if when is None else when.isoformat(),
            "enqueued_at": enqueued_at,
        }
        sendable = bridge.named(task.module_path).using(
            queue=self.queue_of(task), priority=_level(task.priority), headers={_HEADER: json.dumps(told)}
        )
        try:
            if when is None:
                handle = sendable.send(*plain, **named)
            else:
                when = when if timezone.is_aware(when) else timezone.make_aware(when)
                handle = sendable.schedule(when, *plain, **named)
        except UnknownQueue as exc:
            raise compat.InvalidTask(
                f"Queue '{task.queue_name}' is not known: add it to TASKBRIDGE['QUEUES']."
            ) from exc
        result = _ready(task, handle.id, plain, named, self.alias, enqueued_at)
        compat.signals.task_enqueued.send(type(self), task_result=result)
        if bridge.settings.url.at_send:
            with suppress(compat.TaskResultDoesNotExist):  # if it waits for a commit
                return self.get_result(handle.id)
        return result

    def queue_of(self, task: compat.AnyTask) -> str | None:
        """Return the queue of the bridge that a task names; None if it is the declared one, which routes may change."""
        if task.queue_name == _known[task.module_path][0].queue_name:
            return None
        return default_bridge().settings.default_queue if task.queue_name == _DEFAULT_QUEUE else task.queue_name

    def get_result(self, result_id: str) -> compat.AnyResult:
        """Return what has become of a message, in any process that has imported its task.

        Of an attempt that was retried, the traceback is but the type and the text of its error. Raises
        `TaskResultDoesNotExist` if there is no record, or not any more, and `UnsupportedError` without a store.
        """
        bridge = default_bridge()
        try:
            record = bridge.handle(result_id).status()
        except NoSuchRecord as exc:
            raise compat.TaskResultDoesNotExist(result_id) from exc
        if (known := _known.get(record.task)) is None:
            raise compat.TaskResultDoesNotExist(
                f"{result_id}: its task {record.task!r} is not imported in this process"
            )
        return _recorded(known[0], record)

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return what keeps the backend from what its flags promise: a store, and queues that are known."""
        found: list[checks.CheckMessage] = list(super().check(**kwargs))
        bridge, where = default_bridge(), f"TASKS[{self.alias!r}]"

        def say(kind: type[checks.Error | checks.Warning], id: str, what: str, hint: str | None = None) -> None:
            found.append(kind(f"{where}: {what}", hint=hint, id=f"taskbridge.{id}"))

        if not apps.is_installed("taskbridge.django"):
            say(checks.Error, "E103", "its app is not in INSTALLED_APPS.", "Add 'taskbridge.django'.")
        if self.options and _known and all(known.backend != self.alias for known, _ in _known.values()):
            hint = f"They are for tasks decorated with backend={self.alias!r}."
            say(checks.Warning, "W103", "its OPTIONS have no effect.", hint)
        try:
            if bridge.store is None:
                hint = "Set TASKBRIDGE['STORE'], such as 'redis://localhost:6379/0'."
                say(checks.Error, "E101", "results need a store.", hint)
            for name in sorted(self.queues - {_DEFAULT_QUEUE, *bridge.queues()}):
                hint = f"Add {name!r} to TASKBRIDGE['QUEUES']."
                say(checks.Warning, "W101", f"no worker consumes the queue {name!r}.", hint)
            if bridge.settings.has_quorum:
                for name in bridge.queues():
                    check_priority(bridge, where, name, "high")
        except BrokerUnavailable as exc:
            say(checks.Warning, "W102", f"whether priorities are kept is not known: {exc}")
        except TaskBridgeError as exc:
            say(checks.Error, "E102", str(exc))
        return found


# Declaring

_known: Final[dict[str, tuple[compat.AnyTask, Mapping[str, Any]]]] = {}
"""The tasks that this process has declared, by name, as they were decorated; and what they say beside Django's."""


def _declare(task: compat.AnyTask, options: Mapping[str, Any]) -> None:
    """Declare a task, unless it is a copy of one that is declared, which `using` made."""
    name, said = task.module_path, {each: getattr(task, each, None) for each in (*_OPTIONS, "takes_context")}
    if (known := _known.get(name)) is not None and known[0].func is task.func and known[1] == said:
        return
    globs: Mapping[str, Mapping[str, Any]] = options.get("tasks", {})
    chosen = {**options, **next((given for glob, given in globs.items() if fnmatchcase(name, glob)), {})}
    chosen |= {option: value for option, value in said.items() if value is not None}
    bridge = default_bridge()
    try:
        declared: dict[str, Any] = {
            "name": name,
            "queue": None if task.queue_name == _DEFAULT_QUEUE else task.queue_name,
            "priority": _level(task.priority),
            "retry": _policy(chosen),
            "time_limit": chosen.get("time_limit"),
            "expires": chosen.get("expires"),
            "around": [_started],
            "keeps_call": True,
        }
        bridge.task(**declared)(_function(task))
    except (ValueError, TypeError) as exc:
        raise compat.InvalidTask(str(exc)) from exc
    if not _known:
        for hook in _ENDS:
            bridge.on(hook)(_ended)
    _known[name] = task, said


def _policy(chosen: Mapping[str, Any]) -> RetryPolicy | None:
    given = {option: chosen[option] for option in ("max_attempts", "backoff") if chosen.get(option) is not None}
    if (policy := chosen.get("retry")) is not None or not given:
        return policy
    if (backoff := given.pop("backoff", None)) is not None:
        given["delays" if isinstance(backoff, (list, tuple)) else "min_delay"] = backoff
    return RetryPolicy(**given)


def _function(task: compat.AnyTask) -> Callable[..., Any]:
    """Return what workers call for a task: its function with its context, if it takes one; what it returns is JSON."""
    function, parameters = task.func, list(signature_of(task.func).parameters.values())

    def arguments(args: Sequence[Any]) -> Sequence[Any]:
        if not task.takes_context:
            return args
        return (compat.TaskContext(task_result=_running[current().message.attempt_key]), *args)

    @wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        return compat.as_json(await function(*arguments(args), **kwargs))

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return compat.as_json(function(*arguments(args), **kwargs))

    made: Callable[..., Any] = run_async if iscoroutinefunction(function) else run
    # Without annotations, for the values are as JSON has them, whatever classes these name.
    cast("Any", made).__signature__ = Signature(
        [each.replace(annotation=Parameter.empty) for each in parameters[1 if task.takes_context else 0 :]]
    )
    return made


def _level(priority: int) -> Priority:
    if priority <= 0:
        return "low" if priority < 0 else "normal"
    return "high" if priority < _CRITICAL else "critical"


# Running

_ENDS: Final[tuple[HookName, ...]] = ("succeeded", "retrying", "dead", "discarded")

_running: Final[dict[str, compat.AnyResult]] = {}
"""What runs in this process, by `Message.attempt_key`; what is given back stays, for its process ends."""


def _started(run: Context) -> Iterator[None]:
    """Make the result of a run, as the signals and the task's context have it, and send `task_started`."""
    message, attempts = run.message, list[Attempt]()
    if message.attempt > 1:
        with suppress(TaskBridgeError):  # of a store that is away, or has no record: that it is the second is known
            earlier = default_bridge().handle(message.id).status().attempts
            attempts = [each for each in earlier if each.number < message.attempt]
    now = moment(run.runner.now())
    result = _running[message.attempt_key] = _result_of(message)
    _add(result, [*attempts, Attempt(number=message.attempt, worker=this_process(), started_at=now)])
    _set(result, status=compat.TaskResultStatus.RUNNING)
    compat.signals.task_started.send_robust(_sender_of(result), task_result=result)
    yield


def _ended(event: Event) -> None:
    """Send `task_finished`, if the attempt was the last one."""
    message = event.message
    if message is None or message.task not in _known:
        return
    result = _running.pop(message.attempt_key, None) or _result_of(message)
    if event.name == "retrying":
        return
    _set(result, finished_at=_shown(moment(default_bridge().now())))
    if event.name == "succeeded":
        _set(result, status=compat.TaskResultStatus.SUCCESSFUL, _return_value=event.result)
        compat.signals.task_finished.send_robust(_sender_of(result), task_result=result)
        return
    error = event.error or TaskDiscarded(id=message.id, task=message.task, reason=event.reason)
    traceback = error.__traceback__
    result.errors.append(_error(ErrorInfo.of(error), failures.traceback_of(error)))
    _set(result, status=compat.TaskResultStatus.FAILED)
    try:
        raise error  # receivers find it by `sys.exc_info()`, as Django's own do that logs it
    except BaseException:
        error.__traceback__ = traceback  # without this function
        compat.signals.task_finished.send_robust(_sender_of(result), task_result=result)


def _result_of(message: Message) -> compat.AnyResult:
    """Return the result of a message that a worker has, as it was sent."""
    args, kwargs = message.arguments()
    return _as_sent(_known[message.task][0], message.id, args, kwargs, message.headers, message.enqueued_at)


def _sender_of(result: compat.AnyResult) -> type[compat.BaseTaskBackend]:
    backend = result.backend
    return type(compat.task_backends[backend]) if backend in compat.task_backends.settings else TaskBackend


# Results


def _ready(task: compat.AnyTask, id: str, args: Any, kwargs: Any, backend: str, enqueued_at: float) -> compat.AnyResult:
    return compat.TaskResult(
        task=task,
        id=id,
        status=compat.TaskResultStatus("READY"),
        enqueued_at=_shown(moment(enqueued_at)),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=backend,
        errors=[],
        worker_ids=[],
    )


def _as_sent(
    known: compat.AnyTask, id: str, args: Any, kwargs: Any, headers: Mapping[str, Any], enqueued_at: float
) -> compat.AnyResult:
    """Return a message's result as `enqueue` returned it; without its header, as if the bare task had been sent."""
    told: dict[str, Any] = json.loads(headers.get(_HEADER, "{}"))
    if told.get("run_after") is not None:
        told["run_after"] = datetime.fromisoformat(told["run_after"])
    enqueued_at = told.pop("enqueued_at", enqueued_at)
    task = object.__new__(type(known))  # not `replace`, which has the settings of this process validate it
    for field in fields(known):
        object.__setattr__(task, field.name, told.get(field.name, getattr(known, field.name)))
    return _ready(task, id, args, kwargs, task.backend, enqueued_at)


def _recorded(known: compat.AnyTask, record: Status) -> compat.AnyResult:
    args_json, kwargs_json, headers = record.sent or ("[]", "{}", {})
    args, kwargs = codec.loads_array(args_json), codec.loads_object(kwargs_json)
    result = _as_sent(known, record.id, args, kwargs, headers, record.enqueued_at.timestamp())
    _add(result, record.attempts)
    if record.state == "running":
        _set(result, status=compat.TaskResultStatus.RUNNING)
    elif record.is_final:
        is_done = record.state == "done"
        status = compat.TaskResultStatus.SUCCESSFUL if is_done else compat.TaskResultStatus.FAILED
        _set(result, status=status, finished_at=_shown(record.ended_at))
        try:
            _set(result, _return_value=outcome_of(record, None))
        except TaskFailed as exc:
            if record.attempts and record.attempts[-1].error is not None:
                result.errors.pop()  # of which there is more here
            result.errors.append(_error(record.error or ErrorInfo.of(exc), record.traceback))
        except TaskBridgeError as exc:
            result.errors.append(_error(ErrorInfo.of(exc)))
    return result


def _add(result: compat.AnyResult, attempts: Sequence[Attempt]) -> None:
    """Add attempts to a result. A record has the latest 50: the workers of those before have an empty id."""
    if attempts:
        workers = [""] * (attempts[0].number - 1) + [each.worker for each in attempts]
        started_at, last_at = _shown(attempts[0].started_at), _shown(attempts[-1].started_at)
        errors = [_error(each.error) for each in attempts if each.error is not None]
        _set(result, worker_ids=workers, started_at=started_at, last_attempted_at=last_at, errors=errors)


def _error(error: ErrorInfo, traceback: str = "") -> compat.TaskError:
    path = error.type if "." in error.type else f"builtins.{error.type}"
    return compat.TaskError(exception_class_path=path, traceback=traceback or f"{error.type}: {error.message}\n")


def _shown(at: Any) -> Any:
    """Return a time as Django has it: without a zone where `USE_TZ` is off."""
    return at if at is None or settings.USE_TZ else timezone.make_naive(at)


def _set(result: compat.AnyResult, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(result, name, value)  # it is frozen
