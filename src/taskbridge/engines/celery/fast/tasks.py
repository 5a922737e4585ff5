"""The short way of a message through a Celery worker, where the tasks run in threads of its main process.

Celery's own way makes two promises and a future for a message, and traces its run for signals, events, log lines and
result backends. Where nobody listens for any of these, a message of taskbridge's goes from the main loop to a thread as
it was read.
What did not end well is shown by Celery's tracer, which is told what has become of it.

Celery's Django fixup listens to close connections to databases before and after each task: it is called here.
"""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from time import monotonic, time
from types import FunctionType
from typing import Any, Final

from celery import _state as _celery_state
from celery import signals
from celery.app import trace as _celery_trace
from celery.exceptions import Reject
from celery.loaders.base import BaseLoader
from celery.worker import strategy as _celery_strategy

from taskbridge.engines.celery import reading, wire
from taskbridge.engines.celery.carrier import CALL_OF_CELERY, LINKS, SETTLED, Carrier, PutOff, Slots, call_task
from taskbridge.engines.celery.consumer import Request
from taskbridge.engines.celery.fast import gate
from taskbridge.engines.celery.stock import CeleryContext, CeleryTask, worker_state
from taskbridge.logs import logger
from taskbridge.retry import Done

_log = logger("taskbridge.celery")

_received: Final[Any] = signals.task_received
_prerun: Final[Any] = signals.task_prerun
_postrun: Final[Any] = signals.task_postrun
_success: Final[Any] = signals.task_success
_strategy: Final[Any] = _celery_strategy
_trace: Final[Any] = _celery_trace
_state: Final[Any] = _celery_state

_DJANGO: Final = "celery.fixups.django"

_END: Final = f", {wire.NOTHING_EMBEDDED}]".encode()
_TYPED: Final = b"__type__"
"""What kombu's own JSON marks values with; in taskbridge's there is none."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_scanner: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_EMBED: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def taken_apart(body: bytes) -> tuple[list[Any], dict[str, Any], dict[str, Any], tuple[str, str]] | None:
    """Return the arguments in a body as taskbridge writes it, what is embedded, and the arguments' own JSON.

    Returns:
        None if it is written otherwise, or can't be read.
    """
    if not body.endswith(_END) or _TYPED in body:
        return None
    try:
        text = body.decode("ascii")
        args, end_of_args = _scanner.raw_decode(text, 1)
        kwargs, end = _scanner.raw_decode(text, end_of_args + 2)
    except (ValueError, RecursionError):
        return None
    is_ours = (
        text[0] == "["
        and text[end_of_args : end_of_args + 2] == ", "
        and len(text) - end == len(_END)
        and type(args) is list
        and type(kwargs) is dict
    )
    if not is_ours:
        return None
    return args, kwargs, {**_EMBED}, (text[1:end_of_args], text[end_of_args + 2 : end])


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
    """A request that runs itself in a slot."""

    def __init__(self, way: Way, message: Any) -> None:
        self._way = way
        super().__init__(
            message,
            headers=message.headers,
            body=message.payload,
            on_reject=partial(way.consumer.call_soon, message.reject_log_error),
            **way.options,
        )

    def execute_using_pool(self, pool: Any, **_: Any) -> None:
        """Have the task run in one of the pool's threads."""
        self._way.slots.put(self.run)

    def run(self) -> None:
        """Run the task in this thread, and settle its message; it goes back if that is not possible."""
        try:
            self._run()
        except BaseException as exc:  # nobody else would, and its slot would be taken for ever
            outcome = self._way.carrier.unsettled(self.message.taskbridge, exc)
            worker_state.task_ready(self)
            self.is_put_off: bool = isinstance(outcome, PutOff)
            if isinstance(outcome, Reject):
                self.reject(requeue=True)
            else:
                self.acknowledge()

    def _run(self) -> None:
        way, request = self._way, self.request_dict
        self.worker_pid: int | None = way.pid
        self.time_start: float | None = time()
        worker_state.task_accepted(self)
        begun_at = monotonic()
        settled = self._settled()
        if type(settled) is Done and not any(map(request.get, LINKS)):
            if way.logs_end:
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
        else:
            request[SETTLED] = settled
            result, error, runtime, shown = way.task.__trace__(self.id, self.args, self.kwargs, request)
            self.on_success((1, result, runtime) if error else (0, shown, runtime))

    def _settled(self) -> Any:
        way, task, request = self._way, self._way.task, self.request_dict
        request.update(self.body[2], is_eager=False)
        _state._task_stack.push(task)
        task.request_stack.push(_Context({**request, "called_directly": False, "_protected": 1}))  # as it runs
        try:
            self._tell(_prerun)
            redelivered = bool(self.delivery_info["redelivered"])
            return way.carrier.settle(lambda: self.message.taskbridge, redelivered=redelivered)
        finally:
            self._tell(_postrun)
            _state._task_stack.pop()
            task.request_stack.pop()

    def _tell(self, signal: Any) -> None:
        """Send a signal: on this way, nobody but Celery's Django fixup listens for it."""
        if signal.receivers:
            task = self._way.task
            signal.send(sender=task, task_id=self.id, task=task, args=self.args, kwargs=self.kwargs)


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


