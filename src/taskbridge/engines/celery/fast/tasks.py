"""The short way of a message through a Celery worker, where the tasks run in threads of its main process.

Celery's own way makes two promises and a future for a message, and traces its run for signals, events, log lines and
result backends. Where nobody listens for any of these, a message of taskbridge's goes from the main loop to a thread as
it was read.
What did not end well is shown by Celery's tracer, which is told what has become of it.

Celery's Django fixup listens to close connections to databases before and after each task: it is called here.
"""

from __future__ import annotations

import logging
from time import monotonic, time
from types import FunctionType
from typing import Any, Final

from celery import _state as _celery_state
from celery import signals
from celery.app import trace as _celery_trace
from celery.loaders.base import BaseLoader

from taskbridge.engines.celery import reading
from taskbridge.engines.celery.carrier import CALL_OF_CELERY, LINKS, Carrier, call_task
from taskbridge.engines.celery.consumer import Request, Way
from taskbridge.engines.celery.fast import gate
from taskbridge.engines.celery.stock import CeleryContext, CeleryTask, worker_state
from taskbridge.engines.celery.wire import META
from taskbridge.engines.settle import not_settled
from taskbridge.retry import Done

_received: Final[Any] = signals.task_received
_prerun: Final[Any] = signals.task_prerun
_postrun: Final[Any] = signals.task_postrun
_success: Final[Any] = signals.task_success
_trace: Final[Any] = _celery_trace
_state: Final[Any] = _celery_state

_DJANGO: Final = "celery.fixups.django"


class _Context(CeleryContext):
    """What `task.request` gives in a task, made without a look at what few ask for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values

    @property
    def headers(self) -> dict[str, Any] | None:
        """The headers that are none of Celery's own; the same dict each time, and another one if that is put here."""
        values = vars(self)
        if values.get("headers") is None:
            values["headers"] = self._get_custom_headers(values)
        found: dict[str, Any] | None = values["headers"]
        return found

    @headers.setter
    def headers(self, headers: dict[str, Any] | None) -> None:
        vars(self)["headers"] = headers


class FastRequest(Request):
    """A request that runs in a slot without Celery's tracer, unless it does not end well."""

    def run_here(self) -> None:
        """Run the task without the tracer, which is told how it ended if that is to be shown."""
        self.worker_pid: int | None = self._way.pid
        self.time_start: float | None = time()
        worker_state.task_accepted(self)
        begun_at = monotonic()
        carrier: Carrier = self.app.engine.carrier
        try:
            settled = self._settled(carrier)
        except BaseException as exc:
            settled = not_settled(self.app.engine.host, self.message.taskbridge, exc)
        if type(settled) is not Done or any(map(self.request_dict.get, LINKS)):
            self.trace(settled)
            return
        if _trace.logger.isEnabledFor(logging.INFO):
            about = {
                "id": self.id,
                "name": self.name,
                "return_value": "None",  # taskbridge gives Celery no other, so that none gets into a log
                "runtime": monotonic() - begun_at,
                "args": self.argsrepr,
                "kwargs": self.kwargsrepr,
            }
            _trace.info(_trace.LOG_SUCCESS, about)
        worker_state.task_ready(self, successful=True)
        self.acknowledge()

    def _settled(self, carrier: Carrier) -> Any:
        task, request = self.task, self.request_dict
        request.update(self.body[2], is_eager=False)
        _state._task_stack.push(task)
        task.request_stack.push(_Context({**request, "called_directly": False}))  # as it runs
        try:
            self._tell(_prerun)
            redelivered = bool(self.delivery_info["redelivered"])
            return carrier.settle(self.message.taskbridge, redelivered=redelivered)
        finally:
            self._tell(_postrun)
            _state._task_stack.pop()
            task.request_stack.pop()

    def _tell(self, signal: Any) -> None:
        """Send a signal: on this way, nobody but Celery's Django fixup listens for it."""
        if signal.receivers:
            signal.send(sender=self.task, task_id=self.id, task=self.task, args=self.args, kwargs=self.kwargs)


def is_traced_by_celery_alone(task: Any) -> bool:
    """Return whether neither a class of tasks nor a tool that watches over them has put something of its own in.

    Such tools wrap the function that makes tracers, and would miss what does not come to one.
    """
    made_of: Any = type(task).__base__
    make, call = _trace.build_tracer, made_of.__call__
    return (
        type(make) is FunctionType
        and make.__module__ == _trace.__name__
        and not hasattr(make, "__wrapped__")
        and type(task).__call__ is call_task
        and call is CeleryTask.__call__
        and call.__module__ in _CALLS_OF_CELERY
        and "run" not in vars(task)
        and not any(_trace.task_has_custom(task, name) for name in _TOLD)
        and all(_is_stock(task.app.loader, name) for name in _TOLD_TOO)
    )


_CALLS_OF_CELERY: Final = (CALL_OF_CELERY, "celery.app.trace")
"""Where `Task.__call__` comes from that is Celery's; a worker puts the second in the place of the first."""

_TOLD: Final = ("before_start", "on_success", "after_return")
_TOLD_TOO: Final = ("on_task_init", "on_process_cleanup")
"""What Celery's tracer calls of a task, and of the loader, where it is not as Celery made it (celery/app/trace.py)."""


def _is_stock(loader: Any, name: str) -> bool:
    return name not in vars(loader) and getattr(type(loader), name) is getattr(BaseLoader, name)


_HEARD: Final = (_received, _prerun, _postrun, _success)
_UNSENT: Final = (_received, _success)


def _is_django(receiver: Any) -> bool:
    return type(getattr(receiver, "__self__", None)).__module__ == _DJANGO


class FastWay(Way):
    """The short way for the messages of one task."""

    def request_for(self, message: Any, parts: reading.Parts) -> Request:
        """Return the request that runs a message: one without the tracer for what taskbridge wrote, if that may be."""
        if META in parts.headers and self.is_open():  # plain clients may want more
            return FastRequest(self, message, parts)
        return super().request_for(message, parts)

    def is_open(self) -> bool:
        """Return whether nobody listens for what is left out on this way, as far as is known now."""
        why = self._obstacle()
        if why is not None:
            gate.tell("tasks take", why)
        return why is None

    def _obstacle(self) -> str | None:
        for signal in _HEARD:
            if signal.receivers and (signal in _UNSENT or not all(map(_is_django, signal._live_receivers(self.task)))):
                return f"somebody listens for Celery's signal {signal.name}"
        if self.sends_events():
            return "events of tasks are sent (`-E`)"
        return None if self.bucket() is None else "a task has a rate limit"
