"""I1 and I2, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

from tests.mutants.table import mutant, put


@mutant("I1", "odd_messages_are_buried", "celery+memory")
def what_a_slot_can_not_take_ends_the_loop() -> None:
    """A message that can't be handed to a slot ends the worker's main loop."""

    def bury(self: Any, message: Any, error: Exception, reason: str = "") -> None:
        raise error

    put("taskbridge.engines.celery.consumer", "Consumer.bury", lambda _: bury)


def _pause(*pauses_s: float) -> None:
    put("taskbridge.engines.settle", "REQUEUE_PAUSES_S", lambda _: pauses_s)


@mutant("I2", "an_unexpected_error_requeues", "dramatiq+redis")
def pauses_after_errors_stay_short() -> None:
    """A message waits for a second after each unexpected error."""
    _pause(1.0, 1.0, 1.0, 1.0, 1.0)


@mutant("I2", "an_unexpected_error_requeues", "celery+amqp")
def an_error_is_met_twice_at_most() -> None:
    """A message is dead when it has met two unexpected errors."""
    _pause(1.0)


@mutant("I2", "an_unexpected_error_requeues", "celery+redis")
def errors_are_met_without_end() -> None:
    """A message is requeued after each unexpected error, however many it has met."""
    _pause(1.0, 2.0, 4.0, 8.0, 16.0, 0.2, 0.2, 0.2, 0.2, 600.0)
