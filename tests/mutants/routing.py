"""Q and P, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import heapq
import importlib
from dataclasses import replace
from typing import Any

from tests.mutants.table import mutant, put

_MEMORY = "taskbridge.brokers.memory"
_INLINE = "taskbridge.engines.inline"
_SETTLE = "taskbridge.engines.settle"


@mutant("Q1", "queues_are_chosen_in_order")
def the_decorator_wins_over_routes() -> None:
    """What the decorator says wins over routes."""

    def make(queue_of: Any) -> Any:
        return lambda self, task: getattr(self.declaration_of(task), "queue", None) or queue_of(self, task)

    put("taskbridge.bridge", "Bridge.queue_of", make)


@mutant("Q2", "unknown_queues_are_refused")
def any_queue_is_known() -> None:
    """A message is sent to whatever queue is asked for."""
    put("taskbridge.sending", "check_known", lambda _: lambda queue, known: None)


@mutant("Q3", "workers_serve_their_queues")
def a_worker_serves_every_queue() -> None:
    """A worker takes messages from queues that it was not started for."""
    put(_INLINE, "InlineWire.take", lambda take: lambda self, queues: take(self, None))


@mutant("Q4", "workers_serve_their_queues")
def what_was_parked_comes_to_the_default_queue() -> None:
    """A delayed message and a retry come to the default queue."""

    def make(park: Any) -> Any:
        def careless(self: Any, messages: Any, *, timeout_s: float) -> None:
            moved = [(replace(message, queue="contract"), delay_s) for message, delay_s in messages]
            park(self, moved, timeout_s=timeout_s)

        return careless

    put(_MEMORY, "MemoryBroker.park", make)


@mutant("Q4", "higher_messages_overtake")
def what_was_parked_comes_back_as_normal() -> None:
    """A delayed message and a retry lose their priority."""

    def make(promote_due: Any) -> Any:
        def careless(self: Any, *given: Any) -> Any:
            deliver = self._wire.deliver
            self._wire.deliver = lambda native: deliver(replace(native, priority="low"))
            try:
                return promote_due(self, *given)
            finally:
                self._wire.deliver = deliver

        return careless

    put(_MEMORY, "MemoryBroker.promote_due", make)


@mutant("Q5", "two_engines_share_a_broker")
def bridges_share_their_queues() -> None:
    """Two bridges of one process take one another's messages."""
    shared: dict[str, Any] = {}

    def make(init: Any) -> Any:
        def common(self: Any) -> None:
            init(self)
            self._waiting = shared

        return common

    put(_INLINE, "InlineWire.__init__", make)


@mutant("Q6", "an_unknown_task_waits")
def an_unknown_task_is_dead_at_once() -> None:
    """A message for an unknown task does not wait."""
    settle = importlib.import_module(_SETTLE)

    def bury(host: Any, message: Any) -> Any:
        verdict = importlib.import_module("taskbridge.retry").Dead("unknown_task")
        settle.settle(host.bound(message.task), message, verdict)
        return verdict

    put(_INLINE, "put_off_unknown", lambda _: bury)


@mutant("Q6", "an_unknown_task_waits")
def waiting_to_be_known_is_an_attempt() -> None:
    """Each time that a message is put off counts as an attempt."""

    def make(later: Any) -> Any:
        def counted(host: Any, message: Any, delay_s: float) -> None:
            later(host, replace(message, attempt=message.attempt + bool(message.waits)), delay_s)

        return counted

    put(_SETTLE, "later", make)


@mutant("Q6", "an_unknown_task_dies")
def an_unknown_task_waits_for_ever() -> None:
    """A message for an unknown task is put off without end."""

    def make(put_off: Any) -> Any:
        return lambda host, message: put_off(host, replace(message, waits_since=host.now()))

    put(_INLINE, "put_off_unknown", make)


@mutant("Q7", "unreadable_bytes_are_dead", "dramatiq+memory")
def unreadable_bytes_are_dropped() -> None:
    """What cannot be read vanishes."""
    put(_SETTLE, "bury_unreadable", lambda _: lambda *given, **named: None)


