"""What to write instead: for values that can't be sent, and for the words of Celery, Dramatiq and others.

Only errors need it, so it is imported where they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from taskbridge.exceptions import nearest
from taskbridge.hints import form_of

_POLICY: Final = "write retry=RetryPolicy(...)"

OPTIONS: Final[Mapping[str, str]] = {
    "bind": "leave it and the first parameter out: current() tells what runs, raise Retry(...) retries it",
    "base": "what is to happen around runs goes into hooks, such as @bridge.on('dead')",
    "max_retries": "write retry=RetryPolicy(max_attempts=...), which counts the first run too",
    "autoretry_for": f"{_POLICY} with retry_on=(...)",
    "dont_autoretry_for": f"{_POLICY} with give_up_on=(...)",
    "throws": f"{_POLICY} with give_up_on=(...)",
    "retry_when": f"{_POLICY} with retry_on=(...) or give_up_on=(...)",
    **dict.fromkeys(
        ("default_retry_delay", "retry_backoff", "retry_kwargs", "min_backoff", "backoff"),
        f"{_POLICY} with min_delay and factor, in seconds",
    ),
    **dict.fromkeys(("retry_backoff_max", "max_backoff"), f"{_POLICY} with max_delay, in seconds"),
    "retry_jitter": f"{_POLICY} with jitter, from 0 to 1",
    "retries": "write retry=RetryPolicy(max_attempts=...), which counts the first run too",
    "rate_limit": "there is none: give the task a queue of its own, and that a worker with as few slots as may run",
    **dict.fromkeys(
        ("acks_late", "reject_on_worker_lost", "acks_on_failure_or_timeout", "track_started", "serializer", "typing"),
        "leave it out: that is settled here, and the same on every engine",
    ),
    "ignore_result": "write results=False",
    "store_results": "results are kept where there is a store; results=False keeps none",
    "soft_time_limit": "write time_limit, which raises TimeLimitExceeded in the task",
    "queue_name": "write queue",
    "routing_key": "write queue",
    "actor_name": "write name",
    "max_age": "write expires, in seconds",
    "timeout": "write time_limit, in seconds",
}
"""Options of other decorators: what to write here."""

METHODS: Final[Mapping[str, str]] = {
    "delay": "write send(...)",
    "apply_async": "write send(...), schedule(when, ...) for countdown and eta, using(queue=...) for other options",
    "send_with_options": "write using(queue=...).send(...), or schedule(when, ...) for a delay",
    "enqueue": "write send(...)",
    "kiq": "write send(...)",
    **dict.fromkeys(("s", "si", "signature", "subtask", "message", "message_with_options"), "write call(...)"),
    **dict.fromkeys(("map", "starmap", "chunks"), "write send_many([task.call(...), ...])"),
    **dict.fromkeys(("apply", "run", "fn"), "call the task itself: task(...)"),
    "retry": "in the task, raise Retry(after=..., reason=...)",
    "request": "in the task, current() tells what runs",
    "AsyncResult": "write bridge.handle(id)",
    **dict.fromkeys(("app", "broker", "backend"), "the engine itself is bridge.native"),
}
"""Methods of other tasks: what to write here."""

COMMANDS: Final[Mapping[str, str]] = {
    "beat": "workers send by schedules themselves; `taskbridge scheduler` does only that",
    "inspect": "see `taskbridge health`, `taskbridge queues` and `taskbridge status ID`",
    "control": "see `taskbridge cancel ID` and `taskbridge schedules pause NAME`",
    "purge": "see `taskbridge dead purge`; what waits in a queue is not deleted by a command",
    "retry": "see `taskbridge dead replay ID`",
    "requeue": "see `taskbridge dead replay ID`",
    "pause": "see `taskbridge schedules pause NAME`; a queue is paused by stopping its workers",
    "resume": "see `taskbridge schedules resume NAME`",
    "revoke": "see `taskbridge cancel ID`",
    "result": "see `taskbridge status ID`",
    "multi": "see `taskbridge worker --processes N`",
    "start": "see `taskbridge worker MODULE`",
    "run": "see `taskbridge worker MODULE`",
    "call": "tasks are sent from Python, by task.send(...)",
    "send": "tasks are sent from Python, by task.send(...)",
    "tasks": "see `taskbridge check MODULE`, which lists them",
    "list": "see `taskbridge queues`, `taskbridge schedules` and `taskbridge dead list`",
    **dict.fromkeys(("flower", "events", "top", "monitor"), "see `taskbridge queues` and `taskbridge dead list`"),
}
"""Commands of other command lines: what to write here."""


NATIVE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("add_middleware", "middleware"), "hooks, such as @bridge.on('dead'), hold on both engines"),
    **dict.fromkeys(("declare_actor", "actor", "task"), "@bridge.task declares a task for both engines"),
    **dict.fromkeys(("get_actor", "actors", "tasks", "enqueue", "send_task"), "tasks of both engines have send(...)"),
    **dict.fromkeys(("conf", "config_from_object"), "the settings of taskbridge hold on both engines"),
    **dict.fromkeys(
        ("control", "AsyncResult", "backend"), "see bridge.handle(id), bridge.health() and bridge.counts()"
    ),
}
"""What `bridge.native` has on the one engine and not on the other: what holds on both."""


def instead(word: str, foreign: Mapping[str, str], own: Iterable[str] = ()) -> str:
    """Return what to write instead of a foreign word, or the nearest of one's own; an empty string if nobody knows."""
    return f": {foreign[word]}" if word in foreign else nearest(word, own)


def native_attribute(native: object, name: str, what: str) -> Any:
    """Raise that the engine itself lacks an attribute; say so if it is one that the other engine has."""
    if name in NATIVE:
        raise AttributeError(f"bridge.native is {what}, which has no {name!r}: {NATIVE[name]}", name=name, obj=native)
    return object.__getattribute__(native, name)


_BY_ATTRIBUTES: Final[Mapping[str, str]] = {
    "dtype tolist": "pass value.tolist()",
    "cr_await": "await it, and pass what that returns",
    "tobytes release": "pass bytes(value)",
    "extend hex": "pass bytes(value)",
    "isoformat": "pass a date or time of the standard library's own class",
    "read close": "pass its name, or what it holds",
    "_proxy____args": "pass str(value)",
    "__iter__": "pass list(value)",
    "__code__": "pass its name",
    "__subclasses__": "pass its name",
}
"""By attributes that a class has all of: what to do about its values."""


def for_value(value: Any) -> str:
    """Return what to do about a value that can't be put in a message."""
    kind = cast("Any", type(value))
    attributes = {name for base in kind.__mro__ for name in vars(base)}
    if "__mapper__" in attributes or {"_meta", "pk"} <= attributes:
        return "pass its primary key, and load it in the task"
    if form_of(kind) is not None:
        name = kind.__name__.removeprefix("Posix")
        return f"annotate the parameter, or what the task returns, with {name}, and it arrives as one"
    found = (what for names, what in _BY_ATTRIBUTES.items() if set(names.split()) <= attributes)
    return next(found, "pass what it is made of, such as text, numbers, lists and dicts")
