"""S, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import heapq
import importlib
import pickle
import threading
import time
from inspect import signature
from typing import Any

from tests.mutants.table import mutant, put

_MEMORY = "taskbridge.brokers.memory"
_INLINE = "taskbridge.engines.inline"
_CODEC = "taskbridge.codec"
_BRIDGE = "taskbridge.bridge"
_REDIS = "taskbridge.brokers.redis.client"


@mutant("S1", "the_broker_has_what_was_sent")
def send_returns_before_the_broker_has_it() -> None:
    """A message is published in the background."""

    def make(publish: Any) -> Any:
        def later(self: Any, messages: Any, *, timeout_s: float) -> None:
            timer = threading.Timer(2.0, publish, (self, messages), {"timeout_s": timeout_s})
            timer.daemon = True
            timer.start()

        return later

    put(_MEMORY, "MemoryBroker.publish", make)


@mutant("S2", "nobody_listens", "dramatiq+redis")
def refusals_are_waited_out() -> None:
    """A refused connection is tried again for longer than the timeout."""

    def make(execute: Any) -> Any:
        def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return execute(self, *args, **kwargs)
            except Exception:
                time.sleep(3 * kwargs["timeout_s"])
                raise

        return slow

    put(_REDIS, "Client.execute", make)


@mutant("S2", "nobody_answers", "dramatiq+redis")
def uncertainty_is_not_told() -> None:
    """The error never says that the message may have been taken."""

    def make(init: Any) -> Any:
        def certain(self: Any, problem: str, *, maybe_taken: bool = False) -> None:
            init(self, problem, maybe_taken=False)

        return certain

    put("taskbridge.exceptions", "BrokerUnavailable.__init__", make)


@mutant("S3", "arguments_must_fit")
def arguments_are_not_bound() -> None:
    """What doesn't fit the function is sent all the same."""

    def make(_: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            made = importlib.import_module("taskbridge.tasks").Call
            return made(declaration=self.declaration, args=args, kwargs=kwargs, options=self._options)

        return call

    put("taskbridge.tasks", "Sendable.call", make)


@mutant("S4", "arguments_arrive_as_they_were")
def tuples_become_lists() -> None:
    """A tuple arrives as a list, as with plain JSON."""

    def make(plain: Any) -> Any:
        return lambda value, left: plain(list(value) if type(value) is tuple else value, left)

    put(_CODEC, "_plain", make)


@mutant("S4", "what_cannot_travel_is_refused")
def unknown_types_become_text() -> None:
    """What the codec doesn't know is sent as its text."""

    def make(plain: Any) -> Any:
        unknown = importlib.import_module(_CODEC)._UnknownTypeError

        def lenient(value: Any, left: int) -> Any:
            try:
                return plain(value, left)
            except unknown:
                return str(value)

        return lenient

    put(_CODEC, "_plain", make)


@mutant("S5", "many_are_sent")
def the_last_of_many_is_lost() -> None:
    """Of many messages the last is not published."""

    def make(publish: Any) -> Any:
        def lossy(self: Any, messages: Any, *, timeout_s: float) -> None:
            publish(self, messages[:-1] if len(messages) > 1 else messages, timeout_s=timeout_s)

        return lossy

    put(_MEMORY, "MemoryBroker.publish", make)


@mutant("S5", "a_failure_says_what_was_not_sent", "dramatiq+redis")
def what_was_not_sent_is_not_told() -> None:
    """The error of send_many names nothing."""

    def make(init: Any) -> Any:
        def silent(self: Any, problem: str, **_: Any) -> None:
            init(self, problem, sent=(), unsent=(), maybe_taken=False)

        return silent

    put("taskbridge.exceptions", "SendError.__init__", make)


@mutant("S6", "size_is_limited")
def size_is_not_looked_at() -> None:
    """A message of any size is sent."""
    put("taskbridge.message", "Message.size", lambda _: 0)


@mutant("S7", "threads_send")
def threads_overwrite_one_another() -> None:
    """Two threads that send at once may lose a message."""

    def make(_: Any) -> Any:
        def careless(self: Any, native: Any) -> None:
            queue = list(self._waiting.get(native.queue, ()))
            time.sleep(0.001)
            heapq.heappush(queue, (0, next(self._numbers), native.dumps()))
            with self.changed:
                self._waiting[native.queue] = queue
                self.changed.notify()

        return careless

    put(_INLINE, "InlineWire.deliver", make)


@mutant("S7", "a_dropped_connection_loses_nothing", "dramatiq+redis")
def idle_connections_are_trusted() -> None:
    """A connection that was closed while it was idle is used as if it were open."""
    put(_REDIS, "Client._is_fit", lambda _: lambda self, link: True)
    put(_REDIS, "Client.execute", _once)


def _once(execute: Any) -> Any:
    def lossy(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(self, *args, **kwargs)
        except ConnectionError:
            return None

    return lossy


@mutant("S8", "a_newer_form_waits", "dramatiq+memory")
def every_form_is_read_as_our_own() -> None:
    """The version of a message is not looked at."""

    def make(fields: Any) -> Any:
        return lambda data: fields({**data, "form": 1})

    put("taskbridge.message", "_fields", make)


@mutant("S9", "only_declared_tasks_run")
def what_can_be_imported_is_run() -> None:
    """A task that isn't declared is looked for among all modules."""
    put(_BRIDGE, "Bridge.declaration_of", lambda find: lambda self, task: find(self, task) or _imported(task))
    put(_BRIDGE, "Bridge.knows", lambda _: lambda self, task: True)


def _imported(name: str) -> Any:
    module, _, function = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError):
        return None
    declaration = importlib.import_module("taskbridge.declaration").Declaration
    return declaration(name=name, function=found, signature=signature(found), is_coroutine=False)


@mutant("S9", "a_pickle_is_dead", "dramatiq+memory")
def pickles_are_loaded() -> None:
    """Bytes that are no message of the engine's are loaded as a pickle."""

    def make(admit: Any) -> Any:
        def trusting(self: Any, queue_name: str, body: bytes, **kwargs: Any) -> Any:
            if not body.startswith(b"{"):
                pickle.loads(body)
            return admit(self, queue_name, body, **kwargs)

        return trusting

    put("taskbridge.engines.dramatiq.deliveries", "Reception.admit", make)


@mutant("I3", "nesting_has_one_limit@ordinary")
def nesting_is_bounded_by_the_stack_alone() -> None:
    """A value may be nested as deeply as the sender's stack allows."""
    put(_CODEC, "MOST_DEPTH", lambda _: 10_000)


@mutant("I3", "what_is_nested_too_deeply_is_dead", "dramatiq+redis")
def what_is_read_may_be_of_any_depth() -> None:
    """What others send is taken however deeply it is nested."""
    put(_CODEC, "MOST_DEPTH", lambda _: 10_000)
    put(_CODEC, "refuse_depth", lambda _: lambda text, plain: None)


@mutant("I3", "what_a_worker_would_refuse_is_refused_at_once")
def expiries_are_checked_by_workers_alone() -> None:
    """Whatever a worker refuses to read may be sent."""
    put("taskbridge.message", "Message.check_rare", lambda _: lambda self: None)


@mutant("I3", "what_a_worker_would_refuse_is_refused_at_once")
def hashes_are_not_counted() -> None:
    """A set may be sent whose members have one hash, and that takes a worker seconds to be made again."""
    put(_CODEC, "unlike", lambda _: lambda members: members)


@mutant("S4", "arguments_arrive_as_they_were", "celery+redis")
def no_argument_is_called_self() -> None:
    """Celery calls a task in its own way whatever its arguments are called, and so can't with one called `self`."""

    def make(call: Any) -> Any:
        return lambda task, /, *args, **kwargs: super(type(task), task).__call__(*args, **kwargs)  # pyright: ignore

    put("taskbridge.engines.celery.app", "call_task", make)