@mutant("I3", "odd_times_stop_nothing", "dramatiq+redis")
def any_number_is_a_time() -> None:
    """Numbers that a message carries are taken as they are, and nobody looks after what they raise."""

    def unguarded(self: Any, *args: Any, **given: Any) -> Any:
        return self._admit(*args, **given)

    put("taskbridge.engines.dramatiq.wire", "milliseconds", lambda _: lambda options, name: options.get(name))
    put("taskbridge.engines.dramatiq.deliveries", "Reception.admit", lambda _: unguarded)


@mutant("P1", "there_are_four_priorities")
def low_is_the_default() -> None:
    """A task that asks for no priority has the lowest."""

    def make(declare: Any) -> Any:
        return lambda function, **options: declare(function, **{"priority": "low", **options})

    put("taskbridge.bridge", "declare", make)


@mutant("P2", "higher_messages_overtake")
def who_comes_first_is_served_first() -> None:
    """Priority is not looked at."""

    def make(deliver: Any) -> Any:
        def flat(self: Any, native: Any, **given: Any) -> None:
            dumps = native.dumps()
            deliver(self, _Flat(native.queue, dumps), **given)

        return flat

    put(_INLINE, "InlineWire.deliver", make)


@mutant("P2", "queues_are_served_in_turn")
def priorities_count_across_queues() -> None:
    """The highest message of all queues is the next one."""

    def make(_: Any) -> Any:
        def take(self: Any, queues: Any) -> Any:
            with self.changed:
                heads = [(self._waiting[name][0], name) for name in queues or self._waiting if self._waiting.get(name)]
                if not heads:
                    return None
                text = heapq.heappop(self._waiting[min(heads)[1]])[2]
            return importlib.import_module("taskbridge.message").loads(text)

        return take

    put(_INLINE, "InlineWire.take", make)


@mutant("P2", "higher_messages_overtake_on_each_of_four_queues", "celery+amqp")
def one_queue_alone_keeps_priorities() -> None:
    """A message of another queue than the default one is published without its priority."""

    def make(encode: Any) -> Any:
        def flat(self: Any, message: Any) -> Any:
            publication = encode(self, message)
            is_first = message.queue == "contract"  # the contract's default one
            properties = {**publication.properties, "priority": 1}  # normal
            return publication if is_first else replace(publication, properties=properties)

        return flat

    put("taskbridge.engines.celery.wire", "AmqpWire.encode", make)


class _Flat:
    """A message that seems to be of normal priority where it is put in its queue."""

    priority = "normal"

    def __init__(self, queue: str, text: str) -> None:
        self.queue = queue
        self._text = text

    def dumps(self) -> str:
        return self._text


def _without_type(engine: str) -> None:
    def make(arguments: Any) -> Any:
        return lambda *given: {name: value for name, value in arguments(*given).items() if name != "x-queue-type"}

    put(f"taskbridge.engines.{engine}.wire", "queue_arguments", make)


@mutant("Q8", "queues_are_declared_with_their_type", "celery+amqp")
def queues_of_celery_have_no_type() -> None:
    """Celery's queues are declared without a type."""
    _without_type("celery")


@mutant("Q8", "queues_are_declared_with_their_type", "dramatiq+amqp")
def queues_of_dramatiq_have_no_type() -> None:
    """Dramatiq's queues are declared without a type."""
    _without_type("dramatiq")


@mutant("Q9", "another_application_is_told_of", "dramatiq+redis")
def no_worker_is_remembered() -> None:
    """A worker tells nobody of its application."""

    def make(others: Any) -> Any:
        return lambda *given, **options: others(*given, **{**options, "is_started": False})

    put("taskbridge.cli.worker", "others", make)


@mutant("Q9", "another_application_is_told_of", "dramatiq+redis")
def a_release_is_another_application() -> None:
    """Whoever consumes the same queue counts as another application, whatever its tasks."""

    def make(said: Any) -> Any:
        return lambda bridge, name, its, mine: said(bridge, name, its, {**mine, "tasks": []})

    put("taskbridge.cli.applications", "_said", make)