class Way:
    """The short way for the messages of one task.

    Args:
        consumer: The worker's consumer.
        task: The Celery task.
    """

    def __init__(self, consumer: Any, task: Any) -> None:
        self.task: Any = task
        self.slots: Slots = consumer.slots
        self.carrier: Carrier = consumer.app.engine.carrier
        self.pid: int = os.getpid()
        self.options: Final[dict[str, Any]] = {
            "app": consumer.app,
            "hostname": consumer.hostname,
            "eventer": consumer.event_dispatcher,
            "task": task,
            "connection_errors": consumer.connection_errors,
            "decoded": True,
        }
        self.consumer: Any = consumer
        self._logs_start = _strategy.logger.isEnabledFor(logging.INFO)
        self.logs_end: bool = _trace.logger.isEnabledFor(logging.INFO)

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
        consumer = self.consumer
        eventer = consumer.event_dispatcher
        if eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups):
            return "events of tasks are sent (`-E`)"
        return None if consumer.task_buckets[self.task.name] is None else "a task has a rate limit"

    def take(self, message: Any) -> None:
        """Hand a message on to a thread; it has been read."""
        request = FastRequest(self, message)
        if self._logs_start:
            about = {
                "id": request.id,
                "name": request.name,
                "args": request.argsrepr,
                "kwargs": request.kwargsrepr,
                "eta": None,
            }
            _strategy.logger.info(_trace.LOG_RECEIVED, about, extra={"data": about})
        if request.revoked():
            return
        worker_state.task_reserved(request)
        for callback in self.consumer.on_task_message:
            callback(request)
        self.consumer.on_task_request(request)


class Shortcuts:
    """The short ways of a worker's tasks.

    Args:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._ways: dict[str, Way] = {}

    def prepare(self) -> None:
        """Make the way of each declared task on which nobody has put something of his own."""
        tasks = [self._consumer.app.tasks[each.name] for each in self._consumer.app.engine.host.declarations()]
        traced = [task for task in tasks if not is_traced_by_celery_alone(task)]
        for task in traced:
            gate.tell(f"task {task.name} takes", "a tool, or a class of tasks, has something of its own around runs")
        self._ways = {task.name: Way(self._consumer, task) for task in tasks if task not in traced}

    def way_of(self, message: Any, task: str) -> Way | None:
        """Return the way of a message that taskbridge wrote, if it is open."""
        way = self._ways.get(task) if wire.META in message.headers else None  # plain clients may want more
        return way if way is not None and way.is_open() else None

    def parts_of(self, message: Any) -> reading.Parts | None:
        """Return a message that taskbridge wrote, taken apart; None if it is to be read the plain way.

        Raises:
            DecodeError: It is no Celery message.
        """
        headers = message.headers
        if not isinstance(headers, dict) or wire.META not in headers or message.content_type != "application/json":
            return None
        body = message.body
        apart = taken_apart(body.encode() if isinstance(body, str) else bytes(body))
        if apart is None:
            return None
        message._decoded_cache = apart[:3]  # what Celery reads of it, and would decode
        return reading.parts_of(headers, *apart[:3], texts=apart[3])
