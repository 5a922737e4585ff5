"""I1 and I2, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.mutants.table import mutant, put

_SETTLE = "taskbridge.engines.settle"


@mutant("I1", "odd_messages_are_buried", "celery+memory")
def what_a_slot_can_not_take_ends_the_loop() -> None:
    """A message that can't be handed to a slot ends the worker's main loop."""

    def bury(self: Any, message: Any, error: Exception, reason: str = "") -> None:
        raise error

    put("taskbridge.engines.celery.consumer", "Consumer.bury", lambda _: bury)


@mutant("I4", "what_came_with_a_message_is_escaped", "dramatiq+redis")
def nothing_is_escaped() -> None:
    """Texts are shown as they came, but for NUL."""
    put("taskbridge.logs", "_CONTROL", lambda _: re.compile("\0"))


@mutant("I4", "what_came_with_a_message_is_escaped", "celery+redis")
def logs_are_written_as_they_are() -> None:
    """What came with a message is in the log as it came."""
    put("taskbridge.logs", "_Escapes.filter", lambda _: lambda self, record: True)
    put("taskbridge.log_output", "escaped", lambda _: lambda text, *, keep="": text)


def _pause(pause_s: Callable[[int], float | None]) -> None:
    put(_SETTLE, "_requeue_pause_s", lambda _: lambda host, requeues: pause_s(requeues))


@mutant("I2", "an_unexpected_error_requeues", "dramatiq+redis")
def pauses_after_errors_stay_short() -> None:
    """A message waits as long after each unexpected error as after the first."""
    _pause(lambda requeues: 0.2 if requeues < 5 else None)


@mutant("I2", "an_unexpected_error_requeues", "celery+amqp")
def an_error_is_met_twice_at_most() -> None:
    """A message is dead when it has met two unexpected errors."""
    _pause(lambda requeues: 0.2 if requeues < 1 else None)


@mutant("I2", "an_unexpected_error_requeues", "celery+redis")
def errors_are_met_without_end() -> None:
    """A message is requeued after each unexpected error, however many it has met."""
    _pause(lambda requeues: 0.2 * 2 ** min(requeues, 6))


@mutant("I2", "a_crash_before_the_start_is_counted", "dramatiq+amqp")
def crashes_before_the_start_are_not_counted() -> None:
    """A message that came back without having been started is handed to a slot, however often it did."""
    put(_SETTLE, "taken_again", lambda _: lambda host, message, **given: None)


@mutant("I2", "a_crash_before_the_start_is_counted_without_marks", "celery+amqp")
def without_marks_only_starts_are_counted() -> None:
    """Without marks, a message that came back is counted only as it is run."""
    put(_SETTLE, "taken_again", lambda _: lambda host, message, **given: None)


@mutant("I5", "remote_control_changes_nothing", "celery+redis")
def remote_control_is_obeyed() -> None:
    """A worker obeys every command of Celery's remote control."""
    put("taskbridge.engines.celery.control", "_only_reads", lambda _: lambda method: True)
