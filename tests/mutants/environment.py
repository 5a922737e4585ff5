"""E, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

from tests.mutants.table import mutant, put


def _inherit(name: str) -> None:
    def make(dropped: Any) -> Any:
        return lambda self, inherited: [found for found in dropped(self, inherited) if found != name]

    put("taskbridge.engines.base", "Command.dropped", make)


@mutant("E", "the_environment_changes_nothing", "celery+redis")
def a_variable_deletes_what_waits() -> None:
    """Celery's worker inherits the variable by which it deletes its queues as it starts."""
    _inherit("CELERY_WORKER_PURGE")


@mutant("E", "the_environment_changes_nothing", "celery+redis")
def a_variable_limits_every_run() -> None:
    """Celery's worker inherits a time limit for all tasks."""
    _inherit("CELERY_WORKER_SOFT_TIME_LIMIT")


@mutant("E", "the_environment_changes_nothing", "dramatiq+amqp")
def a_variable_changes_a_queue() -> None:
    """Dramatiq's worker inherits a variable by which it declares a queue that RabbitMQ has with other arguments."""
    _inherit("dramatiq_dead_message_ttl")
