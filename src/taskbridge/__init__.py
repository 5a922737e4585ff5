"""One decorator, one message, one meaning, on Celery or on Dramatiq."""

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
    NotInstalledError,
    SendError,
    SettingsError,
    TaskBridgeError,
    TimeLimitExceeded,
    UnknownQueue,
    UnsupportedError,
    WorkerLost,
)
from taskbridge.handle import Handle
from taskbridge.health import Health
from taskbridge.hooks import Event
from taskbridge.message import DeadLetter, Message, Priority
from taskbridge.retry import Discard, ErrorInfo, Retry, RetryPolicy
from taskbridge.task import AsyncTask, Call, Task

__all__ = [
    "AsyncTask",
    "Bridge",
    "BrokerUnavailable",
    "Call",
    "CodecError",
    "Context",
    "Counts",
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
    "Handle",
    "Health",
    "Message",
    "MessageTooLarge",
    "NoCurrentTaskError",
    "NoSuchDeadLetter",
    "NotInstalledError",
    "Priority",
    "Replayed",
    "Retry",
    "RetryPolicy",
    "SendError",
    "SettingsError",
    "Task",
    "TaskBridgeError",
    "TimeLimitExceeded",
    "UnknownQueue",
    "UnsupportedError",
    "WorkerLost",
    "configure",
    "current",
    "default_bridge",
    "on",
    "task",
]
