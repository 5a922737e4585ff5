"""One decorator, one message, one meaning, on Celery or on Dramatiq.

Names are imported from their modules when they are first asked for (PEP 562): a program that only declares tasks and
sends them never loads what dead letters or health need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge, configure, default_bridge, on, task
    from taskbridge.brokers.base import Counts
    from taskbridge.context import Context, current
    from taskbridge.dead import DeadEntry, DeadLetters, DeadPage, Replayed
    from taskbridge.exceptions import (
        BrokerUnavailable,
        CodecError,
        DeclarationError,
        DecodeError,
        EncodeError,
        MessageTooLarge,
        NoCurrentTaskError,
        NoSuchDeadLetter,
        NoSuchRecord,
        NotInstalledError,
        ResultTimeout,
        ResultTooLarge,
        SendError,
        SettingsError,
        StoreNotReady,
        StoreUnavailable,
        TaskBridgeError,
        TaskCancelled,
        TaskDiscarded,
        TaskFailed,
        TimeLimitExceeded,
        UnknownQueue,
        UnknownSchedule,
        UnsupportedError,
        WorkerLost,
    )
    from taskbridge.handle import Handle
    from taskbridge.health import Health
    from taskbridge.hooks import Event
    from taskbridge.message import DeadLetter, Message, Priority
    from taskbridge.results import Attempt, Results, Status
    from taskbridge.retry import Discard, ErrorInfo, Retry, RetryPolicy
    from taskbridge.schedules.listing import ScheduleEntry, Schedules
    from taskbridge.schedules.plan import Cron, Every
    from taskbridge.stores.records import State
    from taskbridge.tasks import AsyncTask, Call, Task

__all__ = [
    "AsyncTask",
    "Attempt",
    "Bridge",
    "BrokerUnavailable",
    "Call",
    "CodecError",
    "Context",
    "Counts",
    "Cron",
    "DeadEntry",
    "DeadLetter",
    "DeadLetters",
    "DeadPage",
    "DeclarationError",
    "DecodeError",
    "Discard",
    "EncodeError",
    "ErrorInfo",
    "Event",
    "Every",
    "Handle",
    "Health",
    "Message",
    "MessageTooLarge",
    "NoCurrentTaskError",
    "NoSuchDeadLetter",
    "NoSuchRecord",
    "NotInstalledError",
    "Priority",
    "Replayed",
    "ResultTimeout",
    "ResultTooLarge",
    "Results",
    "Retry",
    "RetryPolicy",
    "ScheduleEntry",
    "Schedules",
    "SendError",
    "SettingsError",
    "State",
    "Status",
    "StoreNotReady",
    "StoreUnavailable",
    "Task",
    "TaskBridgeError",
    "TaskCancelled",
    "TaskDiscarded",
    "TaskFailed",
    "TimeLimitExceeded",
    "UnknownQueue",
    "UnknownSchedule",
    "UnsupportedError",
    "WorkerLost",
    "configure",
    "current",
    "default_bridge",
    "on",
    "task",
]

_MODULES = {
    "bridge": "Bridge configure default_bridge on task",
    "brokers.base": "Counts",
    "context": "Context current",
    "dead": "DeadEntry DeadLetters DeadPage Replayed",
    "handle": "Handle",
    "health": "Health",
    "hooks": "Event",
    "message": "DeadLetter Message Priority",
    "schedules.listing": "ScheduleEntry Schedules",
    "results": "Attempt Results Status",
    "retry": "Discard ErrorInfo Retry RetryPolicy",
    "schedules.plan": "Cron Every",
    "stores.records": "State",
    "tasks": "AsyncTask Call Task",
}
"""Where the public names are; those that are missing here are exceptions."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a name from its module, and keep it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # No `import_module`: `python -X importtime` does not show what that imports.
    module = __import__(f"{__name__}.{_HOMES.get(name, 'exceptions')}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Return the public names too, whether they were asked for or not."""
    return sorted({*globals(), *__all__})
