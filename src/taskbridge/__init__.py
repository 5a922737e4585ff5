"""One decorator, one message, one meaning, on Celery or on Dramatiq.

Names are imported from their modules when they are first asked for (PEP 562): a program that only declares tasks and
sends them never loads what dead letters or health need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` says to type checkers that a name is public
    from taskbridge.bridge import Bridge as Bridge
    from taskbridge.bridge import around as around
    from taskbridge.bridge import configure as configure
    from taskbridge.bridge import default_bridge as default_bridge
    from taskbridge.bridge import on as on
    from taskbridge.bridge import task as task
    from taskbridge.brokers.base import Counts as Counts
    from taskbridge.context import Context as Context
    from taskbridge.context import current as current
    from taskbridge.dead import DeadEntry as DeadEntry
    from taskbridge.dead import DeadLetters as DeadLetters
    from taskbridge.dead import DeadPage as DeadPage
    from taskbridge.dead import Replayed as Replayed
    from taskbridge.exceptions import BrokerUnavailable as BrokerUnavailable
    from taskbridge.exceptions import Cancelled as Cancelled
    from taskbridge.exceptions import CodecError as CodecError
    from taskbridge.exceptions import DeclarationError as DeclarationError
    from taskbridge.exceptions import DecodeError as DecodeError
    from taskbridge.exceptions import EncodeError as EncodeError
    from taskbridge.exceptions import IdempotencyConflict as IdempotencyConflict
    from taskbridge.exceptions import MessageTooLarge as MessageTooLarge
    from taskbridge.exceptions import NoCurrentTaskError as NoCurrentTaskError
    from taskbridge.exceptions import NoSuchDeadLetter as NoSuchDeadLetter
    from taskbridge.exceptions import NoSuchRecord as NoSuchRecord
    from taskbridge.exceptions import NotInstalledError as NotInstalledError
    from taskbridge.exceptions import ResultInTask as ResultInTask
    from taskbridge.exceptions import ResultNotEncodable as ResultNotEncodable
    from taskbridge.exceptions import ResultTimeout as ResultTimeout
    from taskbridge.exceptions import SendError as SendError
    from taskbridge.exceptions import SettingsError as SettingsError
    from taskbridge.exceptions import StoreNotReady as StoreNotReady
    from taskbridge.exceptions import StoreUnavailable as StoreUnavailable
    from taskbridge.exceptions import TaskBridgeError as TaskBridgeError
    from taskbridge.exceptions import TaskCancelled as TaskCancelled
    from taskbridge.exceptions import TaskDiscarded as TaskDiscarded
    from taskbridge.exceptions import TaskFailed as TaskFailed
    from taskbridge.exceptions import TimeLimitExceeded as TimeLimitExceeded
    from taskbridge.exceptions import UniqueConflict as UniqueConflict
    from taskbridge.exceptions import UnknownQueue as UnknownQueue
    from taskbridge.exceptions import UnknownSchedule as UnknownSchedule
    from taskbridge.exceptions import UnsupportedError as UnsupportedError
    from taskbridge.exceptions import WorkerLost as WorkerLost
    from taskbridge.flows.building import Flow as Flow
    from taskbridge.flows.building import become as become
    from taskbridge.flows.building import group as group
    from taskbridge.flows.handle import FlowHandle as FlowHandle
    from taskbridge.flows.results import Results as Results
    from taskbridge.flows.states import FlowEnd as FlowEnd
    from taskbridge.flows.states import FlowStatus as FlowStatus
    from taskbridge.flows.states import Outcome as Outcome
    from taskbridge.handle import Handle as Handle
    from taskbridge.health import Health as Health
    from taskbridge.hooks import Event as Event
    from taskbridge.message import DeadLetter as DeadLetter
    from taskbridge.message import Message as Message
    from taskbridge.message import Priority as Priority
    from taskbridge.pauses import Pause as Pause
    from taskbridge.results import MessageResults as MessageResults
    from taskbridge.retry import Discard as Discard
    from taskbridge.retry import ErrorInfo as ErrorInfo
    from taskbridge.retry import Retry as Retry
    from taskbridge.retry import RetryPolicy as RetryPolicy
    from taskbridge.routing import Queue as Queue
    from taskbridge.schedules.listing import ScheduleEntry as ScheduleEntry
    from taskbridge.schedules.listing import Schedules as Schedules
    from taskbridge.schedules.plan import Cron as Cron
    from taskbridge.schedules.plan import Every as Every
    from taskbridge.stores.states import Attempt as Attempt
    from taskbridge.stores.states import Progress as Progress
    from taskbridge.stores.states import State as State
    from taskbridge.stores.states import Status as Status
    from taskbridge.tasks import AsyncTask as AsyncTask
    from taskbridge.tasks import Call as Call
    from taskbridge.tasks import Task as Task
    from taskbridge.unique import Unique as Unique

_MODULES = {
    "bridge": "Bridge around configure default_bridge on task",
    "brokers.base": "Counts",
    "context": "Context current",
    "dead": "DeadEntry DeadLetters DeadPage Replayed",
    "exceptions": (
        "BrokerUnavailable Cancelled CodecError DeclarationError DecodeError EncodeError IdempotencyConflict "
        "MessageTooLarge "
        "NoCurrentTaskError NoSuchDeadLetter NoSuchRecord NotInstalledError ResultInTask "
        "ResultNotEncodable ResultTimeout SendError SettingsError StoreNotReady StoreUnavailable "
        "TaskBridgeError TaskCancelled TaskDiscarded TaskFailed TimeLimitExceeded UnknownQueue "
        "UniqueConflict UnknownSchedule UnsupportedError WorkerLost"
    ),
    "flows.building": "Flow become group",
    "flows.handle": "FlowHandle",
    "flows.results": "Results",
    "flows.states": "FlowEnd FlowStatus Outcome",
    "handle": "Handle",
    "health": "Health",
    "hooks": "Event",
    "message": "DeadLetter Message Priority",
    "pauses": "Pause",
    "results": "MessageResults",
    "retry": "Discard ErrorInfo Retry RetryPolicy",
    "routing": "Queue",
    "schedules.listing": "ScheduleEntry Schedules",
    "schedules.plan": "Cron Every",
    "stores.states": "Attempt Progress State Status",
    "tasks": "AsyncTask Call Task",
    "unique": "Unique",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

if not TYPE_CHECKING:
    __all__ = [*_HOMES]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    """Import a name from its module, and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # No `import_module`: `python -X importtime` does not show what that imports.
    module = __import__(f"{__name__}.{_HOMES[name]}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Return the public names too, whether they were asked for or not."""
    return sorted({*globals(), *_HOMES})
