"""Z, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace
from time import sleep
from types import SimpleNamespace
from typing import Any

from tests.mutants.table import mutant, put

_PAUSES = "taskbridge.pauses"
_SETTLE = "taskbridge.engines.settle"


@mutant("Z0", "pausing_needs_a_store", "dramatiq+amqp")
def pausing_without_a_store_does_nothing() -> None:
    """Without a store, pausing is taken and forgotten."""

    def make(pausing: Any) -> Any:
        nothing = SimpleNamespace(pause=lambda *_: None, resume=lambda *_: False, all=tuple)
        return lambda self, what: pausing(self, what) if self.pauses is not None else nothing

    put("taskbridge.bridge", "Bridge._pausing", make)


@mutant("Z1", "a_paused_queue_waits", "dramatiq+redis")
def workers_look_once() -> None:
    """A worker knows what was paused as it started."""
    put(_PAUSES, "PERIOD_S", lambda _: 1000.0)
    put(_PAUSES, "_OLD_S", lambda _: 1000.0)


@mutant("Z1", "a_pause_ends_by_itself")
def a_pause_does_not_end() -> None:
    """A pause holds until it is resumed, whatever end it has."""
    put(_PAUSES, "Pauses._in_force", lambda _: lambda self, found: tuple(found))


@mutant("Z1", "a_pause_outlives_workers", "celery+redis")
def what_was_paused_before_counts_for_nothing() -> None:
    """A worker keeps to what is paused after it has started."""

    def make(note: Any) -> Any:
        def later(self: Any, found: Any) -> Any:
            before = vars(self).setdefault("before", {(each.queue, each.since) for each in found})
            return note(self, [each for each in found if (each.queue, each.since) not in before])

        return later

    put(_PAUSES, "Pauses._note", make)


@mutant("Z2", "a_paused_queue_waits")
def pausing_is_not_heeded() -> None:
    """Messages start, whatever is paused."""
    put(_PAUSES, "Pauses.holds", lambda _: lambda self, message: False)


@mutant("Z2", "a_paused_task_waits", "celery+redis")
def only_queues_are_heeded() -> None:
    """Messages of a paused task start."""
    put(_PAUSES, "Pauses.holds", lambda _: lambda self, message: message.queue in self.queues)


@mutant("Z3", "what_comes_back_waits_in_a_paused_queue", "celery+redis")
def celery_takes_from_a_paused_queue() -> None:
    """A Celery worker takes from a paused queue, and parks what it has taken."""
    put("taskbridge.engines.celery.consumer", "Consumer._keep_to_pauses", lambda _: lambda self: None)


@mutant("Z3", "what_comes_back_waits_in_a_paused_queue", "celery+amqp")
def celery_leaves_a_paused_queue_for_good() -> None:
    """A Celery worker does not consume a queue again that was paused."""

    def make(keep: Any) -> Any:
        def never_back(self: Any) -> None:
            keep(self)
            self._left.clear()

        return never_back

    put("taskbridge.engines.celery.consumer", "Consumer._keep_to_pauses", make)


@mutant("Z3", "what_comes_back_waits_in_a_paused_queue", "dramatiq+redis")
def dramatiq_takes_from_a_paused_queue() -> None:
    """A Dramatiq worker takes from a paused queue, and parks what it has taken."""
    is_closed = property(lambda self: self._engine_broker.draining)
    put("taskbridge.engines.dramatiq.broker", "EngineConsumer.is_closed", lambda _: is_closed)


@mutant("Z4", "health_tells_that_a_queue_is_paused", "dramatiq+redis")
def a_paused_queue_is_silent() -> None:
    """Health asks workers of a paused queue."""
    put(
        "taskbridge.health",
        "examine",
        lambda examine: lambda *given, **named: examine(*given, **named | {"pauses": None}),
    )


@mutant("Z4", "health_tells_that_a_queue_is_paused", "celery+redis")
def probes_are_paused() -> None:
    """A probe is paused with all tasks."""
    put(_PAUSES, "PROBE", lambda _: "")


@mutant("Z5", "a_paused_task_waits", "dramatiq+redis")
def putting_off_is_an_attempt() -> None:
    """A message that is paused comes back as its next attempt."""

    def make(put_off: Any) -> Any:
        return lambda host, message, **named: put_off(host, replace(message, attempt=message.attempt + 1), **named)

    put(_SETTLE, "put_off_paused", make)


@mutant("Z5", "a_paused_task_waits", "dramatiq+amqp")
def what_is_paused_waits_in_its_slot() -> None:
    """A message that is paused waits in the thread that has taken it."""

    def make(put_off: Any) -> Any:
        def wait(host: Any, message: Any, **named: Any) -> None:
            for _ in range(600):
                if not host.pauses.holds(message):
                    break
                sleep(0.1)
            put_off(host, message, **named)

        return wait

    put(_SETTLE, "put_off_paused", make)
