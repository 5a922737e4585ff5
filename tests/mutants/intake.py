"""I, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

from tests.mutants.table import mutant, put


@mutant("I1", "odd_messages_are_buried", "celery+memory")
def what_a_slot_can_not_take_ends_the_loop() -> None:
    """A message that can't be handed to a slot ends the worker's main loop."""

    def refuse(self: Any, message: Any, error: Exception, reason: str) -> None:
        raise error

    put("taskbridge.engines.celery.consumer", "Consumer._refuse", lambda _: refuse)
